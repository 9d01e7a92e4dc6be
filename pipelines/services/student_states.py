"""What students are called, whether they are provisional, visitors or somebody else: all derived from decisions."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from psycopg import Connection

from pipelines.database import decisions, students
from pipelines.database.decisions import StudentDecision
from pipelines.database.students import StudentState
from pipelines.errors import ConflictError


def derive_states(originals: Mapping[int, StudentState], said: Iterable[StudentDecision]) -> dict[int, StudentState]:
    """What each student is, after what people said of them, in this order.

    originals: what each was before anybody said anything, by id. said: every rename, merge, split and hide of the class
    in the order of ids, those that were undone too. Of two who are merged, the name survives that a person gave (of two
    such names, and of two provisional ones, that of the student who is kept), and with it whether they are a visitor; of
    two without a name one visitor is enough. Of a split that was undone, the new student is the old one again.
    merged_into is never a student who was merged, too. Decisions about students who are not in `originals` say nothing.
    """
    states = dict(originals)

    def root(student_id: int) -> int:
        into = states[student_id].merged_into
        return student_id if into is None else into

    def merge(student_id: int, into: int) -> None:
        merged, kept = root(student_id), root(into)
        if merged == kept:
            return
        for other, state in states.items():
            if merged in (other, state.merged_into):
                states[other] = replace(state, merged_into=kept)

    for decision in said:
        student_id, other_id = decision.student_id, decision.other_student_id
        if not {student_id, other_id} - {None} <= states.keys():
            continue
        match decision.kind, decision.in_force:
            case "rename", True:
                states[student_id] = replace(states[student_id], name=decision.new_name or "", provisional=False)
            case "hide", True:
                states[student_id] = replace(states[student_id], hidden=True)
            case "merge", True:
                assert other_id is not None, "a merge names two students"
                merged, kept = states[root(student_id)], states[root(other_id)]
                named = merged if kept.provisional and not merged.provisional else kept
                nameless = kept.provisional and merged.provisional
                states[root(other_id)] = replace(
                    named, hidden=named.hidden or (nameless and merged.hidden), merged_into=None
                )
                merge(student_id, other_id)
            case "split", False:
                assert other_id is not None, "a split names two students"
                merge(other_id, student_id)
    return states


def refresh_students(connection: Connection, class_id: int) -> set[int]:
    """Bring the class's students up to date with the decisions in force; returns those who were merged by it.

    Raises ConflictError where two students would have one name: somebody else has the name by now.
    """
    current, originals = students.read_states(connection, class_id)
    said = decisions.read_student_decisions(connection, class_id)
    states = derive_states(originals, said)
    names = Counter(state.name for state in states.values() if state.merged_into is None)
    for name, count in names.items():
        if count > 1:
            holders = [i for i, state in states.items() if state.merged_into is None and state.name == name]
            raise ConflictError(
                f"Two students would be called {name!r} (students {holders[0]} and {holders[1]}): "
                f"{_remedy(name, holders, current, said)}"
            )
    students.write_states(connection, {i: state for i, state in states.items() if state != current[i]})
    return {i for i, state in states.items() if state.merged_into is not None and current[i].merged_into is None}


def _remedy(
    name: str, holders: Iterable[int], current: Mapping[int, StudentState], said: Iterable[StudentDecision]
) -> str:
    """Who has the name now, by which decision, and what is to be done for another student to be called so."""
    holder = next((i for i in holders if current[i].merged_into is None and current[i].name == name), None)
    if holder is None:
        return "rename one first."
    given = [
        d.id
        for d in said
        if d.in_force and d.new_name == name and holder == (d.student_id if d.kind == "rename" else d.other_student_id)
    ]
    if not given:
        return f"student {holder} has the name now. Rename student {holder} first."
    return (
        f"decision {given[-1]} has given the name to student {holder}. Undo decision {given[-1]} first, or rename "
        f"student {holder}."
    )
