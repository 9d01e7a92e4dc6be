"""The detector on a photo that scikit-image ships, moved, turned, scaled and cut, and its pure parts."""

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import cv2
import dagster as dg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.errors import ModelError
from pipelines.faces.face import DetectedFace
from pipelines.resources import face_detector
from pipelines.resources.face_detector import FaceDetector
from pipelines.settings import Settings

Photo = NDArray[np.uint8]


@pytest.fixture(scope="module")
def astronaut() -> Photo:
    """(512, 512, 3): one person, face at about (182, 64) of 86 x 110 pixels."""
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def face(astronaut: Photo) -> DetectedFace:
    (found,) = FaceDetector().detect(astronaut)
    return found


def resized(photo: Photo, factor: float) -> Photo:
    return cv2.resize(photo, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def overlap(box: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two (x, y, w, h) boxes."""
    low = np.maximum(box[:2], other[:2])
    high = np.minimum(np.add(box[:2], box[2:]), np.add(other[:2], other[2:]))
    shared = np.prod(np.clip(high - low, 0, None))
    return float(shared / (np.prod(box[2:]) + np.prod(other[2:]) - shared))


def test_one_face_with_its_landmarks(face):
    assert overlap(face.box, (182, 64, 86, 110)) > 0.9
    assert face.confidence > 0.99
    assert face.landmarks.shape == (5, 2)
    assert face.landmarks.dtype == np.float32
    eye, other_eye, nose, mouth, other_mouth = face.landmarks
    assert face.box[0] < eye[0] < nose[0] < other_eye[0] < face.box[0] + face.box[2]
    assert mouth[0] < other_mouth[0]
    assert face.box[1] < max(eye[1], other_eye[1]) < nose[1] < min(mouth[1], other_mouth[1]) < face.box[1] + face.box[3]


def test_the_same_photo_gives_the_same_numbers(astronaut, face):
    (again,) = FaceDetector().detect(astronaut)
    assert again.box == face.box
    assert again.confidence == face.confidence
    assert np.array_equal(again.landmarks, face.landmarks)


@pytest.fixture(scope="module")
def package() -> Any:
    """The package's own detector, on TensorFlow."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from mtcnn import MTCNN

    return MTCNN()


@pytest.mark.slow
def test_the_networks_give_what_the_package_s_networks_give(package):
    ours = face_detector._mtcnn()
    shapes = [(2, 37, 50, 3), (5, 24, 24, 3), (5, 48, 48, 3)]
    for network, stage, shape in zip((ours._pnet, ours._rnet, ours._onet), package.stages, shapes, strict=True):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        (mine,) = network.run(None, {"image": images})
        *numbers, no_face_or_face = (output.numpy() for output in stage.model((images - np.float32(127.5)) / 128))
        logits = np.diff(np.log(no_face_or_face))
        theirs = np.concatenate([*numbers, logits], axis=-1)
        assert np.abs((mine.transpose(0, 2, 3, 1) if mine.ndim == 4 else mine) - theirs).max() < 1e-3


@pytest.mark.slow
def test_the_cascade_agrees_with_the_package_s(package, astronaut, face):
    (reference,) = package.detect_faces(astronaut)
    points = [reference["keypoints"][name] for name in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")]
    assert overlap(face.box, reference["box"]) > 0.85
    assert np.abs(face.landmarks - points).max() < 0.05 * face.box[2]
    assert face.confidence == pytest.approx(reference["confidence"], abs=0.01)


def test_faces_come_by_top_then_left(astronaut, face):
    canvas = np.full((1400, 1400, 3), 90, dtype=np.uint8)
    places = [(800, 700), (100, 60), (700, 10)]  # x, y
    for x, y in places:
        canvas[y : y + 512, x : x + 512] = astronaut
    canvas[900:1156, 100:356] = resized(astronaut, 0.5)
    boxes = [found.box for found in FaceDetector().detect(canvas)]
    x, y, width, height = face.box
    expected = [(x + dx, y + dy, width, height) for dx, dy in sorted(places, key=lambda place: place[::-1])]
    expected.append((x / 2 + 100, y / 2 + 900, width / 2, height / 2))
    assert len(boxes) == 4
    assert all(overlap(box, place) > 0.85 for box, place in zip(boxes, expected, strict=True))
    assert boxes == sorted(boxes, key=lambda box: (box[1], box[0]))


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_a_turned_photo_is_found_out(astronaut, face, quarter_turns):
    (found,) = FaceDetector().detect(np.ascontiguousarray(np.rot90(astronaut, quarter_turns)))
    # The same points, in the same order, as a turn of the photo moves them.
    expected = face.landmarks
    for _ in range(quarter_turns):
        expected = np.stack([expected[:, 1], 512 - expected[:, 0]], axis=1)
    assert np.abs(found.landmarks - expected).max() < 3
    assert found.box[0] < found.landmarks[:, 0].min() < found.landmarks[:, 0].max() < found.box[0] + found.box[2]
    assert found.box[1] < found.landmarks[:, 1].min() < found.landmarks[:, 1].max() < found.box[1] + found.box[3]


def overexposed(photo: Photo, factor: float) -> Photo:
    return (photo * np.float32(factor)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("factor", [1.8, 2.3])
def test_an_overexposed_face_is_found_by_restoring_the_contrast(astronaut, face, factor):
    washed_out = overexposed(astronaut, factor)
    (found,) = FaceDetector().detect(washed_out)
    assert overlap(found.box, face.box) > 0.6
    assert np.abs(found.landmarks - face.landmarks).max() < 0.2 * face.box[2]
    assert face_detector._AGREEMENT <= found.confidence <= 1
    # Not already in the photo as it is.
    assert not len(face_detector._mtcnn()._look(washed_out, 20, 0.9).confidences)


@pytest.mark.parametrize(("name", "factor"), [("coffee", 5), ("chelsea", 3), ("rocket", 6)])
def test_overexposed_things_have_no_face(name, factor):
    photo = overexposed(getattr(pytest.importorskip("skimage.data"), name)(), factor)
    assert (photo.min(axis=2) >= 250).mean() > face_detector._WASHED_OUT
    assert FaceDetector().detect(photo) == []


def test_a_large_photo_is_searched_scaled_down(astronaut, face):
    (found,) = FaceDetector(detection_max_side=300).detect(astronaut)
    assert overlap(found.box, face.box) > 0.85
    assert np.abs(found.landmarks - face.landmarks).max() < 0.06 * face.box[2]


@pytest.mark.parametrize(
    ("min_face_px", "count"),
    [(8, 1), (20, 1), (40, 1), (60, 1), (250, 0)],
)
def test_the_smallest_face_searched_for(astronaut, min_face_px, count):
    assert len(FaceDetector(min_face_px=min_face_px).detect(astronaut)) == count


def test_a_face_that_fills_the_photo_is_found_in_a_search_for_small_ones(astronaut):
    closeup = resized(np.ascontiguousarray(astronaut[40:200, 150:300]), 3)
    assert len(FaceDetector(min_face_px=8).detect(closeup)) == 1


def test_a_face_cut_by_the_edge_has_its_box_inside(astronaut):
    cut = np.ascontiguousarray(astronaut[90:, 200:])
    (found,) = FaceDetector().detect(cut)
    x, y, width, height = found.box
    assert x >= 0
    assert y >= 0
    assert x + width <= cut.shape[1]
    assert y + height <= cut.shape[0]


def test_searching_in_bands_changes_nothing(astronaut, monkeypatch):
    tall = np.concatenate([astronaut, astronaut[::-1], astronaut])[:, :320]
    in_bands = FaceDetector().detect(np.ascontiguousarray(tall))
    monkeypatch.setattr(face_detector, "_BAND", 10_000)
    at_once = FaceDetector().detect(np.ascontiguousarray(tall))
    assert len(in_bands) == len(at_once) == 2
    for one, other in zip(in_bands, at_once, strict=True):
        assert np.allclose(one.landmarks, other.landmarks, atol=0.01)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 4000), (6000, 3), (3, 6000), (11, 11), (12, 12), (13, 500), (20, 20), (21, 30), (40, 40)]
)
@pytest.mark.parametrize("backend", ["mtcnn", "opencv"])
def test_slivers_and_specks_have_no_face(shape, backend):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert FaceDetector(backend=backend).detect(noise) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (6000, 3), (12, 900), (20, 20)])
def test_white_slivers_and_specks_have_no_face(shape):
    assert FaceDetector().detect(np.full((*shape, 3), 255, dtype=np.uint8)) == []


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_even_photo_has_no_face(grey):
    assert FaceDetector().detect(np.full((300, 400, 3), grey, dtype=np.uint8)) == []


