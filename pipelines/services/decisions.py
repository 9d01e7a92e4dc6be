"""What people say about crops and students: kept for good, honoured by every run, in force at once."""

import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import catalog, decisions, identities, students
from pipelines.database.catalog import SessionRow
from pipelines.database.identities import Assignment
from pipelines.database.students import Student
from pipelines.errors import ConflictError, ParameterError
from pipelines.services.attendance import refresh_every_lineage
from pipelines.services.context import ServiceContext, default_context

MAX_NAME_LENGTH = 200
MAX_REASON_LENGTH = 2000

# Zero-width non-joiner and joiner, which Persian and Indian names need between letters.
_JOINERS = "\u200c\u200d"
# Letters to Unicode, and nothing to see.
_FILLERS = "\u115f\u1160\u3164\uffa0"

Found = TypeVar("Found", SessionRow, Student)


class CropDecisionAnswer(BaseModel):
    """A decision about a crop, and who the crop shows now."""

    status: Literal["success"] = "success"
    decision_id: int
    crop_id: int
    student_id: int | None = Field(description="The student now, in the class's active lineage; null for nobody.")
    student_name: str | None


class RenameAnswer(BaseModel):
    """A student's new name."""

    status: Literal["success"] = "success"
    decision_id: int
    student_id: int
    old_name: str
    student_name: str


class MergeAnswer(BaseModel):
    """Two students who are one now."""

    status: Literal["success"] = "success"
    decision_id: int
    student_id: int = Field(description="The student who is kept.")
    student_name: str
    provisional: bool
    merged_student_id: int = Field(description="The student who is in no list any more.")


