"""How much of a class a model's lineage covers, session by session."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection

from pipelines.database import catalog, lineages
from pipelines.database.lineages import SessionState


@dataclass(frozen=True)
class Coverage:
    """How far a lineage reaches.

    sessions: the class's sessions that have anything to cover, the enrolment left out; covered: those of them that lack
    nothing. crops: of present photos, portraits included; embedded: those with a vector of the model's current version.
    lacking: what each session lacks, by its name; the enrolment is one of them.
    """

    sessions: int
    covered: int
    crops: int
    embedded: int
    lacking: dict[str, str]


def read_coverage(connection: Connection, class_id: int, model: str, version: str) -> Coverage:
    """How much of the class the model's lineage covers with vectors of this version, as things are now.

    A usable crop must have a vector, for without it the run that should have made it failed. An unusable one (turned
    away, tiny) that a model cannot cut out counts as covered once its session was processed: no second run would embed it.
    """
    withdrawn = catalog.withdrawn_student_ids(connection, class_id, model)
    states = lineages.session_states(connection, class_id, model, version, withdrawn)
    portraits_at = lineages.portraits_changed_at(connection, class_id, model, version)
    named = bool(catalog.named_students(connection, class_id, model))
    lacking = {state.name: reason for state in states if (reason := lack(state, portraits_at, named))}
    return _coverage([state for state in states if state.crops or state.counted or state.registered], lacking)


def _coverage(states: Sequence[SessionState], lacking: dict[str, str]) -> Coverage:
    sessions = [state.name for state in states if not state.is_enrolment]
    return Coverage(
        sessions=len(sessions),
        covered=sum(name not in lacking for name in sessions),
        crops=sum(state.crops for state in states),
        embedded=sum(state.embedded for state in states),
        lacking=lacking,
    )


def lack(state: SessionState, portraits_changed_at: datetime | None, named: bool) -> str | None:
    """Why a lineage does not cover a session; None where it does, or where there is nothing to cover.

    portraits_changed_at: when the class's portraits last changed. named: whether the class has a student with a name, of
    whom a session says at least "absent".
    """
    if state.bare:
        return f"{state.bare} of {state.crops} faces have no vector"
    if state.is_enrolment or not (state.crops or state.counted or state.registered):
        return None
    if state.assigned_at is None:
        return "it was never processed"

    def later(at: datetime | None) -> bool:
        return at is not None and state.assigned_at is not None and at > state.assigned_at

    problems = {
        "its photos have changed since it was processed": later(state.changed_at),
        "the class's portraits have changed since it was processed": later(portraits_changed_at),
        "its attendance was not registered": state.contradicted or (named and not state.registered),
    }
    return next((problem for problem, is_so in problems.items() if is_so), None)
