"""Cosine similarity of face embeddings, and the scale on which people see it."""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# How far a stored vector's norm may be from 1; float32 rounding stays far below.
NORM_TOLERANCE = 1e-3
# How far rounding takes the sum of squares of a normalised float32 vector from 1.
UNIT_ROUNDING = 2e-6


def l2_normalise(vectors: ArrayLike) -> NDArray[np.float32]:
    """The vectors with the same direction and norm 1.

    vectors: (..., d). Returns float32 of the same shape. Raises ValueError when one is zero or not finite.
    """
    values = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.isfinite(values).all() or (norms == 0).any():
        raise ValueError("An embedding is zero or not finite: compute it again.")
    return (values / norms).astype(np.float32)


def defects(vectors: NDArray[Any], dimension: int) -> dict[int, str]:
    """What is wrong with stored vectors, in plain words by row; sound rows are left out.

    vectors: (n, d). A sound vector has the given dimension, finite numbers and norm 1.
    """
    if vectors.shape[1] != dimension:
        return dict.fromkeys(range(len(vectors)), f"it has {vectors.shape[1]} numbers, not {dimension}")
    finite = np.isfinite(vectors).all(axis=1)
    norms = np.linalg.norm(np.where(finite[:, None], vectors, 0), axis=1)
    found = {int(row): "a number in it is not finite" for row in np.flatnonzero(~finite)}
    found |= {
        int(row): f"its norm is {norms[row]:.4g}, not 1"
        for row in np.flatnonzero(finite & (np.abs(norms - 1) > NORM_TOLERANCE))
    }
    return dict(sorted(found.items()))


def cosine_similarity_matrix(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """The cosine of the angle between every vector of `a` and every one of `b`.

    a: (n, d); b: (m, d); they need not be normalised. Returns (n, m) float32 in [-1, 1]. Cosine distance is
    1 minus it. Raises ValueError when a vector is zero or not finite.
    """
    product = _unit_rows(a) @ _unit_rows(b).T
    return np.clip(product, -1, 1, out=product)


def _unit_rows(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """The normalised rows; those that are so already are not computed again, which took longer than the product."""
    values = np.asarray(vectors)
    if values.dtype != np.float32:
        return l2_normalise(values)
    others = ~(np.abs(np.einsum("ij,ij->i", values, values) - 1) <= UNIT_ROUNDING)
    if others.any():
        values = values.copy()
        values[others] = l2_normalise(values[others])
    return values


def calibrated_similarity(cosine_distance: ArrayLike, threshold: float, slope: float | None = None) -> Any:
    """Similarity on the scale that people see and set: 0.5 is the model's verification threshold, 0 and 1 the ends.

    cosine_distance: number or array in [0, 2]; threshold: a cosine distance above 0; slope: per unit of distance,
    by default ln(99) / threshold, with which distance 0 gives 0.99. Returns float64 of the same shape.
    A logistic, as in Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    from scipy.special import expit

    return expit(_slope(threshold, slope) * (threshold - np.asarray(cosine_distance, np.float64)))


def cosine_distance_from_calibrated(similarity: ArrayLike, threshold: float, slope: float | None = None) -> Any:
    """The inverse of `calibrated_similarity`: the cosine distance that a similarity strictly between 0 and 1 stands for.

    Similarities above that of distance 0 (0.99 by default) give a negative distance, which nothing reaches.
    Raises ValueError outside (0, 1).
    """
    from scipy.special import logit

    values = np.asarray(similarity, np.float64)
    if not ((values > 0) & (values < 1)).all():
        raise ValueError("A similarity must lie between 0 and 1, both excluded.")
    return threshold - logit(values) / _slope(threshold, slope)


def distance_for(
    similarity: float, scale: Literal["calibrated", "cosine"], threshold: float, slope: float | None = None
) -> float:
    """The cosine distance, at most 2, up to which two faces have at least this similarity.

    similarity: in [0, 1] on the calibrated scale, in [-1, 1] as a cosine; ValueError outside. threshold: the model's
    verification threshold, a cosine distance above 0, and slope, as in `calibrated_similarity`; the cosine scale does
    not need them. On the calibrated scale 0 is met at every distance (2), and what not even distance 0 meets gives a
    negative distance: above 0.99 by the default slope, and 1, which the scale never reaches, -inf.
    """
    lowest = 0 if scale == "calibrated" else -1
    if not lowest <= similarity <= 1:
        raise ValueError(f"A {scale} similarity must lie between {lowest} and 1, not at {similarity}.")
    if scale == "cosine":
        return 1 - similarity
    if similarity in {0, 1}:
        return 2.0 if similarity == 0 else -math.inf
    # A similarity near 0 gives more than 2, the greatest distance there is.
    return min(2.0, float(cosine_distance_from_calibrated(similarity, threshold, slope)))


def _slope(threshold: float, slope: float | None) -> float:
    if threshold <= 0:
        raise ValueError("A verification threshold must be above 0.")
    return math.log(99) / threshold if slope is None else slope
