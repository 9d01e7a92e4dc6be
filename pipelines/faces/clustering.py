"""Grouping face embeddings into people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.faces.similarity import cosine_similarity_matrix, l2_normalise

# In `cannot_link` and `must_link`: this crop belongs to no group.
FREE = -1
# Crops or clusters that are compared with all others at once: 80 MB of similarities for 20,000 of them.
_BLOCK = 1024
# Rounding makes the distance of equal vectors anything up to this.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Clustering:
    """Who is with whom.

    labels: (n,) int64, 0, 1, ... in the order of first appearance; -1 is noise (DBSCAN only).
    max_clusters_reached: the distance threshold alone would have left more clusters than `max_clusters`, which has
    forced at least one merge beyond it, or could not be met because of known students.
    """

    labels: NDArray[np.int64]
    max_clusters_reached: bool = False


class _Merge(NamedTuple):
    """Cluster `second` becomes part of cluster `first`, each named by a crop of it; height: their mean distance."""

    height: float
    first: int
    second: int


def agglomerative_clusters(
    embeddings: NDArray[Any],
    distance_threshold: float,
    cannot_link: NDArray[np.int64] | None = None,
    must_link: NDArray[np.int64] | None = None,
    max_clusters: int | None = None,
    rejected: Sequence[tuple[int, int]] = (),
) -> Clustering:
    """Average-linkage clustering on cosine distance, where two faces of one photo are never one person.

    embeddings: (n, d), not zero. distance_threshold: clusters merge while their mean cosine distance (0 to 2) is at most
    this; below 0 none do, not even equal vectors. cannot_link: (n,) ids of photos; crops with the same id never share a
    cluster, nor do the clusters they have joined. must_link: (n,) ids of known students; crops with the same id start
    merged (even two of one photo: then a person has said so), crops with different ids never share a cluster. -1 in
    either means free.
    rejected: pairs of a crop's index and the id of a known student (in must_link) whom it does not show; the crop never
    shares a cluster with that student's, nor do the clusters it has joined.
    max_clusters: merging goes on above the threshold until so many clusters are left. Where the photos allow no further
    merge, and only then, they are disregarded; known students never merge with each other or with crops that are not
    theirs, so that more clusters may be left.

    The partition does not depend on the order of the crops. Exact but for rounding (1e-6 of a distance), with O(n d)
    memory and no matrix of distances: since the vectors have norm 1, the mean distance of two clusters is 1 minus the
    scalar product of their mean vectors. Usually O(n^2 d) time: 20,000 crops of 512 numbers in 12 to 18 s of CPU time.
    Slower where clusters take in thousands of crops one after another, each nearest to the centre: 20,000 crops of ten
    people and very unequal quality took 80 s, 5,000 around one centre 25 s.

    Sokal and Michener 1958 (UPGMA), hard cannot-links as in Davidson and Ravi, "Agglomerative hierarchical clustering
    with constraints", PKDD 2005: on class photos they did more for the result than any tuning of the threshold. All
    pairs of reciprocal nearest neighbours merge at once (de Rham, "La classification hiérarchique ascendante selon la
    méthode des voisins réciproques", Cahiers de l'analyse des données 5, 1980), which gives the clusters of one merge at
    a time wherever a merged cluster is never nearer to a third than its nearer part was (Bruynooghe, ibid. 3, 1978: the
    reducibility). That holds for means of distances, and for cannot-links too, since a mean with an infinite distance
    is infinite. Neighbours are looked for again only where it can matter (Müllner, "Modern hierarchical, agglomerative
    clustering algorithms", 2011, generic algorithm).
    """
    n = len(embeddings)
    photos = np.full(n, FREE) if cannot_link is None else np.asarray(cannot_link)
    students = np.full(n, FREE) if must_link is None else np.asarray(must_link)
    unit = l2_normalise(embeddings)
    # A student without a crop here is in nobody's way.
    known = set(students.tolist()) - {FREE}
    not_shown: list[list[int]] = [[] for _ in range(n)]
    for crop, student in sorted({*rejected}):
        if student in known:
            not_shown[crop].append(student)
    order = _canonical_order(unit, photos, students, not_shown)
    unit, photos, students = unit[order], photos[order], students[order]
    apart = [(crop, student) for crop, i in enumerate(order.tolist()) for student in not_shown[i]]

    clusters = _initial_clusters(students)
    # What merges, in ascending order as far as it matters where to stop.
    merges = _merges_of_equal_crops(unit, photos, students)
    merges += _Linkage(unit, _joined(clusters, merges), photos, students, apart).merges(distance_threshold)
    taken = sum(merge.height <= distance_threshold for merge in merges)
    count = len(set(clusters.tolist()))
    reached = max_clusters is not None and count - taken > max_clusters
    if max_clusters is not None and reached:
        for links in (photos, np.full(n, FREE)):
            if count - len(merges) > max_clusters:
                linkage = _Linkage(unit, _joined(clusters, merges), links, students, apart)
                merges += _ascending(linkage.merges(np.inf))
        taken = min(count - max_clusters, len(merges))

    labels = np.empty(n, np.int64)
    labels[order] = _joined(clusters, merges[:taken])
    return Clustering(_numbered_by_first_appearance(labels), reached)


def dbscan_clusters(embeddings: NDArray[Any], distance_threshold: float, min_samples: int = 2) -> Clustering:
    """Density clustering on cosine distance; crops in no dense place are noise (label -1).

    embeddings: (n, d), not zero. distance_threshold: cosine distance up to which crops are neighbours, above 0.
    min_samples: neighbours (the crop included) that make a crop dense. Two faces of one photo may share a cluster:
    chains of neighbours have no constrained form that keeps what DBSCAN is. The partition does not depend on the order
    of the crops. O(n^2 d) time; memory as the crops have neighbours, some 50 bytes for each.
    Ester et al., "A density-based algorithm for discovering clusters", KDD 1996.
    """
    from scipy.sparse import csr_array
    from sklearn.cluster import DBSCAN

    n = len(embeddings)
    if n == 0:
        return Clustering(np.zeros(0, np.int64))
    unit = l2_normalise(embeddings)
    free = np.full(n, FREE)
    order = _canonical_order(unit, free, free, [[]] * n)
    unit = unit[order]
    neighbours = [
        np.flatnonzero(near)
        for start in range(0, n, _BLOCK)
        for near in 1 - cosine_similarity_matrix(unit[start : start + _BLOCK], unit) <= distance_threshold
    ]
    ends = np.cumsum([0, *map(len, neighbours)])
    # A graph of neighbours, all of them at the same distance.
    graph = csr_array((np.ones(ends[-1], np.float32), np.concatenate(neighbours), ends), shape=(n, n))
    labels = np.empty(n, np.int64)
    labels[order] = DBSCAN(eps=1, min_samples=min_samples, metric="precomputed").fit(graph).labels_
    return Clustering(_numbered_by_first_appearance(labels))


def _canonical_order(
    unit: NDArray[np.float32],
    photos: NDArray[np.int64],
    students: NDArray[np.int64],
    not_shown: Sequence[Sequence[int]],
) -> NDArray[np.int64]:
    """An order that depends on the crops' content alone, so that ties and rounding fall the same way every time."""
    keys = [(row.tobytes(), int(photos[i]), int(students[i]), not_shown[i]) for i, row in enumerate(unit)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _initial_clusters(students: NDArray[np.int64]) -> NDArray[np.int64]:
    """The crops of one known student together, every other crop alone: (n,) the first crop of each crop's cluster."""
    first: dict[int, int] = {}
    return np.array(
        [i if student == FREE else first.setdefault(student, i) for i, student in enumerate(students.tolist())],
        np.int64,
    )


def _merges_of_equal_crops(
    unit: NDArray[np.float32], photos: NDArray[np.int64], students: NDArray[np.int64]
) -> list[_Merge]:
    """Crops without a student whose vectors are equal, each with the first ones among which its photo is not yet.

    Ties are the rule among equal vectors, and one merge at a time would take as many rounds. unit: (n, d), equal rows
    side by side.
    """
    other = np.any(unit[1:] != unit[:-1], axis=1)
    vectors = np.concatenate([np.zeros(min(1, len(unit)), np.int64), np.cumsum(other)])
    seen: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], int] = {}
    merges = []
    for crop in np.flatnonzero(students == FREE).tolist():
        vector, photo = int(vectors[crop]), int(photos[crop])
        # The photo's second crop of this vector cannot be where the first one is, and goes to the second cluster.
        owner = first.setdefault((vector, seen[vector, photo]), crop)
        if photo != FREE:
            seen[vector, photo] += 1
        if owner != crop:
            merges.append(_Merge(0.0, owner, crop))
    return merges


class _Linkage:
    """Clusters side by side, row i of every array for cluster i, each with the nearest one that it may merge with.

    means: (m, d) mean vectors, whose scalar products are mean cosine similarities. photos: (m, photos) sparse, not 0
    where a cluster has a crop of a photo; a crop and a student whom it does not show are in a photo of their own. named: has a known student's crop. crop: one of its crops, as its name.
    nearest: the row of the nearest cluster as far as known. shortest: the distance to it where `fresh`; elsewhere, since
    others have merged or nobody has looked yet, a lower bound. grown: is the outcome of a merge, and not fresh.
    """

    def __init__(
        self,
        unit: NDArray[np.float32],
        clusters: NDArray[np.int64],
        photos: NDArray[np.int64],
        students: NDArray[np.int64],
        apart: Sequence[tuple[int, int]],
    ) -> None:
        """The clusters before any merge, and what may not merge.

        unit: (n, d); clusters: (n,) the clusters so far, each named by a crop; photos, students: (n,) ids or FREE; apart:
        pairs of a crop's index and a student whom it does not show, of whom there are crops.
        """
        from scipy.sparse import csr_array

        self.crop, row, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
        m, n = len(self.crop), len(unit)
        self.sizes = sizes.astype(np.float64)
        shares = csr_array((1 / self.sizes[row], (row, np.arange(n))), shape=(m, n))
        self.means = (shares @ unit).astype(np.float32)
        ids, photo = np.unique(photos, return_inverse=True)
        shown = np.flatnonzero(photos != FREE)
        # Whatever a student's crop: they are all in one cluster.
        first = {student: i for i, student in enumerate(students.tolist())}
        pairs = np.array([(row[crop], row[first[student]]) for crop, student in apart], np.int64).reshape(-1, 2)
        rows = np.concatenate([row[shown], pairs.ravel()])
        columns = np.concatenate([photo[shown], len(ids) + np.repeat(np.arange(len(pairs)), 2)])
        self.photos = csr_array((np.ones(len(rows), np.float32), (rows, columns)), (m, len(ids) + len(pairs)))
        self.named = np.bincount(row, students != FREE, m) > 0
        self.nearest = np.arange(m)
        self.shortest = np.zeros(m)
        self.fresh = np.zeros(m, bool)
        self.grown = np.zeros(m, bool)

    def merges(self, cutoff: float) -> list[_Merge]:
        """Merge all that the constraints allow up to this mean distance; returns what merged in the order it did so.

        A cluster comes after those it was made of; otherwise the order is not that of the heights.
        """
        merges: list[_Merge] = []
        while len(self.crop) > 1:
            self._look_for_neighbours()
            # Nobody comes nearer by merging, so what has no neighbour within reach never will have one.
            finished = (self.shortest > cutoff) | (self.shortest == np.inf)
            firsts, seconds = self._reciprocal_neighbours(self.fresh & ~finished)
            finished[seconds] = False  # where rounding has made the same distance longer seen from there
            crops = zip(self.crop[firsts].tolist(), self.crop[seconds].tolist(), strict=True)
            heights = self.shortest[firsts].tolist()
            merges += [_Merge(height, *pair) for height, pair in zip(heights, crops, strict=True)]
            self._merge(firsts, seconds, finished)
        return merges

    def _look_for_neighbours(self) -> None:
        """Bring up to date the rows that the next merges wait for; at most a block, those with the lowest bounds first.

        They are the new clusters, and those nearest neighbours that may have somebody nearer themselves. All others
        can wait: crops around a growing cluster would be looked at again after each of its merges. With 20,000 crops
        of very unequal quality this was one look in six.
        """
        waiting = self.grown.copy()
        asked = self.nearest[self.fresh]
        waiting[asked[self.shortest[asked] < self.shortest[self.fresh]]] = True
        rows = np.flatnonzero(waiting & ~self.fresh)
        if not len(rows):
            rows = np.flatnonzero(~self.fresh)
        if not len(rows):
            return
        rows = rows[np.argsort(self.shortest[rows], kind="stable")[:_BLOCK]]
        similarities = self.means[rows] @ self.means.T
        similarities[np.arange(len(rows)), rows] = -np.inf
        together = (self.photos[rows] @ self.photos.T).tocoo()
        similarities[together.row, together.col] = -np.inf
        similarities[np.ix_(self.named[rows], self.named)] = -np.inf
        nearest = similarities.argmax(axis=1)
        distances = 1 - similarities[np.arange(len(rows)), nearest].astype(np.float64)
        self.nearest[rows] = nearest
        self.shortest[rows] = np.where(distances < _ROUNDING, 0, distances)
        self.fresh[rows] = True
        self.grown[rows] = False

    def _reciprocal_neighbours(self, candidates: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Disjoint pairs of a candidate and its nearest neighbour, to which nothing is nearer than the candidate.

        A lower bound is enough to say so of the neighbour. The nearest pair of all is always among them, so that there
        is one wherever all rows are up to date, however the distances are rounded.
        """
        rows = np.flatnonzero(candidates & (self.shortest[self.nearest] >= self.shortest))
        rows = rows[np.argsort(self.shortest[rows], kind="stable")]
        taken: set[int] = set()
        firsts, seconds = [], []
        for row, other in zip(rows.tolist(), self.nearest[rows].tolist(), strict=True):
            if row not in taken and other not in taken:
                taken |= {row, other}
                firsts.append(row)
                seconds.append(other)
        return np.array(firsts, np.int64), np.array(seconds, np.int64)

    def _merge(self, firsts: NDArray[np.int64], seconds: NDArray[np.int64], finished: NDArray[np.bool_]) -> None:
        """Put the clusters `seconds` into `firsts`, pair by pair, and drop the rows of `seconds` and of the finished."""
        from scipy.sparse import csr_array

        rows = np.arange(len(self.crop))
        sizes = self.sizes[firsts] + self.sizes[seconds]
        sums = self.sizes[firsts, None] * self.means[firsts] + self.sizes[seconds, None] * self.means[seconds]
        self.means[firsts] = sums / sizes[:, None]
        self.sizes[firsts] = sizes
        self.named[firsts] |= self.named[seconds]
        # Nothing was nearer to either part, so the height of the merge stays as the new cluster's lower bound.
        self.grown[firsts] = True
        merged = rows.copy()
        merged[seconds] = firsts
        self.fresh &= ~np.isin(self.nearest, np.concatenate([firsts, seconds])) & ~finished[self.nearest]
        self.nearest = np.where(finished[self.nearest], rows, merged[self.nearest])

        kept = ~finished
        kept[seconds] = False
        m = int(kept.sum())
        # The last rows fill the gaps: the order does not matter, and copying all means took longer than comparing.
        gaps, last = np.flatnonzero(~kept[:m]), m + np.flatnonzero(kept[m:])
        place = rows.copy()
        place[last] = gaps
        into = csr_array(
            (np.ones((~finished).sum(), np.float32), (place[merged[~finished]], rows[~finished])), (m, len(rows))
        )
        self.photos = into @ self.photos
        self.nearest = place[self.nearest]
        for name in ("crop", "sizes", "means", "named", "nearest", "shortest", "fresh", "grown"):
            values = getattr(self, name)
            values[gaps] = values[last]
            setattr(self, name, values[:m])


def _ascending(merges: list[_Merge]) -> list[_Merge]:
    """In the order in which one merge at a time makes them: by height, and a cluster after those it was made of."""
    highest: dict[int, float] = {}
    heights = []
    for height, first, second in merges:
        # Rounding may let a cluster seem lower than its parts.
        highest[first] = max(height, highest.get(first, 0), highest.get(second, 0))
        heights.append(highest[first])
    return [merges[i] for i in np.argsort(heights, kind="stable")]


def _joined(clusters: NDArray[np.int64], merges: list[_Merge]) -> NDArray[np.int64]:
    """The clusters, each named by a crop of it, after these merges."""
    name = np.arange(len(clusters))
    for _, first, second in reversed(merges):
        name[second] = name[first]
    return name[clusters]


def _numbered_by_first_appearance(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same partition with labels 0, 1, ... in the order in which they first occur; -1 stays."""
    number: dict[int, int] = {-1: -1}
    for label in labels.tolist():
        number.setdefault(label, len(number) - 1)
    return np.array([number[label] for label in labels.tolist()], np.int64)
