"""What is known of each student's face: a few prototypes instead of every crop."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.faces.clustering import agglomerative_clusters
from pipelines.faces.pooling import pooled

# How many of a student's prototypes that no person has confirmed a crop of count. More than five helped with small faces
# only, more than ten with nothing (on classes made for it, with other seeds than those that results are stated for).
MOST_PROTOTYPES = 10
# A crop of which a person has said whom it shows counts as much as so many that a run has assigned. (Not tuned.)
CONFIRMED_WEIGHT = 2.0
# An unconfirmed prototype with less than this share of the weight of the student's heaviest is dropped: more likely
# somebody else's poor face than another way the student looks. Where it was 0.25, small faces missed a fifth of theirs.
_LEAST_SHARE = 0.05


class Prototypes(NamedTuple):
    """vectors: (m, d) float32 of norm 1; students: (m,) whom each shows, in ascending order."""

    vectors: NDArray[np.float32]
    students: NDArray[np.int64]


def prototypes(
    vectors: NDArray[Any],
    students: NDArray[np.int64],
    weights: NDArray[Any],
    confirmed: NDArray[np.bool_],
    distance_threshold: float,
) -> Prototypes:
    """The prototypes of every student, a few of each: means of crops that are alike.

    vectors: (n, d) of norm 1, the identified crops; students: (n,) whom each shows; weights: (n,) above 0, how good each
    is; confirmed: (n,) whether a person has said so, which counts `CONFIRMED_WEIGHT` times. distance_threshold: cosine
    distance up to which crops of one student share a prototype on average (average linkage).

    A student has one prototype at least, and every confirmed crop is in one. Of those without a confirmed crop outliers
    are dropped, which have little weight beside the student's heaviest, and what is not among the `MOST_PROTOTYPES`
    heaviest. A single portrait is a prototype as it is. The result does not depend on the order of the crops but for
    rounding and exact ties.

    Several templates for one person, as in Lumini and Nanni, "A clustering method for automatic biometric template
    selection", Pattern Recognition 2006.
    """
    found: list[NDArray[np.float32]] = []
    owners: list[int] = []
    counted = weights * np.where(confirmed, CONFIRMED_WEIGHT, 1.0)
    for student in np.unique(students).tolist():
        own = np.flatnonzero(students == student)
        groups = agglomerative_clusters(vectors[own], distance_threshold).labels
        share = np.bincount(groups, counted[own])
        least = max(_LEAST_SHARE * share.max(), np.sort(share)[-MOST_PROTOTYPES:][0])
        kept = (share >= least) | (np.bincount(groups, confirmed[own]) > 0)
        means = pooled(vectors[own], counted[own], groups)[kept]
        found.append(means)
        owners += [student] * len(means)
    dimension = vectors.shape[1] if vectors.ndim == 2 else 0
    return Prototypes(
        np.concatenate([np.empty((0, dimension), np.float32), *found]).astype(np.float32), np.array(owners, np.int64)
    )
