import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.faces.metrics import bcubed, match_boxes, precision_recall
from pipelines.settings import PROJECT_ROOT

LABELS = PROJECT_ROOT.parent / "shared" / "data" / "faces" / "sessions" / "caltech_class" / "labels.csv"

labels = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 4), min_size=n, max_size=n)] * 2),
)
boxes = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40)), max_size=6
).map(lambda rows: np.array(rows, float).reshape(-1, 4))


class TestBCubed:
    def test_a_worked_example(self):
        """Clusters {a a b} and {b}: precision (2/3 + 2/3 + 1/3 + 1) / 4, recall (1 + 1 + 1/2 + 1/2) / 4."""
        result = bcubed([0, 0, 0, 1], ["a", "a", "b", "b"])
        assert result.precision == pytest.approx(2 / 3)
        assert result.recall == pytest.approx(3 / 4)
        assert result.f1 == pytest.approx(2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4))

    @given(labels)
    def test_equals_the_definition_element_by_element(self, case):
        clusters, classes = case
        n = len(clusters)
        precision = recall = 0.0
        for e in range(n):
            cluster = {o for o in range(n) if clusters[o] == clusters[e]}
            true = {o for o in range(n) if classes[o] == classes[e]}
            precision += len(cluster & true) / len(cluster) / n
            recall += len(cluster & true) / len(true) / n
        result = bcubed(clusters, classes)
        assert (result.precision, result.recall) == (pytest.approx(precision), pytest.approx(recall))

    @given(labels)
    def test_swapping_the_sides_swaps_precision_and_recall(self, case):
        one, other = bcubed(*case), bcubed(*reversed(case))
        assert (one.precision, one.recall) == (pytest.approx(other.recall), pytest.approx(other.precision))
        assert one.f1 == pytest.approx(other.f1)

    @given(labels)
    def test_names_do_not_matter_and_the_truth_is_perfect(self, case):
        _, classes = case
        result = bcubed([f"cluster {label}" for label in classes], classes)
        assert result.precision == result.recall == result.f1 == pytest.approx(1)

    def test_extremes(self):
        assert bcubed([0] * 4, [0, 1, 2, 3]).precision == pytest.approx(1 / 4)
        assert bcubed([0, 1, 2, 3], [0] * 4).recall == pytest.approx(1 / 4)

    def test_nothing_to_measure(self):
        with pytest.raises(ValueError, match="at least one"):
            bcubed([], [])

    def test_labels_of_different_length(self):
        with pytest.raises(ValueError, match="zip"):
            bcubed([1, 2], [1])


def test_precision_and_recall_of_sets():
    said = {("s1", "anna"), ("s1", "ben"), ("s2", "anna")}
    true = {("s1", "anna"), ("s2", "anna"), ("s2", "ben"), ("s2", "cleo")}
    assert precision_recall(said, true) == (pytest.approx(2 / 3), pytest.approx(1 / 2))
    assert precision_recall([], true) == (1, 0)
    assert precision_recall(said, []) == (0, 1)


class TestMatchBoxes:
    def test_each_box_is_matched_once_to_the_best_overall(self):
        """The first box overlaps both; taking its favourite would leave the second without a partner."""
        one = np.array([[0, 0, 100, 100], [40, 0, 100, 100]])
        other = np.array([[20, 0, 100, 100], [-20, 0, 100, 100]])
        assert match_boxes(one, other) == [(0, 1), (1, 0)]

    def test_boxes_apart_do_not_match(self):
        assert match_boxes(np.array([[0, 0, 10, 10]]), np.array([[50, 50, 10, 10]])) == []

    def test_the_least_overlap(self):
        one, other = np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 20]])
        assert match_boxes(one, other, min_iou=0.5) == [(0, 0)]
        assert match_boxes(one, other, min_iou=0.51) == []

    @pytest.mark.parametrize(("n", "m"), [(0, 0), (3, 0), (0, 3)])
    def test_no_boxes(self, n, m):
        assert match_boxes(np.ones((n, 4)), np.ones((m, 4))) == []

    @given(boxes, boxes)
    def test_pairs_overlap_enough_and_do_not_depend_on_the_sides(self, one, other):
        pairs = match_boxes(one, other, 0.2)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)

        def iou(a: np.ndarray, b: np.ndarray) -> float:
            """By counting the unit squares that the boxes cover."""
            squares = [
                {(x, y) for x in range(int(c[0]), int(c[0] + c[2])) for y in range(int(c[1]), int(c[1] + c[3]))}
                for c in (a, b)
            ]
            return len(squares[0] & squares[1]) / len(squares[0] | squares[1])

        assert all(iou(one[i], other[j]) >= 0.2 - 1e-9 for i, j in pairs)
        assert sum(iou(one[i], other[j]) for i, j in pairs) == pytest.approx(
            sum(iou(one[i], other[j]) for j, i in match_boxes(other, one, 0.2))
        )

    @pytest.mark.skipif(not LABELS.is_file(), reason="needs the shared face photos beside the repository")
    def test_boxes_of_another_convention_match_their_labels(self):
        """Haar draws squares where the labels are upright rectangles."""
        import cv2
        from PIL import Image

        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
        with LABELS.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["file"] == "session_01/photo_1.jpg"]
        labelled = np.array([[float(row[c]) for c in "xywh"] for row in rows])
        photo = np.asarray(Image.open(LABELS.parent / "session_01" / "photo_1.jpg").convert("L"))
        found = np.array(cascade.detectMultiScale(photo, 1.1, 10)).reshape(-1, 4)
        assert sorted(i for i, _ in match_boxes(labelled, found)) == list(range(len(labelled)))
