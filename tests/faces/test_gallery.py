import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.faces.gallery import MOST_PROTOTYPES, prototypes
from pipelines.faces.similarity import cosine_similarity_matrix, l2_normalise

ANNA, BEN = 1, 2


def faces(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def made(degrees, students, weights=None, confirmed=None, threshold=0.02):
    n = len(degrees)
    weights = np.ones(n) if weights is None else np.array(weights)
    confirmed = np.zeros(n, bool) if confirmed is None else np.array(confirmed)
    return prototypes(faces(*degrees), np.array(students), weights, confirmed, threshold)


def test_one_portrait_each_is_the_gallery():
    found = made([0, 90], [BEN, ANNA], confirmed=[True, True])
    assert found.students.tolist() == [ANNA, BEN]
    assert found.vectors == pytest.approx(faces(90, 0), abs=1e-6)


def test_crops_that_are_alike_share_a_prototype_and_others_do_not():
    found = made([0, 4, 60], [ANNA, ANNA, ANNA])
    assert sorted(np.degrees(np.arctan2(found.vectors[:, 1], found.vectors[:, 0])).round().tolist()) == [2, 60]


def test_a_confirmed_crop_counts_more_than_an_automatic_one():
    (found,) = made([0, 6], [ANNA, ANNA], confirmed=[True, False]).vectors
    assert np.degrees(np.arctan2(found[1], found[0])) == pytest.approx(2, abs=0.1)


def test_a_stray_poor_crop_is_dropped_unless_a_person_has_confirmed_it():
    weights = [1.0] * 6 + [0.1]
    degrees, students = [0, 1, 2, 3, 4, 5, 90], [ANNA] * 7
    assert len(made(degrees, students, weights).vectors) == 1
    assert len(made(degrees, students, weights, [False] * 6 + [True]).vectors) == 2


def test_no_more_prototypes_than_are_useful():
    rng = np.random.default_rng(3)
    vectors = l2_normalise(rng.normal(size=(50, 64)))
    students, weights = np.full(50, ANNA), rng.uniform(0.5, 1, 50)
    unconfirmed = prototypes(vectors, students, weights, np.zeros(50, bool), 0.02)
    assert len(unconfirmed.vectors) == MOST_PROTOTYPES
    heaviest = np.argsort(-weights)[:MOST_PROTOTYPES]
    assert cosine_similarity_matrix(vectors[heaviest], unconfirmed.vectors).max(axis=1) == pytest.approx(1, abs=1e-5)


def test_an_empty_gallery():
    empty = np.zeros(0)
    found = prototypes(np.zeros((0, 8), np.float32), empty.astype(np.int64), empty, empty.astype(bool), 0.02)
    assert (found.vectors.shape, found.students.tolist()) == ((0, 8), [])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_every_student_has_some_and_every_confirmed_crop_is_near_one_in_any_order(data):
    n = data.draw(st.integers(1, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vectors = l2_normalise(rng.normal(size=(4, 8))[rng.integers(0, 4, n)] + 0.1 * rng.normal(size=(n, 8)))
    students, weights, confirmed = rng.integers(1, 4, n), rng.uniform(0.05, 1, n), rng.random(n) < 0.3
    found = prototypes(vectors, students, weights, confirmed, 0.1)
    assert set(found.students.tolist()) == set(students.tolist())
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx(1, abs=1e-5)
    for student in set(students.tolist()):
        own = vectors[(students == student) & confirmed]
        if len(own):
            near = cosine_similarity_matrix(own, found.vectors[found.students == student]).max(axis=1)
            assert (near > 0.6).all()
    order = rng.permutation(n)
    again = prototypes(vectors[order], students[order], weights[order], confirmed[order], 0.1)
    assert again.students.tolist() == found.students.tolist()
    for student in set(students.tolist()):
        one, other = (part.vectors[part.students == student] for part in (found, again))
        assert cosine_similarity_matrix(one, other).max(axis=1) == pytest.approx(1, abs=1e-4)
