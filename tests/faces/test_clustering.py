import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.faces.clustering import agglomerative_clusters, dbscan_clusters
from pipelines.faces.similarity import l2_normalise


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
def crops(draw):
    """Few dimensions and few distinct values, so that ties, duplicates and conflicts do occur."""
    n = draw(st.integers(1, 14))
    values = draw(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=n, max_size=n))
    ids = st.lists(st.integers(-1, 4), min_size=n, max_size=n)
    return (
        np.array(values, float) + np.array([0.5, 0.1, 0.2]),
        np.array(draw(ids)),
        np.array(draw(st.just([-1] * n) | ids)),
        draw(st.floats(0, 0.6)),
        draw(st.none() | st.integers(1, n)),
    )


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
        embeddings, photos, students, threshold, bound = case
        clustering = agglomerative_clusters(embeddings, threshold, photos, students, bound)
        for cluster in partition(clustering.labels):
            named = {int(students[i]) for i in cluster} - {-1}
            assert len(named) <= 1
            # Two crops of one photo are together only where both are known to be one student.
            for i in cluster:
                for j in cluster - {i}:
                    assert photos[i] == -1 or photos[i] != photos[j] or students[i] == students[j] != -1
        for student in set(students.tolist()) - {-1}:
            assert len(set(clustering.labels[students == student].tolist())) == 1

    @settings(max_examples=300, deadline=None)
    @given(crops(), st.randoms(use_true_random=False))
    def test_the_order_of_the_crops_does_not_matter(self, case, random):
        embeddings, photos, students, threshold, bound = case
        # Crops alike in every respect may swap places, so the partition is compared by content.
        order = np.array(random.sample(range(len(embeddings)), len(embeddings)))

        def content(order: np.ndarray) -> tuple[list, bool]:
            e, p, s = embeddings[order], photos[order], students[order]
            clustering = agglomerative_clusters(e, threshold, p, s, bound)
            return sorted(
                sorted((*e[i].tolist(), int(p[i]), int(s[i])) for i in cluster)
                for cluster in partition(clustering.labels)
            ), clustering.max_clusters_reached

        assert content(order) == content(np.arange(len(embeddings)))

    @settings(max_examples=200, deadline=None)
    @given(crops())
    def test_no_merge_is_left_undone_and_labels_count_up(self, case):
        """What remains apart is farther than the threshold or forbidden."""
        embeddings, photos, students, threshold, bound = case
        clustering = agglomerative_clusters(embeddings, threshold, photos, students, bound)
        labels = clustering.labels
        first_seen = list(dict.fromkeys(labels.tolist()))
        assert first_seen == list(range(len(first_seen)))
        unit = l2_normalise(embeddings).astype(float)
        clusters = [sorted(c) for c in partition(labels)]
        for a, one in enumerate(clusters):
            for other in clusters[a + 1 :]:
                shared = (set(photos[one].tolist()) & set(photos[other].tolist())) - {-1}
                named = set(students[[*one, *other]].tolist()) - {-1}
                if shared or len(named) > 1:
                    continue
                assert bound is None or len(clusters) <= bound
                assert (1 - unit[one] @ unit[other].T).mean() > threshold - 1e-6

    def test_two_faces_of_one_photo_stay_apart_with_everything_that_joined_them(self):
        """The second face of photo 7 keeps away from the first one's cluster, although it is nearest to it."""
        angles = np.radians([0, 2, 3, 40])
        vectors = np.column_stack([np.cos(angles), np.sin(angles)])
        labels = agglomerative_clusters(vectors, 0.5, np.array([7, 8, 7, -1])).labels
        assert labels[0] != labels[2]
        assert labels[1] == labels[2]  # nearer: one degree against two

    def test_must_link_wins_over_the_photo(self):
        vectors = made_people(3, 1)
        labels = agglomerative_clusters(vectors, 0.01, np.array([1, 1, 1]), np.array([5, -1, 5])).labels
        np.testing.assert_array_equal(labels, [0, 1, 0])

    def test_known_students_never_merge(self):
        vectors = np.ones((4, 3))
        labels = agglomerative_clusters(vectors, 0.5, must_link=np.array([1, 2, 1, 2])).labels
        np.testing.assert_array_equal(labels, [0, 1, 0, 1])

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

    def test_a_bound_that_the_photos_forbid_leaves_more_and_says_so(self):
        clustering = agglomerative_clusters(made_people(5, 1), 0.3, np.zeros(5, int), max_clusters=2)
        assert len(partition(clustering.labels)) == 5
        assert clustering.max_clusters_reached

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
        embeddings, _, _, threshold, _ = case
        order = np.array(random.sample(range(len(embeddings)), len(embeddings)))

        def content(order: np.ndarray) -> list:
            e = embeddings[order]
            labels = dbscan_clusters(e, threshold + 0.01, min_samples=3).labels
            return sorted(sorted(e[i].tolist() for i in cluster) for cluster in partition(labels))

        assert content(order) == content(np.arange(len(embeddings)))

    def test_no_crops(self):
        assert dbscan_clusters(np.zeros((0, 128)), 0.1).labels.shape == (0,)
