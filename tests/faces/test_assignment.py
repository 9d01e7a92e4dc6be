from collections import Counter
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.faces.assignment import (
    Candidate,
    assign_one_to_one,
    assign_people,
    candidates_beside_visitors,
    knn_votes,
)

ANNA, BEN, CLEO = 1, 2, 3
VOTING = get_args(get_type_hints(knn_votes)["voting"])


def votes(row: list[float], students: list[int], **kwargs) -> list[Candidate]:
    options = {"k": 5, "threshold": 0.9} | kwargs
    return knn_votes(np.array([row], np.float32), np.array(students), **options)[0]


def votes_one_by_one(row: list[float], students: list[int], k: int, threshold: float, voting: str) -> list[Candidate]:
    """The documented rules crop by crop, without numpy."""
    gallery = sorted((-value, student) for value, student in zip(row, students, strict=True) if value > -np.inf)
    sizes = Counter(student for _, student in gallery)
    competing = [(student, -minus) for minus, student in gallery if -minus >= threshold]
    smallest = min((sizes[student] for student, _ in competing), default=1)
    ballot = {"majority": k, "equal_ballots": smallest, "best": 1}[voting]
    cast: dict[int, list[float]] = {}
    for student, value in competing:
        if sum(map(len, cast.values())) < k and len(cast.get(student, [])) < ballot:
            cast.setdefault(student, []).append(value)
    found = [Candidate(student, len(v), sum(v) / len(v), v[0]) for student, v in cast.items()]
    found.sort(key=lambda c: (-c.votes, -c.similarity, c.student))
    return found + [Candidate(s, 0, -minus, -minus) for minus, s in gallery if s not in cast][:1]


def decide(rows: list[list[float]], students: list[int], photos: list[int], margin: float = 0.0, **kwargs):
    candidates = knn_votes(np.array(rows, np.float32), np.array(students), 5, 0.9)
    return assign_one_to_one(candidates, photos, margin, **kwargs)


