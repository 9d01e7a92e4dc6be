import time
import tracemalloc
from functools import cache
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.faces import clustering as clustering_module
from pipelines.faces.clustering import _ascending, _Merge, agglomerative_clusters, dbscan_clusters
from pipelines.faces.similarity import l2_normalise

# Below this, distances count as equal: it is what rounding makes of float32 vectors.
ROUNDING = 1e-6


def made_people(people: int, crops_each: int, seed: int = 0, spread: float = 0.05, dimension: int = 32) -> np.ndarray:
    """Vectors around one random direction per person, people one after the other."""
    rng = np.random.default_rng(seed)
    centres = l2_normalise(rng.normal(size=(people, dimension)))
    return l2_normalise(
        np.repeat(centres, crops_each, axis=0) + rng.normal(0, spread, (people * crops_each, dimension))
    )


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist()) - {-1}}


@st.composite
def crops(draw, most: int = 14):
    """Few dimensions and few distinct values, so that ties, duplicates and conflicts do occur."""
    n = draw(st.integers(1, most))
    values = draw(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=n, max_size=n))
    ids = st.lists(st.integers(-1, 4), min_size=n, max_size=n)
    photos, students = draw(ids), draw(st.just([-1] * n) | ids)
    rejected = draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, 4)), max_size=6))
    return (
        np.array(values, float) + np.array([0.5, 0.1, 0.2]),
        np.array(photos),
        np.array(students),
        draw(st.floats(0, 0.6)),
        draw(st.none() | st.integers(1, n)),
        # Nobody is confirmed as a student whom they were said not to be.
        [(crop, student) for crop, student in rejected if students[crop] != student],
    )


class OneMergeAtATime:
    """Average linkage by its definition: the nearest pair that may merge, again and again, by brute force."""

    def __init__(self, embeddings, threshold, photos, students, bound=None, rejected=()):
        self.rejected = set(rejected)
        unit = l2_normalise(embeddings).astype(float)
        self.distances = 1 - unit @ unit.T
        self.photos, self.students = np.asarray(photos), np.asarray(students)
        self.threshold, self.bound = threshold, len(unit) if bound is None else bound

    def outcomes(self) -> set[tuple[frozenset[frozenset[int]], bool]]:
        """All (partition, bound reached) that it can come to, whichever of equally near pairs merge first."""

        @cache
        def within_threshold(clusters):
            distance, pairs = self.nearest(clusters, with_photos=True)
            # At the very threshold rounding decides.
            ends = {clusters} if distance > self.threshold - ROUNDING else set()
            if distance <= self.threshold + ROUNDING:
                ends = ends.union(*(within_threshold(merged) for merged in pairs))
            return ends

        @cache
        def down_to_bound(clusters):
            if len(clusters) > self.bound:
                for with_photos in (True, False):
                    if pairs := self.nearest(clusters, with_photos)[1]:
                        return set().union(*(down_to_bound(merged) for merged in pairs))
            return {clusters}

        return {
            (end, len(clusters) > self.bound)
            for clusters in within_threshold(self.start())
            for end in down_to_bound(clusters)
        }

    def start(self):
        crops_of: dict[tuple[int, int], set[int]] = {}
        for i, student in enumerate(self.students.tolist()):
            crops_of.setdefault((student, i if student == -1 else -1), set()).add(i)
        return frozenset(map(frozenset, crops_of.values()))

    def nearest(self, clusters, with_photos: bool):
        """The least mean distance of two clusters that may merge, and what becomes of merging those that have it."""
        found = []
        for a, b in combinations(clusters, 2):
            shared = (set(self.photos[[*a]].tolist()) & set(self.photos[[*b]].tolist())) - {-1}
            named = set(self.students[[*a, *b]].tolist()) - {-1}
            not_shown = {student for i, student in self.rejected if i in a | b}
            if len(named) < 2 and not named & not_shown and not (with_photos and shared):
                found.append((self.distances[np.ix_([*a], [*b])].mean(), clusters - {a, b} | {a | b}))
        least = min((distance for distance, _ in found), default=np.inf)
        return least, [merged for distance, merged in found if distance <= least + ROUNDING]


