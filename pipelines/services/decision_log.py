"""What people have decided about a class, the newest first, to look at and to undo."""

from datetime import datetime
from typing import Any

from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import catalog, decisions
from pipelines.database.decisions import Kind
from pipelines.errors import UnknownIdError


class LoggedDecision(BaseModel):
    """A decision; about several face crops it is one, with all of them."""

    id: int
    kind: Kind
    sentence: str = Field(description="What it says, with the names that students have now.")
    decided_by: str
    decided_at: datetime
    reason: str | None
    run_id: str | None = Field(description="The Dagster run that it was made in.")
    crop_ids: list[int]
    student_id: int | None
    other_student_id: int | None = Field(description="Of a merge who was kept, of a split the new student.")
    session_id: int | None
    status: str | None = Field(description="Of a mark of attendance.")
    undoes: int | None = Field(description="Of an undo, the decision that it takes back.")
    in_force: bool
    undone_by: int | None = Field(description="The undo by which it does not count.")
    can_be_undone: bool = Field(description="False of what portraits' files say, and of what is undone already.")


class DecisionLog(BaseModel):
    """Decisions of a class, the newest first; total: how many there are."""

    class_id: int
    class_name: str
    total: int
    limit: int
    offset: int
    results: list[LoggedDecision]


def read_decisions(connection: Connection, class_id: int, limit: int = 50, offset: int = 0) -> DecisionLog:
    """A page of the class's decisions; raises UnknownIdError for a class that is not there."""
    class_name = catalog.class_by_id(connection, class_id)
    total, rows = decisions.read_log(connection, class_id, limit, offset)
    undone = [row["undoes"] for row in rows if row["undoes"] is not None]
    # An undo says what the decision says that it undoes, which may be an undo.
    about = decisions.read_logged(connection, class_id, undone)
    return DecisionLog(
        class_id=class_id,
        class_name=class_name,
        total=total,
        limit=limit,
        offset=offset,
        results=[_logged(row, about) for row in rows],
    )


def read_decision(connection: Connection, class_id: int, decision_id: int) -> LoggedDecision:
    """One decision of the class; raises UnknownIdError."""
    about = decisions.read_logged(connection, class_id, [decision_id])
    if decision_id not in about:
        raise UnknownIdError(f"There is no decision {decision_id}.")
    return _logged(about[decision_id], about)


def _logged(row: dict[str, Any], about: dict[int, dict[str, Any]]) -> LoggedDecision:
    in_force = row["undone_by"] is None
    return LoggedDecision(
        **{name: row[name] for name in LoggedDecision.model_fields if name in row},
        sentence=_sentence(row, about),
        in_force=in_force,
        can_be_undone=in_force and row["decided_by"] != decisions.ENROLMENT,
    )


_SENTENCES: dict[Kind, str] = {
    "confirm": "{faces} {student}.",
    "assign": "{faces} {student}.",
    "unassign": "{faces} to have no name.",
    "not_this_student": "{faces} not {student}.",
    "not_a_face": "{faces} no face.",
    "rename": "{old_name} is called {new_name}.",
    "merge": "{student} and {old_name} are one: {new_name}.",
    "split": "{faces} not {old_name} but somebody else: {other}.",
    "hide": "{student} is a visitor.",
    "attendance": "{student} was {status} in {session}.",
    "undo": "Decision {undoes} is undone: {undone}",
}
_CREATED = "{faces} somebody new: {new_name}."
_PHOTOS_COUNT = "The photos say whether {student} was in {session}."


def _sentence(row: dict[str, Any], about: dict[int, dict[str, Any]]) -> str:
    crops = row["crop_ids"]
    sentence = _SENTENCES[row["kind"]]
    if row["kind"] == "attendance" and row["status"] is None:
        sentence = _PHOTOS_COUNT
    elif row["kind"] == "rename" and crops:
        sentence = _CREATED
    return sentence.format(
        faces=f"Face {crops[0]} is" if len(crops) == 1 else f"{len(crops)} faces are",
        student=row["student_name"],
        other=row["other_student_name"],
        old_name=row["old_name"],
        new_name=row["new_name"],
        session=row["session_name"],
        status=row["status"],
        undoes=row["undoes"],
        undone="" if row["undoes"] is None else _sentence(about[row["undoes"]], about),
    )
