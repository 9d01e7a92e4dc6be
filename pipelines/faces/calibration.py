"""From identities that people confirmed to thresholds: the operating threshold and the logistic of the calibrated scale.

Rates are those of identification, as ISO/IEC 19795-1 and NIST's FRTE 1:N define them: per search of a gallery, not per
pair of faces. A pairwise false match rate would promise too much, for a search tries every student of the class.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.faces.similarity import cosine_similarity_matrix

# Of all intervals here, and of the bound that a number of searches without an error gives.
CONFIDENCE = 0.95
# Mated searches are too few where not even a miss rate of this size could be ruled out.
MISS_RATE = 0.1
# The same two crops compared in another batch differ by up to this.
ROUNDING = 1e-6
# Rows of similarities held at once: 40 MB for a class of 10,000 crops.
_ROWS = 1000


class CalibrationError(ValueError):
    """Confirmed identities that no thresholds can be found from: the message is the reason."""


@dataclass(frozen=True)
class Searches:
    """Every confirmed crop searched for in its class.

    students: (n,) whose crop each is. mated: (n,) cosine similarity of the nearest crop of that student in another
    photo. non_mated: (n,) that of the nearest crop of all other students, as if its own were not enrolled. -inf where
    there is no such crop, which makes no search.
    """

    students: NDArray[np.int64]
    mated: NDArray[np.float32]
    non_mated: NDArray[np.float32]

    @property
    def genuine(self) -> NDArray[np.float32]:
        """The genuine scores: of the searches that have somebody to find."""
        return self.mated[np.isfinite(self.mated)]

    @property
    def impostor(self) -> NDArray[np.float32]:
        """The impostor scores: of the searches that should find nobody."""
        return self.non_mated[np.isfinite(self.non_mated)]

    def false_positives(self, threshold: float) -> "Rate":
        """The non-mated searches that find somebody at this cosine similarity: FPIR, false-positive identification."""
        return Rate(int((self.impostor >= threshold).sum()), len(self.impostor))

    def true_positives(self, threshold: float) -> "Rate":
        """The mated searches whose nearest crop is near enough and the right student's: TPIR at rank 1."""
        found = (self.mated >= threshold) & (self.mated > self.non_mated)
        return Rate(int(found.sum()), len(self.genuine))


