"""What people have said of students and faces, in sentences to be read: who, when and why."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from pipelines.database.decisions import ENROLMENT
from pipelines.database.review import AppliedPlan, AttendanceWord, StudentWord, TakenBack
from pipelines.database.students import StudentState

# Of what does not count any more, so many are told in full: more explain nothing.
_TOLD = 3


@lru_cache(maxsize=10_000)  # a review of a hundred sessions asks 100,000 times about its hundred names
def isolated(name: str) -> str:
    """The name for use in a sentence: one that is written from right to left between Unicode's isolates (UAX #9)."""
    if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in name):
        return f"\u2068{name}\u2069"
    return name


def label(student_id: int, name: str, provisional: bool) -> str:
    """What a student is called in text: one without a name by the number of their record in the database."""
    return f"Unnamed person {student_id}" if provisional else name


def by_whom(name: str | None) -> str:
    """Who has decided, in a sentence."""
    return "The name of a portrait's file" if name == ENROLMENT else isolated(name) if name else "A person"


def for_reason(reason: str | None) -> str:
    """A reason at the end of a sentence, with the full stop."""
    if not reason:
        return "."
    return f": {isolated(reason)}{'' if reason[-1] in '.!?…' else '.'}"


def took_back(by: str | None, at: datetime | None, reason: str | None) -> str:
    """That what was said does not count any more."""
    when = f" on {at:%Y-%m-%d}" if at else ""
    return f"{by_whom(by)} took that back{when}{for_reason(reason)}"


class StudentWords:
    """What people have said of the students of a class, and whom each was merged into.

    states, originals: what each student is, and was before any decision, by id (see `students.read_states`).
    """

    def __init__(
        self, words: Sequence[StudentWord], states: Mapping[int, StudentState], originals: Mapping[int, StudentState]
    ) -> None:
        self.words = words
        self.states = states
        self.originals = originals

    def history(self, student_id: int) -> list[str]:
        """Every word about the student and those who were merged into them, the oldest first, what was undone too."""
        return [
            f"{self._sentence(word)} {took_back(word.undone_by, word.undone_at, word.undo_reason)}"
            if word.undone_by
            else self._sentence(word)
            for word in self.words
            if student_id in self._about(word)
        ]

    def in_force(self, student_id: int) -> list[str]:
        """The names and merges that make the student who they are."""
        return [
            self._sentence(word)
            for word in self.words
            if word.kind in ("rename", "merge") and not word.undone_by and student_id in self._about(word)
        ]

    def way(self, origin: int, faces: int) -> Iterator[str]:
        """How a group of so many faces, which was found to be one student, became another student's."""
        before: set[int] = set()
        while self.states[origin].merged_into is not None and origin not in before:
            before.add(origin)
            merge = next(
                (w for w in self.words if w.kind == "merge" and not w.undone_by and w.student_id == origin), None
            )
            split = next(
                (w for w in self.words if w.kind == "split" and w.undone_by and w.other_student_id == origin), None
            )
            group = f"group of {faces} faces" if faces > 1 else "group of one face"
            if merge is not None and merge.other_student_id is not None:
                into = self._called(merge.other_student_id, merge.old_name)
                yield (
                    f"Its {group}, {self._now(origin)}, was merged into {into} by {by_whom(merge.decided_by)} on "
                    f"{merge.decided_at:%Y-%m-%d}{for_reason(merge.reason)}"
                )
                origin = merge.other_student_id
            elif split is not None:
                yield f"{self._sentence(split)} {took_back(split.undone_by, split.undone_at, split.undo_reason)}"
                origin = split.student_id

    def student_called(self, name: str, at: datetime) -> int | None:
        """The student of today who was called so at a time, or whom that one was merged into; None where they are gone."""
        names = {student_id: original.name for student_id, original in self.originals.items()}
        for word in self.words:
            counted = word.decided_at <= at and (word.undone_at is None or word.undone_at > at)
            if counted and word.kind == "merge" and word.other_student_id is not None:
                names.pop(word.student_id, None)
            if counted and word.kind in ("rename", "merge") and word.new_name:
                names[word.other_student_id or word.student_id] = word.new_name
        student_id = next((i for i, called in names.items() if called == name and i in self.states), None)
        return None if student_id is None else self.states[student_id].merged_into or student_id

    def _about(self, word: StudentWord) -> set[int]:
        """The students of today whom the word is about."""
        ids = {i for i in (word.student_id, word.other_student_id) if i is not None and i in self.states}
        return {self.states[i].merged_into or i for i in ids} | ids

    def _now(self, student_id: int) -> str:
        state = self.states[student_id]
        return isolated(label(student_id, state.name, state.provisional))

    def _called(self, student_id: int, name: str | None) -> str:
        """What the student was called when the name was theirs."""
        before = self.originals[student_id]
        return isolated(label(student_id, name or before.name, before.provisional and name in (None, before.name)))

    def _sentence(self, word: StudentWord) -> str:
        old = self._called(word.student_id, word.old_name)
        new = isolated(word.new_name or "")
        other = word.other_student_id
        faces = "one face" if word.crops == 1 else f"{word.crops} faces"
        what = f"said that {old} is a visitor"
        if word.kind == "rename":
            what = f"gave {old} the name {new}"
            if word.crops:
                what = f"said that {faces}, until then nobody's, {'shows' if word.crops == 1 else 'show'} {new}"
            elif word.old_name == word.new_name:
                what = f"said that the name {new} is right"
        elif word.kind == "merge" and other is not None:
            what = f"said that {self._now(word.student_id)} and {self._called(other, word.old_name)} are one person"
            if word.new_name != word.old_name:
                what += f", {new}"
        elif word.kind == "split" and other is not None:
            created = self._called(other, word.new_name)
            what = f"said that {faces} of {old} {'shows' if word.crops == 1 else 'show'} somebody else, {created}"
        return f"On {word.decided_at:%Y-%m-%d} {by_whom(word.decided_by)} {what}{for_reason(word.reason)}"