@pytest.mark.parametrize("name", ["coffee", "chelsea", "rocket"])
def test_photos_of_things_have_no_face(name):
    data = pytest.importorskip("skimage.data")
    assert FaceDetector().detect(getattr(data, name)()) == []


@pytest.mark.parametrize(("backend", "tolerance"), [("opencv", 0.12), ("dlib", 0.12)])
def test_deepface_backends_give_five_landmarks(astronaut, face, backend, tolerance):
    found = FaceDetector(backend=backend).detect(astronaut)
    best = max(found, key=lambda candidate: overlap(candidate.box, face.box))
    assert overlap(best.box, face.box) > 0.6
    assert 0 <= best.confidence <= 1
    assert np.abs(best.landmarks - face.landmarks).max() < tolerance * face.box[2]


def test_deepface_backends_that_find_nothing_give_nothing():
    assert FaceDetector(backend="opencv").detect(np.full((300, 300, 3), 128, dtype=np.uint8)) == []


def area(**known: tuple[float, float]) -> SimpleNamespace:
    """A face area as DeepFace gives it, with a box of 100 x 130 pixels at (50, 20)."""
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    return SimpleNamespace(x=50, y=20, w=100, h=130, **(dict.fromkeys(names) | known))


def test_without_landmarks_the_mean_face_is_put_into_the_box():
    expected = face_detector._MEAN_FACE * [100, 130] + [50, 20]
    assert np.allclose(face_detector._five_points(area()), expected, atol=1e-3)


