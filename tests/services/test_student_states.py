"""What students are, derived from what people said of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.database.decisions import StudentDecision
from pipelines.database.students import StudentState
from pipelines.services.student_states import derive_states

NAMED, NAMELESS = StudentState("Ann", provisional=False), StudentState("Cluster_1", provisional=True)


def said(*decisions: tuple) -> list[StudentDecision]:
    """(kind, student, other or name[, in force]) as decisions."""
    return [
        StudentDecision(
            i,
            kind,
            student,
            about if isinstance(about, int) else None,
            about if isinstance(about, str) else None,
            all(in_force),
        )
        for i, (kind, student, about, *in_force) in enumerate(decisions)
    ]


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([("rename", 2, "Bob")], {2: StudentState("Bob", False)}),
        ([("rename", 2, "Bob", False)], {}),
        ([("hide", 2, None)], {2: StudentState("Cluster_1", True, None, True)}),
        # The name that a person gave survives, whichever had it.
        ([("merge", 1, 2)], {1: StudentState("Ann", False, 2), 2: StudentState("Ann", False)}),
        ([("merge", 2, 1)], {2: StudentState("Cluster_1", True, 1)}),
        # A visitor who is merged into a student is that student; of two without a name one visitor is enough.
        ([("hide", 2, None), ("merge", 2, 1)], {2: StudentState("Cluster_1", True, 1, True)}),
        (
            [("hide", 2, None), ("merge", 1, 2)],
            {1: StudentState("Ann", False, 2), 2: StudentState("Ann", False)},
        ),
        (
            [("hide", 2, None), ("merge", 2, 3)],
            {2: StudentState("Cluster_1", True, 3, True), 3: StudentState("Cluster_2", True, None, True)},
        ),
        # Nobody is merged into somebody who was merged.
        (
            [("merge", 3, 2), ("merge", 2, 1)],
            {3: StudentState("Cluster_2", True, 1), 2: StudentState("Cluster_1", True, 1)},
        ),
        # A split that is undone makes the new student the old one, whose name stays.
        ([("split", 2, 1)], {}),
        ([("split", 2, 1, False)], {1: StudentState("Ann", False, 2)}),
        # A name that the new student was given meanwhile is not the old one's.
        ([("split", 1, 2, False), ("rename", 2, "Zoe")], {2: StudentState("Zoe", False, 1)}),
        ([("rename", 9, "Gone"), ("merge", 9, 1)], {}),
    ],
)
def test_states_follow_from_decisions(decisions, expected):
    originals = {1: NAMED, 2: NAMELESS, 3: StudentState("Cluster_2", True)}
    assert derive_states(originals, said(*decisions)) == {**originals, **expected}


@given(
    st.lists(
        st.tuples(st.sampled_from(["merge", "split"]), st.integers(1, 6), st.integers(1, 6), st.booleans())
        | st.tuples(st.sampled_from(["rename", "hide"]), st.integers(1, 6), st.sampled_from(["A", "B"]), st.booleans()),
        max_size=12,
    )
)
def test_whoever_was_merged_is_somebody_who_was_not(decisions):
    states = derive_states({i: StudentState(f"Cluster_{i}", True) for i in range(1, 7)}, said(*decisions))
    for i, state in states.items():
        assert state.merged_into != i
        assert state.merged_into is None or states[state.merged_into].merged_into is None
    assert derive_states(states, []) == states
