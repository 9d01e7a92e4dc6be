import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.faces.similarity import (
    calibrated_similarity,
    cosine_distance_from_calibrated,
    cosine_similarity_matrix,
    defects,
    distance_for,
    l2_normalise,
)

vectors = arrays(np.float64, st.tuples(st.integers(1, 6), st.just(5)), elements=st.floats(-10, 10)).filter(
    lambda v: (np.linalg.norm(v, axis=1) > 1e-3).all()
)


@given(vectors)
def test_normalised_vectors_have_norm_one_and_keep_their_direction(v):
    unit = l2_normalise(v)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit * np.linalg.norm(v, axis=1, keepdims=True), v, atol=1e-5)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, np.nan], [np.inf, 1.0]])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(ValueError, match="embedding"):
        l2_normalise([[1.0, 1.0], bad])


@given(vectors, vectors)
def test_cosine_similarity_matches_the_definition(a, b):
    matrix = cosine_similarity_matrix(a, b)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(a), len(b))
    assert (np.abs(matrix) <= 1).all()
    for i in range(len(a)):
        for j in range(len(b)):
            expected = a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j])
            assert matrix[i, j] == pytest.approx(expected, abs=1e-5)


@given(vectors, st.data())
def test_normalised_rows_are_used_as_they_are_and_the_others_normalised(v, data):
    unit = l2_normalise(v)
    norms = data.draw(st.lists(st.sampled_from([1, 3, 1e-18, 1e30]), min_size=len(v), max_size=len(v)))
    rows = (unit * np.array(norms)[:, None]).astype(np.float32)
    before = rows.copy()
    matrix = cosine_similarity_matrix(rows, unit)
    np.testing.assert_array_equal(rows, before)
    np.testing.assert_allclose(matrix, np.clip(unit.astype(np.float64) @ unit.T, -1, 1), atol=1e-6)


def test_a_row_just_off_norm_one_is_normalised():
    unit = l2_normalise(np.random.default_rng(0).normal(size=(50, 512)))
    matrix = cosine_similarity_matrix(unit * np.float32(1 + 1e-5), unit * np.float32(1 - 1e-5))
    np.testing.assert_allclose(np.diagonal(matrix), 1, atol=1e-6)
    np.testing.assert_allclose(np.diagonal(cosine_similarity_matrix(unit * np.float32(1 - 1e-5), unit)), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [[0.0, 0.0], [1.0, np.nan], [np.inf, 1.0]])
def test_a_similarity_without_direction_is_refused(bad, dtype):
    sound, unsound = np.array([[1, 0], [0, 1]], dtype), np.array([[1, 0], bad], dtype)
    for a, b in [(sound, unsound), (unsound, sound)]:
        with pytest.raises(ValueError, match="embedding"):
            cosine_similarity_matrix(a, b)


def test_no_vectors_give_an_empty_matrix():
    assert cosine_similarity_matrix(np.zeros((0, 4)), np.ones((3, 4))).shape == (0, 3)


@pytest.mark.parametrize("threshold", [0.07, 0.40, 0.68])
def test_calibration_meets_its_fixed_points(threshold):
    assert calibrated_similarity(threshold, threshold) == pytest.approx(0.5)
    assert calibrated_similarity(0, threshold) == pytest.approx(0.99)
    assert calibrated_similarity(2 * threshold, threshold) == pytest.approx(0.01)


@given(distance=st.floats(0, 2), threshold=st.floats(0.05, 1), slope=st.none() | st.floats(1, 15))
def test_calibration_and_its_inverse(distance, threshold, slope):
    similarity = calibrated_similarity(distance, threshold, slope)
    assert 0 <= similarity <= 1
    if 1e-9 < similarity < 1 - 1e-9:
        back = cosine_distance_from_calibrated(similarity, threshold, slope)
        assert back == pytest.approx(distance, abs=1e-6)


def test_calibration_falls_with_distance():
    assert (np.diff(calibrated_similarity(np.linspace(0, 0.4, 50), 0.07)) < 0).all()


@pytest.mark.parametrize("similarity", [0, 1, -0.1, 1.5, np.nan])
def test_a_similarity_outside_the_scale_is_refused(similarity):
    with pytest.raises(ValueError, match="between 0 and 1"):
        cosine_distance_from_calibrated(similarity, 0.07)


thresholds = st.floats(0.05, 1)
similarities = st.floats(0, 1) | st.sampled_from([0, 1e-300, 1e-12, 0.5, 0.99, 0.995, 1 - 1e-12, 1])


@given(similarity=similarities, distance=st.floats(0, 2), threshold=thresholds)
def test_faces_up_to_the_distance_have_the_similarity(similarity, distance, threshold):
    limit = distance_for(similarity, "calibrated", threshold)
    reached = float(calibrated_similarity(distance, threshold))
    if distance <= limit:
        assert reached >= similarity or reached == pytest.approx(similarity, rel=1e-9)
    else:
        assert reached < similarity or reached == pytest.approx(similarity, rel=1e-9)


@given(
    pair=st.tuples(similarities, similarities), threshold=thresholds, scale=st.sampled_from(["calibrated", "cosine"])
)
def test_a_higher_similarity_never_has_a_greater_distance(pair, threshold, scale):
    low, high = sorted(pair)
    assert 2 >= distance_for(low, scale, threshold) >= distance_for(high, scale, threshold)


@given(threshold=thresholds)
def test_distances_of_known_similarities(threshold):
    assert distance_for(0, "calibrated", threshold) == 2
    assert distance_for(0.5, "calibrated", threshold) == pytest.approx(threshold)
    assert distance_for(0.99, "calibrated", threshold) == pytest.approx(0, abs=1e-9)
    assert distance_for(0.995, "calibrated", threshold) < 0
    assert distance_for(1, "calibrated", threshold) == -math.inf
    assert distance_for(1, "cosine", threshold) == 0
    assert distance_for(0.6, "cosine", threshold) == pytest.approx(0.4)
    assert distance_for(-1, "cosine", threshold) == 2


@given(threshold=thresholds, slope=st.floats(0.5, 200), similarity=st.floats(0.01, 0.99))
def test_a_slope_of_its_own_turns_similarities_into_the_distances_that_have_them(threshold, slope, similarity):
    distance = distance_for(similarity, "calibrated", threshold, slope)
    assert distance_for(0.5, "calibrated", threshold, slope) == pytest.approx(threshold)
    if distance < 2:
        assert calibrated_similarity(distance, threshold, slope) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("scale", "similarity"),
    [("calibrated", -0.01), ("calibrated", 1.01), ("calibrated", math.nan), ("cosine", -1.01), ("cosine", 1.01)],
)
def test_a_similarity_threshold_outside_its_scale_is_refused(scale, similarity):
    with pytest.raises(ValueError, match=f"{scale} similarity must lie between"):
        distance_for(similarity, scale, 0.4)


def test_a_threshold_of_zero_is_refused():
    with pytest.raises(ValueError, match="threshold"):
        calibrated_similarity(0.1, 0)


def test_defects_name_what_is_wrong_and_leave_sound_rows_out():
    rows = np.array([[1, 0], [np.nan, 1], [3, 4], [0.6, 0.8], [0, 0]], np.float32)
    assert defects(rows, 2) == {1: "a number in it is not finite", 2: "its norm is 5, not 1", 4: "its norm is 0, not 1"}
    assert defects(rows[:1], 128) == {0: "it has 2 numbers, not 128"}
    assert defects(np.zeros((0, 128), np.float32), 128) == {}