def test_known_landmarks_stay_and_the_others_follow_the_eyes():
    points = face_detector._five_points(area(right_eye=(80, 60), left_eye=(120, 100), mouth_left=(99, 130)))
    assert points[[0, 1, 4]].tolist() == [[80, 60], [120, 100], [99, 130]]
    # The eyes slope by 45 degrees, and so does the face: the nose is below their middle along the other diagonal.
    below = points[2] - [100, 80]
    assert below[0] == pytest.approx(-below[1], abs=3)
    assert below[1] > 10


def test_an_unknown_backend_is_refused_with_the_choices():
    with pytest.raises(ModelError, match=r"no face detector 'mtccn'.*opencv.*retinaface"):
        FaceDetector(backend="mtccn").detect(np.zeros((64, 64, 3), dtype=np.uint8))


def test_a_failed_download_is_one_sentence(monkeypatch):
    from deepface.commons import weight_utils

    def offline(url: str) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(weight_utils, "ensure_source_is_reachable", offline)
    with pytest.raises(ModelError) as caught:
        FaceDetector(backend="centerface").detect(np.zeros((64, 64, 3), dtype=np.uint8))
    message = str(caught.value)
    assert "'centerface'" in message
    assert "ATTENDANSEE_DETECTOR=mtcnn" in message
    assert str(Settings().weights_folder) in message
    assert "\n" not in message


@pytest.mark.skipif(find_spec("ultralytics") is not None, reason="the package whose absence is tested is installed")
def test_a_missing_package_is_named():
    with pytest.raises(ModelError, match="install the Python package ultralytics"):
        FaceDetector(backend="yolov8n").detect(np.zeros((64, 64, 3), dtype=np.uint8))