class TestKnnVotes:
    def test_the_majority_of_well_known_students_wins(self):
        """Ben's one lucky crop is nearest, Anna has more of the five nearest."""
        row = [0.95, 0.95, 0.94, 0.91, 0.97, 0.92, 0.5]
        first, second = votes(row, [ANNA] * 4 + [BEN] * 3)
        assert (first.student, first.votes) == (ANNA, 3)
        assert first.best_similarity == pytest.approx(0.95)
        assert first.similarity == pytest.approx((0.95 + 0.95 + 0.94) / 3)
        assert (second.student, second.votes) == (BEN, 2)

    def test_twenty_crops_do_not_outvote_a_single_portrait(self):
        first, second = votes([0.95] * 20 + [0.97], [ANNA] * 20 + [BEN])
        assert (first.student, first.votes) == (BEN, 1)
        assert (second.student, second.votes) == (ANNA, 1)

    def test_a_single_portrait_does_not_beat_a_nearer_well_known_student(self):
        first, second = votes([0.97, 0.96, 0.96, 0.96, 0.91], [ANNA] * 4 + [BEN])
        assert first.student == ANNA
        assert second.student == BEN

    def test_in_a_plain_majority_twenty_crops_do(self):
        first, second = votes([0.95] * 20 + [0.97], [ANNA] * 20 + [BEN], voting="majority")
        assert (first.student, first.votes, first.best_similarity) == (ANNA, 4, pytest.approx(0.95))
        assert (second.student, second.votes) == (BEN, 1)

    def test_a_plain_majority_counts_only_the_k_nearest(self):
        """Ben has more crops above the threshold, Anna more of the three nearest."""
        row, students = [0.97, 0.95, 0.96, 0.94, 0.93], [ANNA] * 2 + [BEN] * 3
        assert votes(row, students, voting="majority", k=3)[0][:2] == (ANNA, 2)
        assert votes(row, students, voting="majority", k=5)[0][:2] == (BEN, 3)

    @pytest.mark.parametrize("threshold", [0.9, -1, -np.inf])
    @pytest.mark.parametrize("voting", VOTING)
    def test_a_student_whom_a_person_ruled_out_is_nowhere(self, voting, threshold):
        """Anna is near, but it is not Anna: neither vote nor runner-up, and her one portrait limits nobody's ballot."""
        row, students = [-np.inf, 0.95, 0.94, 0.93, 0.92], [ANNA, BEN, BEN, BEN, CLEO]
        assert votes(row, students, voting=voting, threshold=threshold) == votes(
            row[1:], students[1:], voting=voting, threshold=threshold
        )
        (only,) = votes([-np.inf, 0.95], [ANNA, BEN], voting=voting, threshold=threshold)
        assert (only.student, only.votes) == (BEN, 1)
        assert votes([-np.inf, -np.inf], [ANNA, BEN], voting=voting, threshold=threshold) == []

    def test_a_portrait_that_does_not_compete_leaves_the_majority_alone(self):
        """With one ballot each Ben's 0.96 would win."""
        row, students = [0.95, 0.95, 0.95, 0.96, 0.91, 0.3], [ANNA] * 3 + [BEN] * 2 + [CLEO]
        first, second, nearest_without_vote = votes(row, students)
        assert (first.student, first.votes) == (ANNA, 2)
        assert (second.student, second.votes) == (BEN, 2)
        assert nearest_without_vote == Candidate(CLEO, 0, pytest.approx(0.3), pytest.approx(0.3))

    def test_only_crops_at_the_threshold_vote(self):
        (first, second) = votes([0.95, 0.89, 0.89, 0.89], [ANNA, BEN, BEN, BEN])
        assert (first.student, first.votes) == (ANNA, 1)
        assert (second.student, second.votes) == (BEN, 0)

    def test_nobody_near_enough(self):
        assert votes([0.2, 0.6], [ANNA, BEN]) == [Candidate(BEN, 0, pytest.approx(0.6), pytest.approx(0.6))]

    def test_the_best_match_wins_where_everybody_has_one_vote(self):
        row, students = [0.95, 0.95, 0.95, 0.96, 0.91, 0.91], [ANNA] * 3 + [BEN] * 3
        assert votes(row, students)[0].student == ANNA
        first = votes(row, students, voting="best")[0]
        assert (first.student, first.votes, first.similarity) == (BEN, 1, first.best_similarity)

    def test_ties_go_to_the_higher_mean_then_to_the_lower_id(self):
        assert votes([0.95, 0.96], [ANNA, BEN])[0].student == BEN
        assert votes([0.95, 0.95], [BEN, ANNA])[0].student == ANNA

    def test_an_empty_gallery(self):
        assert knn_votes(np.zeros((2, 0)), np.zeros(0, int), 5, 0.9) == [[], []]

    @pytest.mark.parametrize("voting", VOTING)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_agrees_with_the_rules_taken_crop_by_crop_in_any_order(self, voting, dtype, data):
        """Few distinct values, so that most places and most elections are tied."""
        crops = data.draw(st.integers(1, 14))
        value = st.sampled_from([-np.inf, -1.0, 0.3, 0.875, 0.89, 0.9, 0.91, 0.97])
        matrix = data.draw(st.lists(st.lists(value, min_size=crops, max_size=crops), max_size=4))
        matrix = np.array(matrix, dtype).reshape(-1, crops)
        gallery = np.array(data.draw(st.lists(st.integers(1, 6), min_size=crops, max_size=crops)))
        k = data.draw(st.integers(1, 8))
        threshold = data.draw(st.sampled_from([-np.inf, -1, 0.875, 1]))
        result = knn_votes(matrix, gallery, k, threshold, voting)
        assert result == [votes_one_by_one(row, gallery.tolist(), k, threshold, voting) for row in matrix.tolist()]

        rows = data.draw(st.permutations(range(len(matrix))))
        columns = data.draw(st.permutations(range(crops)))
        shuffled = knn_votes(matrix[np.ix_(rows, columns)], gallery[columns], k, threshold, voting)
        assert shuffled == [result[row] for row in rows]

    @pytest.mark.parametrize("voting", VOTING)
    @pytest.mark.parametrize("students", [3, 40, 2000])
    @pytest.mark.parametrize("threshold", [-1, 0.25, 0.999])
    def test_agrees_with_the_rules_on_a_large_gallery(self, voting, students, threshold):
        random = np.random.default_rng(students)
        matrix, gallery = random.random((20, 2000), np.float32), random.integers(0, students, 2000)
        matrix[random.random(matrix.shape) < 0.05] = -np.inf
        expected = [votes_one_by_one(row, gallery.tolist(), 20, threshold, voting) for row in matrix.tolist()]
        assert knn_votes(matrix, gallery, 20, threshold, voting) == expected


