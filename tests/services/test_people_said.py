"""What people have said, in sentences: whom a name meant at a time, and how much of what was taken back is told."""

from datetime import UTC, datetime

import pytest

from pipelines.database.review import StudentWord, TakenBack
from pipelines.database.students import StudentState
from pipelines.services.people_said import StudentWords, taken_back_sentences


def day(number: int) -> datetime:
    return datetime(2026, 9, number, tzinfo=UTC)


def word(
    kind: str, number: int, student: int, other: int | None, new_name: str, undone: int | None = None
) -> StudentWord:
    return StudentWord(
        **{"id": number, "kind": kind, "student_id": student, "other_student_id": other, "new_name": new_name},
        **{"old_name": None, "crops": 0, "decided_by": "ann", "decided_at": day(number), "reason": None},
        **{"undone_by": None, "undone_at": undone and day(undone), "undo_reason": None},
    )


@pytest.mark.parametrize(
    ("words", "at", "meant"),
    [
        ([], 5, {"Ann": 1, "Bob": 2, "Cluster_3": 3, "Nobody": None}),
        # Two who have swapped names: before, between and after.
        ([word("rename", 2, 1, None, "X"), word("rename", 4, 2, None, "Ann")], 1, {"Ann": 1, "Bob": 2}),
        ([word("rename", 2, 1, None, "X"), word("rename", 4, 2, None, "Ann")], 3, {"X": 1, "Bob": 2, "Ann": None}),
        ([word("rename", 2, 1, None, "X"), word("rename", 4, 2, None, "Ann")], 5, {"X": 1, "Ann": 2, "Bob": None}),
        # What was undone counted until then.
        ([word("rename", 2, 1, None, "X", undone=4)], 3, {"X": 1, "Ann": None}),
        ([word("rename", 2, 1, None, "X", undone=4)], 5, {"Ann": 1, "X": None}),
        # Of two who were merged the name is that of the one who was kept.
        ([word("merge", 2, 3, 1, "Ann")], 5, {"Ann": 1, "Cluster_3": None}),
        ([word("merge", 2, 1, 3, "Ann")], 5, {"Ann": 3}),
    ],
)
def test_a_name_means_whoever_had_it_at_the_time(words, at, meant):
    originals = {1: StudentState("Ann", False), 2: StudentState("Bob", False), 3: StudentState("Cluster_3", True)}
    said = StudentWords(words, originals, originals)
    assert {name: said.student_called(name, day(at)) for name in meant} == meant


def test_somebody_who_was_merged_since_is_whom_they_were_merged_into():
    originals = {1: StudentState("Ann", False), 3: StudentState("Cluster_3", True)}
    states = {1: originals[1], 3: StudentState("Cluster_3", True, merged_into=1)}
    said = StudentWords([word("merge", 4, 3, 1, "Ann")], states, originals)
    assert said.student_called("Cluster_3", day(3)) == 1


@pytest.mark.parametrize(("count", "counted"), [(3, None), (4, "1 earlier word was"), (7, "4 earlier words were")])
def test_more_than_three_words_that_were_taken_back_are_counted(count, counted):
    words = [
        (TakenBack("assign", 1, None, 1, None, "ann", day(i + 1), f"r{i}", "bob", day(i + 1), None), "Ann")
        for i in range(count)
    ]
    told = taken_back_sentences(words)
    assert told[-1] == (
        f"ann had said on 2026-09-0{count} that this is Ann: r{count - 1}. bob took that back on 2026-09-0{count}."
    )
    assert [sentence.split(":")[0] for sentence in told[-3:]] == [
        f"ann had said on 2026-09-0{number} that this is Ann" for number in range(count - 2, count + 1)
    ]
    assert told[:-3] == ([f"{counted} taken back too."] if counted else [])
