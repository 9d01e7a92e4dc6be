"""Thresholds from scores: what holds for all scores, known values, and how often the intervals are right."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.linear_model import LogisticRegression

from pipelines.faces.calibration import (
    CalibrationError,
    Rate,
    Searches,
    calibrate,
    fit_logistic,
    operating_threshold,
    search_gallery,
    searches_needed,
)
from pipelines.faces.similarity import calibrated_similarity

scores = arrays(np.float32, st.integers(1, 400), elements=st.floats(-1, 1, width=32))
rates = st.floats(0.0001, 0.5)


def made_searches(seed: int = 0, students: int = 20, crops: int = 20, gap: float = 0.25) -> Searches:
    """Scores as a fair model gives them: strangers about 0.6, the right student `gap` above."""
    rng = np.random.default_rng(seed)
    n = students * crops
    return Searches(
        np.repeat(np.arange(students), crops),
        np.clip(rng.normal(0.6 + gap, 0.05, n), -1, 1).astype(np.float32),
        np.clip(rng.normal(0.6, 0.05, n), -1, 1).astype(np.float32),
    )


@given(scores, rates)
def test_no_more_than_the_asked_share_of_impostors_reaches_the_threshold(impostor, fpir):
    threshold = operating_threshold(impostor, fpir)
    assert (impostor.astype(np.float64) >= threshold).mean() <= fpir
    # The comparison that the assignment makes, in single precision.
    assert (impostor >= np.float32(1 - (1 - threshold))).mean() <= fpir


@given(scores, rates)
def test_no_threshold_that_is_lower_by_more_than_rounding_would_do(impostor, fpir):
    threshold = operating_threshold(impostor, fpir)
    assert (impostor.astype(np.float64) >= threshold - 1.1e-6).mean() > fpir


@given(scores, rates, rates)
def test_a_stricter_rate_never_lowers_the_threshold(impostor, a, b):
    strict, lax = sorted([a, b])
    assert operating_threshold(impostor, strict) >= operating_threshold(impostor, lax)


@given(scores, scores, rates)
def test_higher_impostors_never_lower_the_threshold(impostor, rises, fpir):
    n = min(len(impostor), len(rises))
    raised = np.maximum(impostor[:n], rises[:n])
    assert operating_threshold(raised, fpir) >= operating_threshold(impostor[:n], fpir)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.permutations(range(8)))
def test_the_order_of_crops_and_the_names_of_students_change_nothing(seed, names):
    searches = made_searches(seed, students=8, crops=40)
    order = np.random.default_rng(seed).permutation(len(searches.students))
    shuffled = Searches(*(values[order] for values in (searches.students, searches.mated, searches.non_mated)))
    assert calibrate(shuffled, 0.01) == calibrate(searches, 0.01)
    renamed = calibrate(Searches(np.array(names)[searches.students], searches.mated, searches.non_mated), 0.01)
    assert renamed == calibrate(searches, 0.01)


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 299), (0.05, 59), (0.1, 29), (0.001, 2995), (0.5, 5)])
def test_the_searches_needed_are_those_whose_bound_without_an_error_is_the_rate(rate, needed):
    assert searches_needed(rate) == needed
    assert (1 - rate) ** needed <= 0.05 < (1 - rate) ** (needed - 1)


@pytest.mark.parametrize(
    ("times", "searches", "low", "high"),
    # Published tables: 0 of 10, 5 of 10 and 10 of 10.
    [(0, 10, 0.0, 0.3085), (5, 10, 0.1871, 0.8129), (10, 10, 0.6915, 1.0)],
)
def test_the_interval_is_that_of_clopper_and_pearson(times, searches, low, high):
    assert Rate(times, searches).interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000), st.data())
def test_the_interval_agrees_with_scipys_exact_one_and_holds_the_share(searches, data):
    rate = Rate(data.draw(st.integers(0, searches)), searches)
    exact = stats.binomtest(rate.times, searches).proportion_ci(0.95, method="exact")
    assert rate.interval == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert rate.interval[0] <= rate.share <= rate.interval[1]


def test_the_intervals_end_bounds_the_rate_of_a_threshold_chosen_on_the_same_scores():
    """1,000 classes of 300 strangers: the true rate at the threshold is above the upper end in 2.5 % of them."""
    rng = np.random.default_rng(3)
    above = 0
    for _ in range(1000):
        impostor = rng.normal(size=300).astype(np.float32)
        threshold = operating_threshold(impostor, 0.01)
        seen = Rate(int((impostor >= threshold).sum()), len(impostor))
        above += stats.norm.sf(threshold) > seen.interval[1]
    assert above / 1000 == pytest.approx(0.025, abs=0.015)


def test_each_crop_is_searched_for_among_others_by_the_nearest_one():
    def at(*degrees: float) -> np.ndarray:
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1).astype(np.float32)

    # Ann thrice, twice in photo 1 (a mirror); Bob twice; Cem once.
    vectors = at(0, 10, 30, 90, 110, 180)
    searches = search_gallery(vectors, np.array([1, 1, 1, 2, 2, 3]), np.array([1, 1, 2, 1, 2, 3]))
    expected = {"mated": [30, 20, 20, 20, 20, None], "non_mated": [90, 80, 60, 60, 70, 70]}
    for name, degrees in expected.items():
        cosines = [-np.inf if angle is None else math.cos(math.radians(angle)) for angle in degrees]
        np.testing.assert_allclose(getattr(searches, name), cosines, atol=1e-6)
    assert (len(searches.genuine), len(searches.impostor)) == (5, 6)
    assert searches.false_positives(math.cos(math.radians(65))) == Rate(2, 6)
    # Within 25 degrees four find Ann or Bob; nobody is nearer to any of them.
    assert searches.true_positives(math.cos(math.radians(25))) == Rate(4, 5)


def test_whoever_finds_somebody_else_first_was_not_found():
    searches = Searches(np.array([1, 2]), np.array([0.8, 0.8], np.float32), np.array([0.9, 0.7], np.float32))
    assert searches.true_positives(0.5) == Rate(1, 2)


@pytest.mark.parametrize("n", [0, 1, 2500])
def test_searching_a_class_in_parts_gives_what_one_matrix_gives(n):
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(n, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    students, photos = rng.integers(0, 40, n), rng.integers(0, 300, n)
    searches = search_gallery(vectors, students, photos)
    similarity = vectors @ vectors.T
    own = students[:, None] == students
    for found, wanted in (
        (searches.mated, own & (photos[:, None] != photos)),
        (searches.non_mated, ~own),
    ):
        expected = np.where(wanted, similarity, -np.inf).max(axis=1, initial=-np.inf)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_logistic_is_the_one_that_scikit_learn_fits_to_the_same_targets():
    searches = made_searches(gap=0.1)
    genuine, impostor = searches.genuine[:70], searches.impostor
    midpoint, slope = fit_logistic(genuine, impostor)
    m, n = len(genuine), len(impostor)
    targets = np.repeat([(m + 1) / (m + 2), 1 / (n + 2)], [m, n])
    weights = np.repeat([1 / m, 1 / n], [m, n])
    values = np.concatenate([genuine, impostor])[:, None].astype(np.float64)
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(
        np.concatenate([values, values]),
        np.repeat([1, 0], m + n),
        sample_weight=np.concatenate([weights * targets, weights * (1 - targets)]),
    )
    assert slope == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert midpoint == pytest.approx(-reference.intercept_[0] / reference.coef_[0, 0], abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(30, 200), st.integers(300, 500), st.floats(0.01, 0.5), st.integers(0, 1000))
def test_scores_without_any_overlap_give_a_finite_slope_and_a_midpoint_between_them(m, n, gap, seed):
    rng = np.random.default_rng(seed)
    genuine = rng.uniform(0.3 + gap, 0.3 + 2 * gap, m).astype(np.float32).clip(-1, 1)
    impostor = rng.uniform(0, 0.3, n).astype(np.float32)
    midpoint, slope = fit_logistic(genuine, impostor)
    assert impostor.mean() < midpoint < genuine.mean()
    assert 0 < slope < 1e4
    shown = calibrated_similarity(1 - np.concatenate([genuine, impostor]), 1 - midpoint, slope)
    assert shown[:m].mean() > 0.9
    assert shown[m:].mean() < 0.1


def test_the_calibrated_scale_says_how_probable_it_is_that_a_face_is_the_student():
    """Scores of two normal distributions, equally frequent: the logistic is the exact probability then."""
    rng = np.random.default_rng(5)
    n, spread = 200_000, 0.05
    genuine = rng.normal(0.7, spread, n).astype(np.float32)
    impostor = rng.normal(0.6, spread, n // 4).astype(np.float32)
    midpoint, slope = fit_logistic(genuine, impostor)
    assert midpoint == pytest.approx(0.65, abs=0.001)
    assert slope == pytest.approx((0.7 - 0.6) / spread**2, rel=0.02)


def test_calibration_states_the_thresholds_and_what_they_do():
    searches = made_searches()
    found = calibrate(searches, 0.01)
    assert (found.fpir, found.tpir.searches) == (Rate(4, 400), 400)
    # The 99th percentile of the strangers' scores, and midway between the two groups.
    assert found.operating_distance == pytest.approx(0.4 - 2.326 * 0.05, abs=0.03)
    assert found.verification_distance == pytest.approx(0.275, abs=0.01)


@pytest.mark.parametrize(
    ("students", "crops", "fpir", "words"),
    [
        (14, 21, 0.01, "not enough data: 294 impostor comparisons, 299 needed"),
        (1, 40, 0.01, "not enough data: 40 impostor comparisons, 299 needed"),
        (5, 11, 0.05, "not enough data: 55 impostor comparisons, 59 needed"),
    ],
)
def test_too_few_strangers_are_said_in_numbers(students, crops, fpir, words):
    with pytest.raises(CalibrationError) as error:
        calibrate(made_searches(students=students, crops=crops), fpir)
    assert str(error.value) == words


def test_too_few_students_with_a_second_photo_are_said_in_numbers():
    searches = made_searches()
    nobody = np.where(np.arange(400) < 28, searches.mated, -np.inf).astype(np.float32)
    with pytest.raises(CalibrationError, match=r"^not enough data: 28 genuine comparisons, 29 needed$"):
        calibrate(Searches(searches.students, nobody, searches.non_mated), 0.01)
    nothing = Searches(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    with pytest.raises(CalibrationError, match="0 impostor comparisons, 299 needed; 0 genuine comparisons, 29 needed"):
        calibrate(nothing, 0.01)


def test_identities_that_contradict_each_other_give_no_thresholds():
    searches = made_searches()
    with pytest.raises(CalibrationError, match="not more alike"):
        calibrate(Searches(searches.students, searches.non_mated, searches.mated), 0.01)
    with pytest.raises(CalibrationError, match="not more alike"):
        calibrate(Searches(searches.students, searches.mated * 0 + 0.5, searches.non_mated * 0 + 0.5), 0.01)
    twins = np.where(np.arange(400) < 10, 1, searches.non_mated).astype(np.float32)
    with pytest.raises(CalibrationError, match="exactly alike"):
        calibrate(Searches(searches.students, searches.mated, twins), 0.01)
