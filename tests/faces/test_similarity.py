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


def test_a_threshold_of_zero_is_refused():
    with pytest.raises(ValueError, match="threshold"):
        calibrated_similarity(0.1, 0)


def test_defects_name_what_is_wrong_and_leave_sound_rows_out():
    rows = np.array([[1, 0], [np.nan, 1], [3, 4], [0.6, 0.8], [0, 0]], np.float32)
    assert defects(rows, 2) == {1: "a number in it is not finite", 2: "its norm is 5, not 1", 4: "its norm is 0, not 1"}
    assert defects(rows[:1], 128) == {0: "it has 2 numbers, not 128"}
    assert defects(np.zeros((0, 128), np.float32), 128) == {}