@dataclass(frozen=True)
class Rate:
    """A share of searches."""

    times: int
    searches: int

    @property
    def share(self) -> float:
        """The share that was seen; 0 of 0 searches is 0."""
        return self.times / self.searches if self.searches else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The shares that the searches do not contradict, with 95 % confidence: Clopper and Pearson, Biometrika 1934.

        It holds for independent searches. Crops of one person look alike, and all are searched for in one gallery: the
        fewer students there are, the less certain the share is. In made classes of 20 students, whose own spread was
        0.4 of that between students, the true share lay above the upper end in 44 % of the classes instead of 2.5 %
        (60 students: 21 %). No interval is given for the threshold itself, since the bootstrap by student, which is
        meant for this, held the true one in 41 % of those classes instead of 95 %.
        """
        from scipy.stats import beta

        tail = (1 - CONFIDENCE) / 2
        low = beta.ppf(tail, self.times, self.searches - self.times + 1) if self.times else 0.0
        high = beta.ppf(1 - tail, self.times + 1, self.searches - self.times) if self.times < self.searches else 1.0
        return float(low), float(high)


@dataclass(frozen=True)
class Calibration:
    """Thresholds as cosine distances in (0, 2), and what they do to the searches that they were found from.

    operating_distance: a search finds somebody up to it. fpir, tpir: at it.
    verification_distance: where the calibrated scale has 0.5; slope: of the scale's logistic, per unit of distance.
    """

    operating_distance: float
    fpir: Rate
    tpir: Rate
    verification_distance: float
    slope: float


def search_gallery(vectors: NDArray[Any], students: NDArray[np.int64], photos: NDArray[np.int64]) -> Searches:
    """Search for every crop among the others, by the nearest one, as the assignment does.

    vectors: (n, d) embeddings; students: (n,); photos: (n,), so that no crop is compared with its own student in the
    same photo: such pairs are nearly copies. Memory grows with n, not with its square.

    Photos of one day are more alike than those of another week, so that mated scores flatter where only one day was
    confirmed. The class's gallery in use also holds crops that were assigned automatically: a search among more crops,
    and among more students, finds somebody more often, a stranger too.
    """
    mated = np.full(len(vectors), -np.inf, np.float32)
    non_mated = mated.copy()
    for start in range(0, len(vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        similarity = cosine_similarity_matrix(vectors[rows], vectors)
        own = students[rows, None] == students
        elsewhere = own & (photos[rows, None] != photos)
        mated[rows] = np.where(elsewhere, similarity, -np.inf).max(axis=1)
        non_mated[rows] = np.where(own, -np.inf, similarity).max(axis=1)
    return Searches(students, mated, non_mated)


def searches_needed(rate: float) -> int:
    """How many searches without an error show with 95 % confidence that the error rate is at most `rate`, in (0, 1).

    299 for 1 %, 59 for 5 %: from (1 - rate)^n <= 0.05, known for small rates as the rule of three.
    """
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-rate))


def operating_threshold(impostor: NDArray[np.float32], fpir: float) -> float:
    """The smallest cosine similarity that at most a share `fpir` of the impostor scores reaches.

    impostor: (n,), at least one; fpir: in [0, 1). It lies just above a score, by what rounding may add to that.
    """
    allowed = int(np.sum(np.arange(1, len(impostor) + 1) / len(impostor) <= fpir))
    place = len(impostor) - 1 - allowed
    return float(np.partition(impostor, place)[place]) + ROUNDING


def fit_logistic(genuine: NDArray[np.float32], impostor: NDArray[np.float32]) -> tuple[float, float]:
    """Midpoint and slope of the logistic that turns a score into the probability that it is genuine.

    genuine: (m,), impostor: (n,) cosine similarities, at least one each. Returns the cosine similarity with probability
    0.5, genuine and impostor scores supposed equally frequent, and the slope there, per unit of similarity.

    Platt, "Probabilistic outputs for support vector machines", 1999: his targets, a little off 0 and 1, keep the slope
    finite for scores that are perfectly separated. The loss is written as in Lin, Lin and Weng, "A note on Platt's
    probabilistic outputs", Machine Learning 2007, which neither overflows nor cancels. Raises CalibrationError where
    genuine scores are not the higher ones.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    m, n = len(genuine), len(impostor)
    # Sorted, so that the sums round alike whatever order the crops came in.
    scores = np.concatenate([np.sort(genuine), np.sort(impostor)]).astype(np.float64)
    targets = np.repeat([(m + 1) / (m + 2), 1 / (n + 2)], [m, n])
    weights = np.repeat([0.5 / m, 0.5 / n], [m, n])
    centre, spread = scores.mean(), scores.std() or 1.0
    standardised = (scores - centre) / spread

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, offset = parameters
        log_odds = slope * standardised + offset
        errors = weights * (expit(log_odds) - targets)
        value = weights @ (np.logaddexp(0, log_odds) - targets * log_odds)
        return float(value), np.array([errors @ standardised, errors.sum()])

    slope, offset = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    midpoint = centre - offset / slope * spread if slope > ROUNDING else math.inf
    if not -1 < midpoint < 1:
        raise CalibrationError(
            "crops of one student are not more alike than crops of different students: correct the confirmed identities"
        )
    return float(midpoint), float(slope / spread)


def calibrate(searches: Searches, fpir: float) -> Calibration:
    """The thresholds that the searches give; fpir: the false-positive identification rate to keep, in (0, 1).

    The upper end of the interval of `fpir` holds although the threshold was chosen on the same searches: above the
    (k+1)-th highest of n independent scores lies a share of Beta(k+1, n-k), whatever their distribution (Wilks,
    "Determination of sample sizes for setting tolerance limits", 1941), which is Clopper and Pearson's upper bound.

    Raises CalibrationError where there are not enough searches, or the confirmed identities contradict each other.
    """
    genuine, impostor = searches.genuine, searches.impostor
    shortages = [
        f"{found} {kind} comparisons, {needed} needed"
        for found, kind, needed in (
            (len(impostor), "impostor", searches_needed(fpir)),
            (len(genuine), "genuine", searches_needed(MISS_RATE)),
        )
        if found < needed
    ]
    if shortages:
        raise CalibrationError(f"not enough data: {'; '.join(shortages)}")
    threshold = operating_threshold(impostor, fpir)
    if threshold >= 1:
        raise CalibrationError(
            "crops that were confirmed as different students look exactly alike: correct the confirmed identities"
        )
    midpoint, slope = fit_logistic(genuine, impostor)
    return Calibration(
        operating_distance=1 - threshold,
        fpir=searches.false_positives(threshold),
        tpir=searches.true_positives(threshold),
        verification_distance=1 - midpoint,
        slope=slope,
    )
