"""Grouping face embeddings into people."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.faces.similarity import cosine_similarity_matrix

# In `cannot_link` and `must_link`: this crop belongs to no group.
FREE = -1


@dataclass(frozen=True)
class Clustering:
    """Who is with whom.

    labels: (n,) int64, 0, 1, ... in the order of first appearance; -1 is noise (DBSCAN only).
    max_clusters_reached: the distance threshold alone would have left more clusters than `max_clusters`, which has
    forced at least one merge beyond it, or could not be met because of the constraints.
    """

    labels: NDArray[np.int64]
    max_clusters_reached: bool = False


def agglomerative_clusters(
    embeddings: NDArray[Any],
    distance_threshold: float,
    cannot_link: NDArray[np.int64] | None = None,
    must_link: NDArray[np.int64] | None = None,
    max_clusters: int | None = None,
) -> Clustering:
    """Average-linkage clustering on cosine distance, where two faces of one photo are never one person.

    embeddings: (n, d), not zero. distance_threshold: clusters merge while their mean cosine distance (0 to 2) is at most
    this. cannot_link: (n,) ids of photos; crops with the same id never share a cluster, nor do the clusters they have
    joined. must_link: (n,) ids of known students; crops with the same id start merged (even two of one photo: then a
    person has said so), crops with different ids never share a cluster. -1 in either means free.
    max_clusters: merging goes on above the threshold until so many clusters are left, or more where the constraints
    allow no further merge.

    The partition does not depend on the order of the crops. O(n^2) memory, 8 n^2 bytes and half as much again at the
    start, and usually O(n^2) time: 3000 crops in 1 to 4 s.
    Sokal and Michener 1958 (UPGMA) with the Lance-Williams update 1967 and cached nearest neighbours (Müllner, "Modern
    hierarchical, agglomerative clustering algorithms", 2011, generic algorithm: with constraints a
    nearest-neighbour chain is not valid); hard cannot-links as in Davidson and Ravi, "Agglomerative hierarchical
    clustering with constraints", PKDD 2005. On class photos they did more for the result than any tuning of the
    threshold.
    """
    n = len(embeddings)
    photos = np.full(n, FREE) if cannot_link is None else np.asarray(cannot_link)
    students = np.full(n, FREE) if must_link is None else np.asarray(must_link)
    order = _canonical_order(embeddings, photos, students)
    embeddings, photos, students = embeddings[order], photos[order], students[order]

    members = _initial_clusters(students)
    distances, sizes = _linkage(embeddings, photos, students, members)
    clusters, reached = len(members), False
    nearest = distances.argmin(axis=1) if n else np.zeros(0, np.int64)
    shortest = distances[np.arange(clusters), nearest]
    while clusters > 1:
        first = int(shortest.argmin())
        second = int(nearest[first])
        if shortest[first] > distance_threshold:
            if max_clusters is None or clusters <= max_clusters:
                break
            reached = True
            if shortest[first] == np.inf:
                break
        _merge(distances, sizes, first, second)
        members[first] += members[second]
        members[second] = []
        clusters -= 1
        # A merged cluster is never nearer to a third than its nearer part was, so only these rows can have changed.
        stale = np.flatnonzero((nearest == first) | (nearest == second))
        nearest[stale] = first
        farther = stale[distances[stale, first] > shortest[stale]]
        nearest[farther] = distances[farther].argmin(axis=1)
        shortest[stale] = distances[stale, nearest[stale]]
        shortest[second] = np.inf

    labels = np.empty(n, np.int64)
    for label, crops in enumerate(members):
        labels[order[crops]] = label
    return Clustering(_numbered_by_first_appearance(labels), reached)


def dbscan_clusters(embeddings: NDArray[Any], distance_threshold: float, min_samples: int = 2) -> Clustering:
    """Density clustering on cosine distance; crops in no dense place are noise (label -1).

    embeddings: (n, d), not zero. distance_threshold: cosine distance up to which crops are neighbours, above 0.
    min_samples: neighbours (the crop included) that make a crop dense. Two faces of one photo may share a cluster:
    chains of neighbours have no constrained form that keeps what DBSCAN is. The partition does not depend on the order
    of the crops. Ester et al., "A density-based algorithm for discovering clusters", KDD 1996.
    """
    from sklearn.cluster import DBSCAN

    n = len(embeddings)
    if n == 0:
        return Clustering(np.zeros(0, np.int64))
    free = np.full(n, FREE)
    order = _canonical_order(embeddings, free, free)
    distances = 1 - cosine_similarity_matrix(embeddings[order], embeddings[order])
    labels = np.empty(n, np.int64)
    labels[order] = DBSCAN(eps=distance_threshold, min_samples=min_samples, metric="precomputed").fit(distances).labels_
    return Clustering(_numbered_by_first_appearance(labels))


def _canonical_order(
    embeddings: NDArray[Any], photos: NDArray[np.int64], students: NDArray[np.int64]
) -> NDArray[np.int64]:
    """An order that depends on the crops' content alone, so that ties and rounding fall the same way every time."""
    keys = [(row.tobytes(), int(photos[i]), int(students[i])) for i, row in enumerate(embeddings)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _initial_clusters(students: NDArray[np.int64]) -> list[list[int]]:
    """The crops of one known student together, every other crop alone, in the order of their first crops."""
    clusters: dict[tuple[str, int], list[int]] = {}
    for index, student in enumerate(students):
        key = ("crop", index) if student == FREE else ("student", int(student))
        clusters.setdefault(key, []).append(index)
    return list(clusters.values())


def _linkage(
    embeddings: NDArray[Any], photos: NDArray[np.int64], students: NDArray[np.int64], members: list[list[int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean cosine distances between the initial clusters, infinite where they may not merge, and the clusters' sizes."""
    distances = (1 - cosine_similarity_matrix(embeddings, embeddings)).astype(np.float64)
    distances[(photos[:, None] == photos) & (photos != FREE)] = np.inf
    distances[(students[:, None] != students) & (students[:, None] != FREE) & (students != FREE)] = np.inf
    sizes = np.array([len(crops) for crops in members], np.float64)
    if len(members) < len(embeddings):
        flat = np.concatenate(members)
        starts = (np.cumsum(sizes) - sizes).astype(np.int64)
        distances = distances[np.ix_(flat, flat)]
        distances = np.add.reduceat(np.add.reduceat(distances, starts, axis=0), starts, axis=1)
        distances /= sizes[:, None] * sizes
    np.fill_diagonal(distances, np.inf)
    return distances, sizes


def _merge(distances: NDArray[np.float64], sizes: NDArray[np.float64], first: int, second: int) -> None:
    """Put cluster `second` into `first`; infinite distances are inherited, since a mean with one is infinite."""
    size = sizes[first] + sizes[second]
    row = (sizes[first] * distances[first] + sizes[second] * distances[second]) / size
    row[first] = np.inf
    distances[first] = distances[:, first] = row
    distances[second] = distances[:, second] = np.inf
    sizes[first] = size


def _numbered_by_first_appearance(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same partition with labels 0, 1, ... in the order in which they first occur; -1 stays."""
    number: dict[int, int] = {-1: -1}
    for label in labels.tolist():
        number.setdefault(label, len(number) - 1)
    return np.array([number[label] for label in labels.tolist()], np.int64)
