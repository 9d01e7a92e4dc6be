"""Taking the faces that show one person together: which ones, and one vector for all of them, good faces first."""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.faces.similarity import cosine_similarity_matrix, l2_normalise

# In `labels`: in no cluster.
ALONE = -1
# What a face needs to count in full: pixels of the box's shorter side, and sharpness. Beyond these the networks see no
# more. Chosen from what they measure (chips of 64 px, the median of class photos of 40 to 130 px), not from results.
_FULL_SIZE, _FULL_SHARPNESS = 64.0, 0.3
# The worst face still counts a little: else one without landmarks would have no weight at all where it is alone.
_LEAST = 0.05
# A sum of vectors this short is nothing but rounding.
_CANCELLED = 1e-9


def quality_weights(
    size: ArrayLike, sharpness: ArrayLike, confidence: ArrayLike, yaw: ArrayLike
) -> NDArray[np.float64]:
    """How much each face says about whom it shows: (n,) in (0, 1], 1 for a large, sharp, frontal, certain one.

    size: pixels of the box's shorter side; sharpness and yaw (degrees) as `faces.quality` gives them; confidence: the
    detector's, in [0, 1]; each (n,). What is not a number counts as the worst. The product of the four, as pooling by
    the detector's confidence in Ranjan et al., "Crystal loss and quality pooling for unconstrained face verification
    and recognition", 2018, with what else is known of a face.
    """
    parts = (
        np.minimum(np.asarray(size, np.float64), _FULL_SIZE) / _FULL_SIZE,
        np.minimum(np.asarray(sharpness, np.float64), _FULL_SHARPNESS) / _FULL_SHARPNESS,
        np.asarray(confidence, np.float64),
        np.cos(np.radians(np.minimum(np.abs(np.asarray(yaw, np.float64)), 90))),
    )
    return np.prod([np.clip(np.nan_to_num(part, nan=0), _LEAST, 1) for part in parts], axis=0)


def pooled(vectors: NDArray[Any], weights: NDArray[Any], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """One unit vector for each group of faces, their weighted mean: (g, d), group 0 first.

    vectors: (n, d) of norm 1; weights: (n,) above 0; groups: (n,) 0 to g - 1, none of them empty. What differs from
    photo to photo (light, pose, blur) averages out, who it is stays. Where the vectors of a group cancel out, which those
    of one person never do, it is the one of the most weight.
    """
    sums = np.zeros((int(groups.max(initial=-1)) + 1, vectors.shape[1]))
    np.add.at(sums, groups, np.asarray(weights)[:, None] * vectors)
    for group in np.flatnonzero(np.linalg.norm(sums, axis=1) < _CANCELLED).tolist():
        members = np.flatnonzero(groups == group)
        sums[group] = vectors[members[np.argmax(weights[members])]]
    return l2_normalise(sums)


def linked_faces(
    vectors: NDArray[Any],
    weights: NDArray[Any],
    photos: NDArray[np.int64],
    labels: NDArray[np.int64],
    distance_threshold: float,
    margin: float,
) -> NDArray[np.int64]:
    """Which faces of a session are decided about together: (n,) links 0, 1, ... by first appearance.

    vectors: (n, d) of norm 1; weights: (n,) above 0; photos: (n,) ids; labels: (n,) clusters, `ALONE` for a face that
    is in none. Distances are cosine distances, margin a difference of two.

    The faces of a cluster are linked. Where the clustering was forced to put together what does not belong together,
    they come apart again: a face farther than distance_threshold from what the cluster's others have in common, and of
    two faces of one photo the one farther from it, are links of their own. A face in no cluster joins the link that it
    clearly belongs to: within distance_threshold, nearer than any other by `margin`, in none of its photos, and the
    nearest of the faces of its own photo that would join it. No link shows a photo twice, and the result does not depend
    on the order of the faces but for exact ties.
    """
    links = np.arange(len(labels))
    for label in np.unique(labels[labels != ALONE]).tolist():
        members = np.flatnonzero(labels == label)
        nearest_first, distances = _from_their_core(vectors[members], weights[members], distance_threshold)
        together: dict[int, int] = {}
        for face in members[nearest_first][distances <= distance_threshold].tolist():
            together.setdefault(int(photos[face]), face)
        links[list(together.values())] = next(iter(together.values()), 0)

    clustered = np.flatnonzero(labels != ALONE)
    names, groups = np.unique(links[clustered], return_inverse=True)
    shown: dict[int, set[int]] = defaultdict(set)
    for link, photo in zip(groups.tolist(), photos[clustered].tolist(), strict=True):
        shown[link].add(photo)
    alone = np.flatnonzero(labels == ALONE)
    joining: dict[tuple[int, int], tuple[float, int]] = {}
    if len(names) and len(alone):
        similarity = cosine_similarity_matrix(vectors[alone], pooled(vectors[clustered], weights[clustered], groups))
        for face, row in zip(alone.tolist(), similarity, strict=True):
            photo = int(photos[face])
            row[[link for link, photos_of in shown.items() if photo in photos_of]] = -np.inf
            link, best = int(row.argmax()), float(row.max())
            row[link] = -np.inf
            if best >= 1 - distance_threshold and best - row.max() >= margin:
                joining[photo, link] = max(joining.get((photo, link), (best, face)), (best, face))
    for (_, link), (_, face) in joining.items():
        links[face] = names[link]
    _, first, numbers = np.unique(links, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers]


def _from_their_core(
    vectors: NDArray[Any], weights: NDArray[Any], distance_threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Faces by their cosine distance from what most have in common, the nearest first, and these distances.

    That is the weighted mean of the faces within distance_threshold of the one that is most like all others.
    """
    similarity = cosine_similarity_matrix(vectors, vectors).astype(np.float64)
    core = similarity[np.argmax(similarity @ weights)] >= 1 - distance_threshold
    mean = pooled(vectors[core], weights[core], np.zeros(core.sum(), np.int64))
    distances = 1 - (vectors @ mean[0]).astype(np.float64)
    order = np.argsort(distances, kind="stable")
    return order, distances[order]