@dataclass(frozen=True)
class DecisionService:
    """Records what a person decides, and brings assignments and attendance of every lineage up to date with it.

    Each method is one transaction under the class's lock. A student who was merged stands for the one they were merged
    into. Raises UnknownIdError for a crop or student that is not there, ConflictError for what contradicts what is
    stored, ParameterError for a name or reason that cannot be used, ClassBusyError where somebody else holds the class
    longer than the context's patience.

    decided_by: who says so, as it is to be shown later. run_id: the Dagster run that a decision was made in.

    >>> DecisionService("ann").rename(1, "Ada Lovelace").student_name
    'Ada Lovelace'
    """

    decided_by: str
    run_id: str | None = None
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def assign(self, crop_id: int, student_id: int, reason: str | None = None) -> CropDecisionAnswer:
        """Confirm that the crop shows the student, a second crop of the photo too: a person has said so.

        An automatic assignment of another face of the photo to the same student then needs a review.
        """
        reason = clean_reason(reason)
        with self._session_of(crop_id) as (connection, session):
            student = self._student_of_class(connection, student_id, session, crop_id)
            decision_id = self._append(
                connection, "confirm", session.class_id, reason, crop_id=crop_id, student_id=student.id
            )
            self._write(connection, session, Assignment(crop_id, "assigned", student.id, "person", 1.0, 1.0))
            decisions.doubt_second_faces(connection, student.id)
            refresh_every_lineage(connection, session.class_id, [session.id])
            return self._answer(connection, decision_id, crop_id)

    def unassign(self, crop_id: int, reason: str | None = None) -> CropDecisionAnswer:
        """Say that the crop is to have no student; runs leave it alone until a person assigns it."""
        reason = clean_reason(reason)
        with self._session_of(crop_id) as (connection, session):
            decision_id = self._append(connection, "unassign", session.class_id, reason, crop_id=crop_id)
            self._write(connection, session, Assignment(crop_id, "no_match", None, "person"))
            refresh_every_lineage(connection, session.class_id, [session.id])
            return self._answer(connection, decision_id, crop_id)

    def reject(self, crop_id: int, student_id: int, reason: str | None = None) -> CropDecisionAnswer:
        """Say that the crop does not show the student: no run gives it to them again, until somebody confirms it.

        A crop that had this student has none now, and the next run may match it with another.
        """
        reason = clean_reason(reason)
        with self._session_of(crop_id) as (connection, session):
            student = self._student_of_class(connection, student_id, session, crop_id)
            decision_id = self._append(
                connection, "not_this_student", session.class_id, reason, crop_id=crop_id, student_id=student.id
            )
            decisions.drop_rejected(connection, student.id)
            refresh_every_lineage(connection, session.class_id, [session.id])
            return self._answer(connection, decision_id, crop_id)

    def rename(self, student_id: int, name: str, reason: str | None = None) -> RenameAnswer:
        """Give a student a name; they are no longer provisional. Portraits named as before stay theirs."""
        name, reason = clean_name(name), clean_reason(reason)
        with self._student(student_id) as (connection, student):
            check_name_is_free(connection, student, name)
            decision_id = self._append(
                connection,
                "rename",
                student.class_id,
                reason,
                student_id=student.id,
                old_name=student.name,
                new_name=name,
            )
            students.update_student(connection, student.id, name=name, provisional=False)
            if student.provisional:
                # Of a named student the register says absent where they were not seen.
                self._refresh_class(connection, student.class_id)
            return RenameAnswer(
                decision_id=decision_id, student_id=student.id, old_name=student.name, student_name=name
            )

    def merge(self, student_id: int, into_student_id: int, reason: str | None = None) -> MergeAnswer:
        """Say that two students are one: crops, portraits and decisions of the first count for the second.

        The name that a person gave survives, whichever of the two had it; of two such names, and of two provisional
        ones, that of the student who is kept. So do roster number and address. What was confirmed stays confirmed: a
        crop that was confirmed as one of the two and rejected for the other is confirmed anew. Where a photo shows both
        and no person has said so, the less similar face needs a review.
        """
        reason = clean_reason(reason)
        with self._student(into_student_id) as (connection, kept):
            merged = students.find_student(connection, student_id)
            if student_id == into_student_id:
                raise ConflictError(f"Student {student_id} cannot be merged into itself: name two students.")
            if merged.id == kept.id:
                raise ConflictError(
                    f"Students {student_id} and {into_student_id} are one already: {kept.name} (student {kept.id})."
                )
            if merged.id != student_id:
                raise ConflictError(
                    f"Student {student_id} was merged into {merged.name} (student {merged.id}) already: merge that one."
                )
            if merged.class_id != kept.class_id:
                raise ConflictError(
                    f"{merged.name} and {kept.name} are of different classes: merge students of one class only."
                )
            name = merged.name if kept.provisional and not merged.provisional else kept.name
            decision_id = self._append(
                connection,
                "merge",
                kept.class_id,
                reason,
                student_id=merged.id,
                other_student_id=kept.id,
                old_name=kept.name,
                new_name=name,
            )
            confirmed = decisions.confirmed_as(connection, [merged.id, kept.id])
            students.mark_merged(connection, merged.id, kept.id)
            students.update_student(
                connection,
                kept.id,
                name=name,
                provisional=kept.provisional and merged.provisional,
                student_number=kept.student_number or merged.student_number,
                email=kept.email or merged.email,
            )
            for crop_id in confirmed.keys() - decisions.confirmed_as(connection, [kept.id]).keys():
                self._append(
                    connection,
                    "confirm",
                    kept.class_id,
                    "confirmed before the merge",
                    crop_id=crop_id,
                    student_id=confirmed[crop_id],
                )
            decisions.merge_assignments(connection, merged.id, kept.id)
            decisions.drop_rejected(connection, kept.id)
            decisions.doubt_second_faces(connection, kept.id)
            self._refresh_class(connection, kept.class_id)
            return MergeAnswer(
                decision_id=decision_id,
                student_id=kept.id,
                student_name=name,
                provisional=kept.provisional and merged.provisional,
                merged_student_id=merged.id,
            )

    @contextmanager
    def _session_of(self, crop_id: int) -> Iterator[tuple[Connection, SessionRow]]:
        """A transaction that holds the lock of the crop's class, and the crop's session."""
        with self._locked(lambda connection: catalog.session_of_crop(connection, crop_id)) as found:
            yield found

    @contextmanager
    def _student(self, student_id: int) -> Iterator[tuple[Connection, Student]]:
        """A transaction that holds the lock of the student's class, and the student."""
        with self._locked(lambda connection: students.find_student(connection, student_id)) as found:
            yield found

    @contextmanager
    def _locked(self, find: Callable[[Connection], Found]) -> Iterator[tuple[Connection, Found]]:
        with self.context.database.connection() as connection:
            catalog.lock_class(connection, find(connection).class_id, self.context.lock_patience_s)
            # Again, for it may have changed, or gone, while this waited.
            yield connection, find(connection)

    def _student_of_class(self, connection: Connection, student_id: int, session: SessionRow, crop_id: int) -> Student:
        student = students.find_student(connection, student_id)
        if student.class_id != session.class_id:
            theirs, its = (catalog.class_by_id(connection, c) for c in (student.class_id, session.class_id))
            raise ConflictError(
                f"{student.name} (student {student_id}) is of the class {theirs}, face crop {crop_id} of the class {its}: "
                f"name a student of {its}."
            )
        return student

    def _append(
        self, connection: Connection, kind: decisions.Kind, class_id: int, reason: str | None, **about: Any
    ) -> int:
        return decisions.append_decision(
            connection,
            kind,
            class_id=class_id,
            decided_by=self.decided_by,
            run_id=self.run_id,
            reason=reason,
            **about,
        )

    def _write(self, connection: Connection, session: SessionRow, assignment: Assignment) -> None:
        for model in decisions.lineages(connection, assignment.crop_id, session.class_id):
            identities.write_assignments(connection, model, [assignment], self.run_id)

    def _refresh_class(self, connection: Connection, class_id: int) -> None:
        refresh_every_lineage(connection, class_id, catalog.session_ids(connection, class_id))

    def _answer(self, connection: Connection, decision_id: int, crop_id: int) -> CropDecisionAnswer:
        student_id, name = decisions.current_student(connection, crop_id) or (None, None)
        return CropDecisionAnswer(decision_id=decision_id, crop_id=crop_id, student_id=student_id, student_name=name)