def test_the_version_names_what_decides_the_result():
    variants = [
        FaceDetector(),
        FaceDetector(min_face_px=30),
        FaceDetector(detection_max_side=2048),
        FaceDetector(min_confidence=0.95),
        FaceDetector(backend="opencv"),
        FaceDetector(backend="opencv", detection_max_side=2048),
        FaceDetector(backend="dlib"),
    ]
    assert len({variant.version for variant in variants}) == len(variants)
    assert FaceDetector().version == FaceDetector().version
    assert FaceDetector().version.startswith("mtcnn 1.")


def test_the_settings_configure_it():
    settings = Settings(detector="opencv", min_face_px=33, detection_max_side=1024)
    detector = FaceDetector.from_settings(settings)
    assert (detector.backend, detector.min_face_px, detector.detection_max_side) == ("opencv", 33, 1024)


def test_it_is_a_dagster_resource(astronaut):
    counts: list[int] = []

    @dg.op
    def count_faces(face_detector: FaceDetector) -> None:
        counts.append(len(face_detector.detect(astronaut)))

    @dg.job(resource_defs={"face_detector": FaceDetector()})
    def count() -> None:
        count_faces()

    assert count.execute_in_process().success
    assert counts == [1]


def test_mtcnn_needs_no_tensorflow():
    code = (
        "import sys, numpy; from pipelines.resources.face_detector import FaceDetector; "
        "FaceDetector().detect(numpy.zeros((64, 64, 3), numpy.uint8)); sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


boxes_with_scores = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 100)),
    max_size=12,
)


def test_suppression_of_many_boxes_is_that_of_one_after_another():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (500, 2)).repeat(2, axis=0)
    corners = np.concatenate([corners, corners + rng.uniform(10, 60, (1000, 2))], axis=1)
    scores = rng.random(1000)
    expected: list[int] = []
    for index in np.argsort(-scores):
        if not expected or face_detector._overlaps(corners[[index]], corners[expected]).max() <= 0.5:
            expected.append(int(index))
    assert face_detector._suppress(corners, scores, 0.5).tolist() == expected


@given(boxes=boxes_with_scores, max_overlap=st.sampled_from([0.3, 0.5, 0.7]), of_smaller=st.booleans())
def test_suppression_keeps_the_better_of_overlapping_boxes(boxes, max_overlap, of_smaller):
    rows = np.array(boxes, dtype=np.float64).reshape(-1, 5)
    corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
    scores = rows[:, 4]
    kept = face_detector._suppress(corners, scores, max_overlap, of_smaller=of_smaller).tolist()

    def share(i: int, j: int) -> float:
        sides = np.minimum(corners[i, 2:], corners[j, 2:]) - np.maximum(corners[i, :2], corners[j, :2])
        common = np.prod(sides.clip(0))
        areas = rows[[i, j], 2] * rows[[i, j], 3]
        return float(common / (areas.min() if of_smaller else areas.sum() - common))

    assert scores[kept].tolist() == sorted(scores[kept], reverse=True)
    for i in range(len(rows)):
        assert i in kept or any(share(i, j) > max_overlap and scores[j] >= scores[i] for j in kept)
    assert all(share(i, j) <= max_overlap for i in kept for j in kept if i != j)


@given(width=st.integers(1, 9), height=st.integers(1, 9), quarter_turns=st.sampled_from([1, 2, 3]), data=st.data())
def test_turning_back_finds_the_pixel_again(width, height, quarter_turns, data):
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    photo = np.zeros((height, width))
    photo[y, x] = 1
    (turned_y,), (turned_x,) = np.nonzero(np.rot90(photo, quarter_turns))
    found = face_detector._Found(
        np.array([[turned_x, turned_y, turned_x + 1, turned_y + 1]]),
        np.full((1, 5, 2), [turned_x + 0.5, turned_y + 0.5]),
        np.ones(1),
    )
    back = face_detector._turn_back(found, width, height, quarter_turns)
    assert back.corners.tolist() == [[x, y, x + 1, y + 1]]
    assert back.landmarks.tolist() == [[[x + 0.5, y + 0.5]] * 5]