NO_NAME = "this is to have no name"


def _said_of_face(kind: str, name: str) -> str:
    return {"not_this_student": f"this is not {name}", "not_a_face": "this is no face", "unassign": NO_NAME}.get(
        kind, f"this is {name}"
    )


def _attendance(word: AttendanceWord) -> str:
    if word.status is None:
        what = f"said on {word.decided_at:%Y-%m-%d} that the photos count"
    else:
        what = f"set “{word.status}” by hand on {word.decided_at:%Y-%m-%d}"
    return f"{by_whom(word.decided_by)} {what}{for_reason(word.reason)}"


def attendance_sentences(words: Sequence[AttendanceWord], *, before: bool) -> list[str]:
    """What a student was set to in a session, the oldest first, no more than the last three.

    before: something later counts.
    """
    return [f"{'Before that ' if before else ''}{_attendance(word)}" for word in words[-_TOLD:]]


def taken_back_sentences(words: Sequence[tuple[TakenBack, str]]) -> list[str]:
    """What was said of a face, or of a student in a session, and does not count any more: how much, and the last of it.

    words: each with the name of the student whom it is about, the oldest first.
    """
    earlier = len(words) - _TOLD
    told = [_taken_back(word, name) for word, name in words[-_TOLD:]]
    if earlier <= 0:
        return told
    return [f"{earlier} earlier {'word was' if earlier == 1 else 'words were'} taken back too.", *told]


def _taken_back(word: TakenBack, name: str) -> str:
    when = f"{word.decided_at:%Y-%m-%d}"
    if word.kind != "attendance":
        what = f"said on {when} that {_said_of_face(word.kind, name)}"
    elif word.status is None:
        what = f"said on {when} that the photos count"
    else:
        what = f"set on {when} “{word.status}” by hand"
    return (
        f"{by_whom(word.decided_by)} had {what}{for_reason(word.reason)} "
        f"{took_back(word.undone_by, word.undone_at, word.undo_reason)}"
    )


def applied_plan_sentence(plan: AppliedPlan, what: str) -> str:
    """Who has applied a plan of clustering the class anew, when and why, and what that has done."""
    return (
        f"{by_whom(plan.applied_by)} applied reclustering plan {plan.id} on {plan.applied_at:%Y-%m-%d}, which {what}"
        f"{for_reason(plan.reason)}"
    )