class TestAssignOneToOne:
    def test_a_clear_match(self):
        (decision,) = decide([[0.97, 0.80]], [ANNA, BEN], [7], margin=0.05)
        assert (decision.state, decision.student, decision.runner_up) == ("assigned", ANNA, BEN)
        assert decision.similarity == pytest.approx(0.97)
        assert decision.margin == pytest.approx(0.17)

    def test_nobody_near_enough_names_the_nearest(self):
        (decision,) = decide([[0.3, 0.6]], [ANNA, BEN], [7])
        assert (decision.state, decision.student, decision.similarity) == ("no_match", None, None)
        assert (decision.runner_up, decision.runner_up_similarity) == (BEN, pytest.approx(0.6))

    def test_a_narrow_lead_needs_review_even_over_somebody_below_the_threshold(self):
        (decision,) = decide([[0.91, 0.89]], [ANNA, BEN], [7], margin=0.05)
        assert (decision.state, decision.student, decision.runner_up) == ("needs_review", ANNA, BEN)

    def test_the_only_student_has_no_runner_up(self):
        (decision,) = decide([[0.95, 0.94]], [ANNA, ANNA], [7], margin=0.05)
        assert (decision.state, decision.runner_up, decision.margin) == ("assigned", None, None)

    def test_the_less_similar_face_of_one_photo_needs_review(self):
        near, far = decide([[0.98, 0.5], [0.93, 0.5]], [ANNA, BEN], [7, 7])
        assert (near.state, near.student) == ("assigned", ANNA)
        assert (far.state, far.student) == ("needs_review", ANNA)

    def test_faces_of_different_photos_do_not_compete(self):
        assert [d.state for d in decide([[0.98], [0.93]], [ANNA], [7, 8])] == ["assigned", "assigned"]

    def test_the_loser_is_proposed_another_student_but_not_given_to_them(self):
        near, far = decide([[0.98, 0.5], [0.95, 0.92]], [ANNA, BEN], [7, 7])
        assert (near.state, near.student) == ("assigned", ANNA)
        assert (far.state, far.student, far.runner_up) == ("needs_review", BEN, ANNA)
        assert far.margin == pytest.approx(-0.03)

    def test_a_loser_does_not_push_out_whoever_is_another_ones_first_choice(self):
        rows = [[0.98, 0.5, 0.5], [0.95, 0.94, 0.5], [0.2, 0.91, 0.5]]
        near, loser, third = decide(rows, [ANNA, BEN, CLEO], [7, 7, 7])
        assert (near.student, third.state, third.student) == (ANNA, "assigned", BEN)
        assert (loser.state, loser.student) == ("needs_review", ANNA)

    def test_two_losers_share_out_what_is_left_in_the_best_way(self):
        """Both prefer Ben next; only together with Cleo for the first of them is the sum highest."""
        rows = [[0.99, 0.5, 0.5], [0.97, 0.96, 0.95], [0.96, 0.94, 0.5]]
        _, one, two = decide(rows, [ANNA, BEN, CLEO], [7, 7, 7])
        assert (one.state, one.student) == ("needs_review", CLEO)
        assert (two.state, two.student) == ("needs_review", BEN)

    def test_a_first_choice_already_in_the_photo_needs_review(self):
        (decision,) = decide([[0.98, 0.93]], [ANNA, BEN], [7], taken={7: {ANNA}})
        assert (decision.state, decision.student) == ("needs_review", BEN)
        (elsewhere,) = decide([[0.98, 0.93]], [ANNA, BEN], [8], taken={7: {ANNA}})
        assert (elsewhere.state, elsewhere.student) == ("assigned", ANNA)

    def test_identical_faces_of_one_photo(self):
        assert [d.state for d in decide([[0.98], [0.98]], [ANNA], [7, 7])] == ["assigned", "needs_review"]

    def test_a_ruled_out_student_is_neither_assigned_nor_proposed_nor_runner_up(self):
        rows = [[0.98, 0.5, 0.4], [-np.inf, 0.95, 0.4], [-np.inf, 0.93, 0.4]]
        _, near, far = decide(rows, [ANNA, BEN, CLEO], [7, 7, 7])
        assert (near.state, near.student, near.runner_up) == ("assigned", BEN, CLEO)
        assert (far.state, far.student, far.runner_up) == ("needs_review", BEN, CLEO)
        (nobody,) = decide([[-np.inf]], [ANNA], [7])
        assert (nobody.state, nobody.runner_up, nobody.runner_up_similarity) == ("no_match", None, None)

    def test_no_faces(self):
        assert assign_one_to_one([], [], 0.1) == []

    @settings(max_examples=300, deadline=None)
    @given(
        rows=st.lists(
            st.lists(st.integers(860, 1000), min_size=6, max_size=6), min_size=1, max_size=7, unique_by=tuple
        ),
        students=st.lists(st.integers(1, 4), min_size=6, max_size=6),
        photos=st.lists(st.integers(1, 2), min_size=7, max_size=7),
        taken=st.dictionaries(st.integers(1, 2), st.sets(st.integers(1, 4), max_size=2)),
        margin=st.sampled_from([0, 0.01, 0.05]),
        random=st.randoms(use_true_random=False),
    )
    def test_rules_hold_in_any_order(self, rows, students, photos, taken, margin, random):
        matrix, gallery = np.array(rows) / 1000, np.array(students)
        photos = photos[: len(rows)]
        candidates = knn_votes(matrix, gallery, 3, 0.9)
        decisions = assign_one_to_one(candidates, photos, margin, taken)

        order = random.sample(range(len(rows)), len(rows))
        again = assign_one_to_one([candidates[i] for i in order], [photos[i] for i in order], margin, taken)
        if len({tuple(c) for c in candidates}) == len(candidates):
            assert again == [decisions[i] for i in order]

        for photo in (1, 2):
            here = [i for i in range(len(rows)) if photos[i] == photo]
            given = [decisions[i].student for i in here if decisions[i].state == "assigned"]
            assert len(given) == len(set(given))
            assert not set(given) & set(taken.get(photo, ()))
        for i, decision in enumerate(decisions):
            assert (decision.state == "no_match") == (decision.student is None) == bool((matrix[i] < 0.9).all())
            if decision.state == "assigned":
                first = candidates[i][0]
                assert decision.student == first.student
                assert decision.margin is None or decision.margin >= margin
                for j in range(len(rows)):
                    if photos[j] == photos[i] and candidates[j][0].votes and candidates[j][0].student == first.student:
                        assert candidates[j][0].best_similarity <= first.best_similarity
            others = matrix[i][gallery != decision.student]
            assert decision.runner_up_similarity == max(others.tolist(), default=None)