def check_name_is_free(connection: Connection, student: Student, name: str) -> None:
    """Raises ConflictError where another student of the class has the name."""
    other = catalog.student_named(connection, student.class_id, name)
    if other not in (None, student.id):
        raise ConflictError(
            f"The class {catalog.class_by_id(connection, student.class_id)} has another student {name!r} (student {other}): "
            "merge the two, or choose another name."
        )


def clean_name(name: str) -> str:
    """A student's name as it is stored: stripped, Unicode NFC as names of portraits are.

    Raises ParameterError for an empty one, one of more than 200 characters, one without a letter or digit, or one with
    characters that cannot be seen: two such names would look the same, or turn the text around them.
    """
    cleaned = unicodedata.normalize("NFC", name).strip()
    if not cleaned:
        raise ParameterError("The name is empty: give at least one letter.")
    if len(cleaned) > MAX_NAME_LENGTH:
        raise ParameterError(f"The name has {len(cleaned)} characters: give at most {MAX_NAME_LENGTH}.")
    joiners_outside = cleaned.strip(_JOINERS) != cleaned
    formats = any(unicodedata.category(c) == "Cf" and c not in _JOINERS for c in cleaned)
    if not is_plain(cleaned) or formats or joiners_outside:
        raise ParameterError(f"The name {cleaned!r} holds characters that cannot be shown: leave them out.")
    if not any(unicodedata.category(c)[0] in "LN" and c not in _FILLERS for c in cleaned):
        raise ParameterError(f"The name {cleaned!r} has no letter or digit: give at least one.")
    return cleaned


def clean_reason(reason: str | None) -> str | None:
    """Why somebody decided so, as it is stored; raises ParameterError for one that cannot be."""
    if reason is None or not reason.strip():
        return None
    if len(reason) > MAX_REASON_LENGTH:
        raise ParameterError(f"The reason has {len(reason)} characters: give at most {MAX_REASON_LENGTH}.")
    if not is_plain(reason, allowed="\n\r\t"):
        raise ParameterError("The reason holds characters that cannot be shown: leave them out.")
    return reason.strip()


def is_plain(text: str, allowed: str = "") -> bool:
    """Whether a text is free of control characters, line separators and halves of surrogate pairs."""
    return not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} and c not in allowed for c in text)
