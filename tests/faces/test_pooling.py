import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.faces.pooling import ALONE, linked_faces, pooled, quality_weights
from pipelines.faces.similarity import l2_normalise

GOOD = {"size": [200], "sharpness": [0.8], "confidence": [1.0], "yaw": [0.0]}


def faces(*degrees: float) -> np.ndarray:
    """Unit vectors in a plane, at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class TestQualityWeights:
    def test_a_large_sharp_frontal_certain_face_counts_in_full(self):
        assert quality_weights(**GOOD).tolist() == [1.0]

    @pytest.mark.parametrize(
        "worse", [{"size": [20]}, {"sharpness": [0.1]}, {"confidence": [0.6]}, {"yaw": [50.0]}, {"yaw": [-50.0]}]
    )
    def test_whatever_is_worse_counts_less(self, worse):
        assert 0 < quality_weights(**GOOD | worse)[0] < 1

    @given(st.lists(st.floats(), min_size=4, max_size=4))
    def test_no_measurement_takes_all_weight_away(self, values):
        (weight,) = quality_weights(*([value] for value in values))
        assert 0 < weight <= 1


class TestPooled:
    def test_a_group_of_one_is_its_face(self):
        vectors = faces(10, 80)
        assert pooled(vectors, np.array([0.1, 0.9]), np.array([1, 0])) == pytest.approx(vectors[::-1], abs=1e-6)

    def test_a_better_face_counts_more(self):
        even, uneven = (pooled(faces(0, 40), np.array(w), np.array([0, 0])) for w in ([1.0, 1.0], [3.0, 1.0]))
        assert even == pytest.approx(faces(20), abs=1e-6)
        assert uneven[0, 0] > even[0, 0]

    def test_faces_that_cancel_out_leave_the_heavier_one(self):
        vectors = np.array([[1, 0], [-1, 0]], np.float32)
        assert pooled(vectors, np.array([0.5, 0.5]), np.array([0, 0])).tolist() == [[1, 0]]

    def test_no_faces(self):
        assert pooled(np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, np.int64)).shape == (0, 4)


def link(degrees: list[float], photos: list[int], labels: list[int], margin: float = 0.01) -> list[int]:
    """With a threshold of 0.06, which is 20 degrees."""
    weights = np.ones(len(degrees))
    return linked_faces(faces(*degrees), weights, np.array(photos), np.array(labels), 0.06, margin).tolist()


class TestLinkedFaces:
    def test_a_cluster_is_one_link(self):
        assert link([0, 90, 10], [1, 1, 2], [5, 3, 5]) == [0, 1, 0]

    def test_what_was_forced_into_a_cluster_comes_apart(self):
        assert link([0, 5, 90], [1, 2, 3], [0, 0, 0], margin=0.5) == [0, 0, 1]

    def test_of_two_faces_of_a_photo_in_one_cluster_the_nearer_one_stays(self):
        assert link([0, 2, 12], [1, 2, 2], [0, 0, 0]) == [0, 0, 1]

    def test_a_face_in_no_cluster_joins_the_one_it_clearly_belongs_to(self):
        assert link([0, 4, 90, 12], [1, 2, 2, 3], [0, 0, 1, ALONE]) == [0, 0, 1, 0]

    @pytest.mark.parametrize(
        ("degrees", "photo"),
        [(60, 3), (15, 3), (8, 1)],
        ids=["like nobody", "between two", "in the photo already"],
    )
    def test_else_it_stays_alone(self, degrees, photo):
        assert link([0, 30, degrees], [1, 2, photo], [0, 1, ALONE]) == [0, 1, 2]

    def test_of_two_faces_of_a_photo_that_would_join_the_nearer_one_does(self):
        assert link([0, 12, 8], [1, 2, 2], [0, ALONE, ALONE]) == [0, 1, 0]

    def test_faces_in_no_cluster_do_not_join_one_another(self):
        assert link([0, 1], [1, 2], [ALONE, ALONE]) == [0, 1]

    def test_no_faces(self):
        empty = np.zeros(0, np.int64)
        assert linked_faces(np.zeros((0, 4), np.float32), np.zeros(0), empty, empty, 0.06, 0.01).tolist() == []

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_rules_hold_in_any_order(self, data):
        n = data.draw(st.integers(1, 12))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
        vectors = l2_normalise(rng.normal(size=(3, 6))[rng.integers(0, 3, n)] + 0.2 * rng.normal(size=(n, 6)))
        weights = rng.uniform(0.1, 1, n)
        photos, labels = rng.integers(0, 5, n), rng.integers(-1, 4, n)
        links = linked_faces(vectors, weights, photos, labels, 0.06, 0.01)

        # Numbered by first appearance, and no link shows a photo twice.
        assert list(dict.fromkeys(links.tolist())) == list(range(links.max() + 1))
        assert len({*zip(links.tolist(), photos.tolist(), strict=True)}) == n
        # Two clusters are never joined.
        for one in range(links.max() + 1):
            assert len({*labels[links == one].tolist()} - {ALONE}) <= 1
        order = rng.permutation(n)
        again = linked_faces(vectors[order], weights[order], photos[order], labels[order], 0.06, 0.01)
        together = links[:, None] == links[None]
        assert np.array_equal(again[:, None] == again[None], together[np.ix_(order, order)])