class TestAssignPeople:
    """People whose faces in several photos were taken together."""

    def test_two_who_share_no_photo_may_be_one_student(self):
        candidates = knn_votes(np.array([[0.98], [0.95]], np.float32), np.array([ANNA]), 5, 0.9)
        assert [d.state for d in assign_people(candidates, [{1, 2}, {3}], 0.0)] == ["assigned", "assigned"]

    def test_of_two_who_share_a_photo_the_nearer_one_keeps_the_student(self):
        candidates = knn_votes(np.array([[0.95], [0.98]], np.float32), np.array([ANNA]), 5, 0.9)
        far, near = assign_people(candidates, [{1, 2}, {2, 3}], 0.0)
        assert (near.state, far.state, far.student) == ("assigned", "needs_review", ANNA)

    def test_a_student_taken_in_any_of_the_photos_needs_review(self):
        candidates = knn_votes(np.array([[0.98]], np.float32), np.array([ANNA]), 5, 0.9)
        (decision,) = assign_people(candidates, [{1, 2}], 0.0, taken={2: {ANNA}})
        assert decision.state == "needs_review"

    def test_losers_in_different_photos_may_be_proposed_the_same_student(self):
        """Ben is in neither photo, and both who look like Anna, but are not her, look like him too."""
        rows = np.array([[0.99, 0.5], [0.95, 0.93], [0.99, 0.5], [0.94, 0.92]], np.float32)
        candidates = knn_votes(rows, np.array([ANNA, BEN]), 5, 0.9)
        decisions = assign_people(candidates, [{1}, {1}, {2}, {2}], 0.0)
        assert [(d.state, d.student) for d in decisions] == [("assigned", ANNA), ("needs_review", BEN)] * 2
        linked = assign_people(candidates, [{1}, {1, 3}, {2}, {2, 3}], 0.0)
        assert [d.student for d in linked] == [ANNA, BEN, ANNA, ANNA]

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_no_photo_shows_a_student_twice_in_any_order(self, data):
        n = data.draw(st.integers(1, 7))
        rows = data.draw(
            st.lists(st.lists(st.integers(860, 1000), min_size=4, max_size=4), min_size=n, max_size=n, unique_by=tuple)
        )
        photos = data.draw(st.lists(st.sets(st.integers(1, 4), min_size=1, max_size=3), min_size=n, max_size=n))
        taken = data.draw(st.dictionaries(st.integers(1, 4), st.sets(st.integers(1, 4), max_size=2)))
        candidates = knn_votes(np.array(rows) / 1000, np.arange(1, 5), 3, 0.9)
        decisions = assign_people(candidates, photos, 0.01, taken)
        shown = [
            (photo, d.student) for d, p in zip(decisions, photos, strict=True) for photo in p if d.state == "assigned"
        ]
        shown += [(photo, student) for photo, students in taken.items() for student in students]
        assert len(shown) == len(set(shown))
        order = data.draw(st.permutations(range(n)))
        again = assign_people([candidates[i] for i in order], [photos[i] for i in order], 0.01, taken)
        if len({tuple(c) for c in candidates}) == n:
            assert [(d.state == "assigned", d.runner_up_similarity is None) for d in again] == [
                (decisions[i].state == "assigned", decisions[i].runner_up_similarity is None) for i in order
            ]