def outcome(clustering) -> tuple[frozenset[frozenset[int]], bool]:
    return frozenset(partition(clustering.labels)), clustering.max_clusters_reached


class TestAgglomerative:
    def test_people_come_out_as_clusters_numbered_by_first_appearance(self):
        clustering = agglomerative_clusters(made_people(5, 4), 0.3)
        np.testing.assert_array_equal(clustering.labels, np.repeat(np.arange(5), 4))
        assert not clustering.max_clusters_reached

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 10_000), n=st.integers(2, 40), threshold=st.floats(0.05, 1.5))
    def test_without_constraints_equals_scipy(self, seed, n, threshold):
        from scipy.cluster.hierarchy import fcluster, linkage

        vectors = l2_normalise(np.random.default_rng(seed).normal(size=(n, 6)))
        expected = fcluster(linkage(vectors.astype(np.float64), "average", metric="cosine"), threshold, "distance")
        assert partition(agglomerative_clusters(vectors, threshold).labels) == partition(expected)

    @settings(max_examples=300, deadline=None)
    @given(crops())
    def test_constraints_hold(self, case):
        embeddings, photos, students, threshold, bound, rejected = case
        clustering = agglomerative_clusters(embeddings, threshold, photos, students, bound, rejected)
        for cluster in partition(clustering.labels):
            named = {int(students[i]) for i in cluster} - {-1}
            assert len(named) <= 1
            assert not named & {student for i, student in rejected if i in cluster}
            # Two crops of one photo are together only where both are known to be one student, or the bound leaves no
            # other way.
            for i, j in combinations(cluster, 2):
                together = photos[i] == photos[j] != -1 and not students[i] == students[j] != -1
                assert not together or clustering.max_clusters_reached
        for student in set(students.tolist()) - {-1}:
            assert len(set(clustering.labels[students == student].tolist())) == 1

    @settings(max_examples=300, deadline=None)
    @given(crops(), st.randoms(use_true_random=False))
    def test_the_order_of_the_crops_does_not_matter(self, case, random):
        embeddings, photos, students, threshold, bound, rejected = case
        # Crops alike in every respect may swap places, so the partition is compared by content.
        order = np.array(random.sample(range(len(embeddings)), len(embeddings)))

        def content(order: np.ndarray) -> tuple[list, bool]:
            e, p, s = embeddings[order], photos[order], students[order]
            r = [(place, student) for place, i in enumerate(order) for crop, student in rejected if crop == i]
            clustering = agglomerative_clusters(e, threshold, p, s, bound, r)
            return sorted(
                sorted(
                    (*e[i].tolist(), int(p[i]), int(s[i]), sorted({b for a, b in r if a == i and b in s}))
                    for i in cluster
                )
                for cluster in partition(clustering.labels)
            ), clustering.max_clusters_reached

        assert content(order) == content(np.arange(len(embeddings)))

    @settings(max_examples=200, deadline=None)
    @given(crops())
    def test_no_merge_is_left_undone_and_labels_count_up(self, case):
        """What remains apart is farther than the threshold or forbidden."""
        embeddings, photos, students, threshold, bound, rejected = case
        clustering = agglomerative_clusters(embeddings, threshold, photos, students, bound, rejected)
        labels = clustering.labels
        first_seen = list(dict.fromkeys(labels.tolist()))
        assert first_seen == list(range(len(first_seen)))
        unit = l2_normalise(embeddings).astype(float)
        clusters = [sorted(c) for c in partition(labels)]
        for a, one in enumerate(clusters):
            for other in clusters[a + 1 :]:
                shared = (set(photos[one].tolist()) & set(photos[other].tolist())) - {-1}
                named = set(students[[*one, *other]].tolist()) - {-1}
                not_shown = {student for i, student in rejected if i in {*one, *other}}
                if shared or len(named) > 1 or named & not_shown:
                    continue
                assert bound is None or len(clusters) <= bound
                assert (1 - unit[one] @ unit[other].T).mean() > threshold - 1e-6

    @settings(max_examples=300, deadline=None)
    @given(crops(most=7), st.sampled_from([1, 2, 1024]))
    def test_is_what_one_merge_at_a_time_gives(self, case, block):
        """Merging all reciprocal neighbours at once, and looking at few rows at a time, changes nothing but ties."""
        with patch.object(clustering_module, "_BLOCK", block):
            assert (
                outcome(agglomerative_clusters(case[0], case[3], *case[1:3], *case[4:]))
                in OneMergeAtATime(case[0], case[3], *case[1:3], *case[4:]).outcomes()
            )

    @pytest.mark.parametrize("bound", [None, 12, 5, 1])
    @pytest.mark.parametrize("seed", range(6))
    def test_is_what_one_merge_at_a_time_gives_of_more_crops_without_ties(self, seed, bound):
        rng = np.random.default_rng(seed)
        vectors = made_people(8, 6, seed, spread=0.2, dimension=16)
        photos = rng.integers(-1, 9, len(vectors))
        students = np.where(rng.random(len(vectors)) < 0.2, rng.integers(0, 3, len(vectors)), -1)
        expected = OneMergeAtATime(vectors, 0.5, photos, students, bound).outcomes()
        assert len(expected) == 1
        with patch.object(clustering_module, "_BLOCK", 5):
            assert {outcome(agglomerative_clusters(vectors, 0.5, photos, students, bound))} == expected

    def test_crops_of_unequal_quality_around_one_centre_are_what_one_merge_at_a_time_gives(self):
        """All are nearest to the best one, so nearly every merge outdates the neighbour of every other crop."""
        rng = np.random.default_rng(0)
        noise = l2_normalise(rng.normal(size=(40, 64))) * np.linspace(0.1, 1.5, 40)[:, None]
        vectors = np.vstack([np.eye(64)[i] + noise[i::2] for i in (0, 1)])
        free = np.full(40, -1)
        for bound in (None, 2):
            with patch.object(clustering_module, "_BLOCK", 4):
                found = outcome(agglomerative_clusters(vectors, 0.5, max_clusters=bound))
            assert {found} == OneMergeAtATime(vectors, 0.5, free, free, bound).outcomes()

    def test_two_faces_of_one_photo_stay_apart_with_everything_that_joined_them(self):
        """The second face of photo 7 keeps away from the first one's cluster, although it is nearest to it."""
        angles = np.radians([0, 2, 3, 40])
        vectors = np.column_stack([np.cos(angles), np.sin(angles)])
        labels = agglomerative_clusters(vectors, 0.5, np.array([7, 8, 7, -1])).labels
        assert labels[0] != labels[2]
        assert labels[1] == labels[2]  # nearer: one degree against two

    def test_a_crop_that_does_not_show_a_student_stays_away_from_all_of_theirs_even_under_the_bound(self):
        """It is nearest to the student's second crop, which looks less like the first one."""
        angles = np.radians([0, 20, 21, 22])
        vectors = np.column_stack([np.cos(angles), np.sin(angles)])
        students = np.array([5, 5, -1, -1])
        for bound in (None, 1):
            labels = agglomerative_clusters(vectors, 0.5, None, students, bound, rejected=[(2, 5)]).labels
            assert labels[0] == labels[1] != labels[2]
            assert labels[2] == labels[3]
        # Nobody here is that student.
        assert set(agglomerative_clusters(vectors, 0.5, None, students, None, rejected=[(2, 6)]).labels) == {0}

    def test_must_link_wins_over_the_photo(self):
        vectors = made_people(3, 1)
        labels = agglomerative_clusters(vectors, 0.01, np.array([1, 1, 1]), np.array([5, -1, 5])).labels
        np.testing.assert_array_equal(labels, [0, 1, 0])

    def test_known_students_never_merge(self):
        vectors = np.ones((4, 3))
        labels = agglomerative_clusters(vectors, 0.5, must_link=np.array([1, 2, 1, 2])).labels
        np.testing.assert_array_equal(labels, [0, 1, 0, 1])

    def test_equal_crops_join_their_student_at_any_threshold_of_0_or_more(self):
        """Rounding makes something else than 0 of their distance."""
        vectors = np.repeat(np.random.default_rng(0).normal(size=(50, 128)), 3, axis=0)
        students = np.where(np.arange(150) % 3, -1, np.arange(150) // 3)
        labels = agglomerative_clusters(vectors, 0.0, must_link=students).labels
        np.testing.assert_array_equal(labels, np.arange(150) // 3)

    def test_must_linked_crops_start_at_their_mean_distance(self):
        """A crop near one of two linked crops but far from the other stays out, as average linkage says."""
        angles = np.radians([0, 90, 5])
        vectors = np.column_stack([np.cos(angles), np.sin(angles)])
        mean = np.mean([1 - np.cos(np.radians(5)), 1 - np.cos(np.radians(85))])
        linked = np.array([1, 1, -1])
        assert len(partition(agglomerative_clusters(vectors, mean - 0.01, must_link=linked).labels)) == 2
        assert len(partition(agglomerative_clusters(vectors, mean + 0.01, must_link=linked).labels)) == 1

    def test_max_clusters_merges_on_and_says_so(self):
        vectors = made_people(6, 3)
        clustering = agglomerative_clusters(vectors, 0.3, max_clusters=4)
        assert len(partition(clustering.labels)) == 4
        assert clustering.max_clusters_reached
        assert not agglomerative_clusters(vectors, 0.3, max_clusters=6).max_clusters_reached

    def test_a_bound_is_met_where_only_the_photos_forbid_it_and_says_so(self):
        vectors = made_people(5, 1)
        for bound in range(1, 5):
            clustering = agglomerative_clusters(vectors, 0.3, np.zeros(5, int), max_clusters=bound)
            assert len(partition(clustering.labels)) == bound
            assert clustering.max_clusters_reached
        assert not agglomerative_clusters(vectors, 0.3, np.zeros(5, int), max_clusters=5).max_clusters_reached

    def test_photos_are_disregarded_only_when_nothing_else_can_merge(self):
        """The two faces of photo 7 are the nearest of all, and still each merges with a face of photo 8 instead."""
        angles = np.radians([0, 1, 60, 100])
        vectors = np.column_stack([np.cos(angles), np.sin(angles)])
        labels = agglomerative_clusters(vectors, 0.001, np.array([7, 7, 8, 8]), max_clusters=2).labels
        np.testing.assert_array_equal(labels, [0, 1, 1, 0])

    @settings(max_examples=200, deadline=None)
    @given(crops())
    def test_a_bound_is_exceeded_by_known_students_alone(self, case):
        embeddings, photos, students, threshold, bound, _ = case
        clusters = partition(agglomerative_clusters(embeddings, threshold, photos, students, bound or 1).labels)
        assert len(clusters) <= max(bound or 1, len(set(students.tolist()) - {-1}))

    def test_as_many_clusters_as_known_students_are_left(self):
        vectors = made_people(6, 1)
        clustering = agglomerative_clusters(vectors, 0.3, np.zeros(6, int), np.array([1, 2, 3, -1, -1, -1]), 1)
        assert len(set(clustering.labels[:3].tolist())) == len(set(clustering.labels.tolist())) == 3
        assert clustering.max_clusters_reached

    @pytest.mark.parametrize(("threshold", "clusters"), [(0.0, 3), (0.5, 3), (-np.inf, 10_000)])
    def test_ten_thousand_equal_vectors(self, threshold, clusters):
        """As few clusters as the photos allow, where one has three of the faces; below 0 not even these are alike."""
        photos = np.arange(10_000)
        photos[[500, 7000]] = photos[3]
        started = time.perf_counter()
        labels = agglomerative_clusters(np.full((10_000, 8), 0.3), threshold, photos).labels
        assert time.perf_counter() - started < 10
        assert len(set(labels.tolist())) == clusters
        assert len(set(labels[[3, 500, 7000]].tolist())) == 3

    def test_a_bound_merges_no_more_equal_vectors_than_it_must(self):
        clustering = agglomerative_clusters(np.ones((10, 3)), -np.inf, max_clusters=4)
        assert len(partition(clustering.labels)) == 4
        assert clustering.max_clusters_reached

    def test_a_cluster_comes_after_its_parts_even_if_rounding_makes_it_lower(self):
        merges = [_Merge(0.5, 0, 1), _Merge(0.4999999, 0, 2), _Merge(0.3, 3, 4)]
        assert _ascending(merges) == [merges[2], *merges[:2]]

    def test_memory_does_not_grow_with_the_square(self):
        """A matrix of the distances would take 200 MB in float64."""
        vectors = made_people(100, 50, spread=0.03, dimension=64)
        photos = np.tile(np.arange(50), 100)
        tracemalloc.start()
        try:
            for bound in (None, 10):
                labels = agglomerative_clusters(vectors, 0.6, photos, max_clusters=bound).labels
                assert len(set(labels.tolist())) == (bound or 100)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 60e6

    def test_no_crops(self):
        assert agglomerative_clusters(np.zeros((0, 128)), 0.1).labels.shape == (0,)

    def test_a_vector_without_direction_is_refused(self):
        with pytest.raises(ValueError, match="embedding"):
            agglomerative_clusters(np.array([[0.0, 0.0], [1.0, 0.0]]), 0.1)

    def test_three_thousand_crops_in_ten_seconds(self):
        vectors = made_people(100, 30, spread=0.03, dimension=512)
        photos = np.tile(np.arange(30), 100)
        started = time.perf_counter()
        labels = agglomerative_clusters(vectors, 0.6, photos).labels
        assert time.perf_counter() - started < 10
        np.testing.assert_array_equal(labels, np.repeat(np.arange(100), 30))


class TestDbscan:
    def test_people_are_clusters_and_strangers_noise(self):
        strangers = l2_normalise(np.random.default_rng(9).normal(size=(3, 32)))
        labels = dbscan_clusters(np.vstack([made_people(4, 5), strangers]), 0.2).labels
        np.testing.assert_array_equal(labels, [*np.repeat(np.arange(4), 5), -1, -1, -1])

    def test_min_samples_makes_pairs_noise(self):
        labels = dbscan_clusters(made_people(2, 2), 0.3, min_samples=3).labels
        np.testing.assert_array_equal(labels, [-1] * 4)

    @settings(max_examples=150, deadline=None)
    @given(crops(), st.randoms(use_true_random=False))
    def test_the_order_of_the_crops_does_not_matter(self, case, random):
        embeddings, _, _, threshold, _, _ = case
        order = np.array(random.sample(range(len(embeddings)), len(embeddings)))

        def content(order: np.ndarray) -> list:
            e = embeddings[order]
            labels = dbscan_clusters(e, threshold + 0.01, min_samples=3).labels
            return sorted(sorted(e[i].tolist() for i in cluster) for cluster in partition(labels))

        assert content(order) == content(np.arange(len(embeddings)))

    @pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6, 2.0])
    @pytest.mark.parametrize("min_samples", [1, 2, 5])
    def test_equals_scikit_learn_on_all_distances(self, threshold, min_samples):
        from sklearn.cluster import DBSCAN

        vectors = made_people(12, 6, spread=0.15)
        distances = np.clip(1 - vectors @ vectors.T, 0, 2)
        expected = DBSCAN(eps=threshold, min_samples=min_samples, metric="precomputed").fit(distances)
        with patch.object(clustering_module, "_BLOCK", 7):
            labels = dbscan_clusters(vectors, threshold, min_samples).labels
        np.testing.assert_array_equal(labels == -1, expected.labels_ == -1)
        # A crop at the edge of two clusters belongs to either, by the order of the crops.
        dense = expected.core_sample_indices_
        assert partition(labels[dense]) == partition(expected.labels_[dense])

    def test_no_crops(self):
        assert dbscan_clusters(np.zeros((0, 128)), 0.1).labels.shape == (0,)