class TestVisitors:
    """Ben is a visitor, Anna and Cleo are students."""

    def decide(self, *row: float, margin: float = 0.02):
        similarity = np.array([row], np.float32)
        found = candidates_beside_visitors(similarity, np.array([ANNA, BEN, CLEO]), {BEN}, 5, 0.9, margin)
        (decision,) = assign_people(found, [{7}], margin)
        return decision.state, decision.student, decision.runner_up

    def test_a_visitor_absorbs_their_own_face(self):
        assert self.decide(0.92, 0.97, 0.5) == ("assigned", BEN, ANNA)

    def test_a_face_that_a_student_is_nearly_as_near_to_is_asked_about_with_the_student(self):
        assert self.decide(0.96, 0.97, 0.5) == ("needs_review", ANNA, BEN)
        assert self.decide(0.89, 0.905, 0.5) == ("needs_review", ANNA, BEN)

    def test_a_student_who_leads_a_visitor_by_little_needs_review_too(self):
        assert self.decide(0.97, 0.96, 0.5) == ("needs_review", ANNA, BEN)

    def test_a_clear_student_is_assigned_and_names_the_nearest_other_of_all(self):
        assert self.decide(0.97, 0.93, 0.5) == ("assigned", ANNA, BEN)
        assert self.decide(0.97, 0.6, 0.8) == ("assigned", ANNA, CLEO)

    def test_nobody_near_enough(self):
        assert self.decide(0.5, 0.8, 0.6) == ("no_match", None, BEN)

    def test_a_visitor_outvotes_no_student(self):
        similarity = np.array([[0.97, 0.94, 0.94, 0.94]], np.float32)
        students = np.array([ANNA, BEN, BEN, BEN])
        (found,) = candidates_beside_visitors(similarity, students, {BEN}, 5, 0.9, 0.01, "majority")
        assert found[0].student == ANNA

    def test_a_gallery_of_visitors_alone_and_one_without_any(self):
        similarity = np.array([[0.97]], np.float32)
        for visitors in ({ANNA}, set()):
            (found,) = candidates_beside_visitors(similarity, np.array([ANNA]), visitors, 5, 0.9, 0.01)
            assert (found[0].student, found[0].votes) == (ANNA, 1)

    def test_a_visitor_ruled_out_for_a_face_is_nowhere(self):
        assert self.decide(0.95, -np.inf, 0.5) == ("assigned", ANNA, CLEO)
