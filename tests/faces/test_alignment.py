import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.faces.alignment import (
    ARCFACE_112,
    DLIB_150,
    deepface_chip,
    five_point_chip,
    letterbox,
    similarity_transform,
)


def made_photo(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """A smooth random picture, so that interpolation has something to interpolate."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def turned_and_moved(points: np.ndarray, degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.radians(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


@given(
    degrees=st.floats(-180, 180),
    scale=st.floats(0.05, 20),
    shift=st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)),
)
def test_similarity_transform_recovers_turn_scale_and_shift(degrees, scale, shift):
    target = turned_and_moved(DLIB_150, degrees, scale, shift)
    matrix = similarity_transform(DLIB_150, target)
    np.testing.assert_allclose(DLIB_150 @ matrix[:, :2].T + matrix[:, 2], target, atol=1e-2)
    assert np.linalg.det(matrix[:, :2]) == pytest.approx(scale**2, rel=1e-6)


def test_similarity_transform_is_the_least_squares_one():
    from scipy.optimize import least_squares

    source = DLIB_150 + np.random.default_rng(3).normal(0, 6, (5, 2))

    def error(parameters: np.ndarray) -> np.ndarray:
        a, b, x, y = parameters
        return (source @ np.array([[a, -b], [b, a]]).T + [x, y] - ARCFACE_112).ravel()

    matrix = similarity_transform(source, ARCFACE_112)
    best = least_squares(error, [1, 0, 0, 0]).x
    np.testing.assert_allclose(matrix, [[best[0], -best[1], best[2]], [best[1], best[0], best[3]]], atol=1e-4)


def test_similarity_transform_never_mirrors():
    mirrored = DLIB_150 * [-1, 1]
    assert np.linalg.det(similarity_transform(mirrored, DLIB_150)[:, :2]) > 0


@pytest.mark.parametrize("landmarks", [np.full((5, 2), 7.0), np.full((5, 2), np.nan)])
def test_landmarks_without_extent_are_refused(landmarks):
    with pytest.raises(ValueError, match="landmarks"):
        five_point_chip(made_photo(), landmarks, DLIB_150, 150)


@pytest.mark.parametrize("degrees", [0, -35, 120])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.3])
def test_five_point_chip_puts_the_landmarks_on_the_template(degrees, scale):
    """Bright spots on the landmarks of a made photo come out where the template says."""
    landmarks = turned_and_moved(ARCFACE_112 - 56, degrees, scale, (400, 350))
    y, x = np.mgrid[:700, :800]
    spots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (3 * scale) ** 2)) for px, py in landmarks)
    photo = np.repeat((255 * np.clip(spots, 0, 1)).astype(np.uint8)[:, :, None], 3, axis=2)
    chip = five_point_chip(photo, landmarks, ARCFACE_112, 112)
    assert chip.shape == (112, 112, 3)
    assert chip.dtype == np.uint8
    for px, py in ARCFACE_112:
        left, top = round(float(px)) - 8, round(float(py)) - 8
        spot = chip[top : top + 17, left : left + 17, 0].astype(float)
        rows, columns = np.mgrid[top : top + 17, left : left + 17]
        assert (spot * columns).sum() / spot.sum() == pytest.approx(px, abs=0.3)
        assert (spot * rows).sum() / spot.sum() == pytest.approx(py, abs=0.3)


def test_five_point_chip_of_a_large_noisy_face_is_averaged_not_sampled():
    noise = np.random.default_rng(0).normal(128, 20, (1200, 1200, 3)).clip(0, 255).astype(np.uint8)
    chip = five_point_chip(noise, DLIB_150 * 8, DLIB_150, 150)
    assert chip[5:-5, 5:-5].std() < 5


def test_five_point_chip_outside_the_photo_is_black():
    photo = np.full((100, 100, 3), 200, np.uint8)
    assert not five_point_chip(photo, DLIB_150 + 500, DLIB_150, 150).any()


def test_a_panorama_wider_than_opencv_can_warp():
    photo = np.zeros((300, 33000, 3), np.uint8)
    photo[:, 32700:] = made_photo(304, 304)[:300, :300]
    landmarks = DLIB_150 + np.array([32750, 60])
    chip = five_point_chip(photo, landmarks, DLIB_150, 150)
    np.testing.assert_array_equal(chip, photo[60:210, 32750:32900])


class TestDeepFaceChip:
    """The reference is DeepFace's own `extract_face`, fed with a box and eyes as its mtcnn backend gives them."""

    def reference(self, photo: np.ndarray, box: tuple[int, int, int, int], landmarks: np.ndarray) -> np.ndarray:
        import cv2
        from deepface.models.Detector import FacialAreaRegion
        from deepface.modules.detection import extract_face

        # detect_faces pads by half the photo on every side before it detects.
        border_y, border_x = photo.shape[0] // 2, photo.shape[1] // 2
        padded = cv2.copyMakeBorder(photo, border_y, border_y, border_x, border_x, cv2.BORDER_CONSTANT)
        image_left, image_right = (
            tuple(float(v) for v in eye) for eye in landmarks[:2] + np.array([border_x, border_y])
        )
        area = FacialAreaRegion(
            x=box[0] + border_x,
            y=box[1] + border_y,
            w=box[2],
            h=box[3],
            left_eye=image_right,
            right_eye=image_left,
            confidence=1,
        )
        return extract_face(area, padded, True, 0, border_x, border_y, "mtcnn").img

    @settings(max_examples=150, deadline=None)
    @given(
        x=st.integers(-20, 300),
        y=st.integers(-20, 220),
        width=st.integers(8, 180),
        height=st.integers(8, 180),
        degrees=st.floats(-90, 90),
    )
    def test_equals_deepface(self, x, y, width, height, degrees):
        photo = made_photo()
        # Beyond its padding of half the photo DeepFace cuts the surroundings off, and the face comes out a row shorter.
        rows, columns = photo.shape[:2]
        assume(y - height // 2 >= -(rows // 2) and y + height + height // 2 <= rows + rows // 2)
        assume(x - width // 2 >= -(columns // 2) and x + width + width // 2 <= columns + columns // 2)
        landmarks = turned_and_moved(ARCFACE_112 - 56, degrees, width / 112, (x + width / 2, y + height / 2))
        ours = deepface_chip(photo, (x, y, width, height), landmarks)
        np.testing.assert_array_equal(ours, self.reference(photo, (x, y, width, height), landmarks))

    def test_level_eyes_leave_the_box_as_it_is(self):
        photo = made_photo()
        landmarks = np.array([[100, 90], [140, 90], [120, 110], [105, 130], [135, 130]], np.float32)
        np.testing.assert_array_equal(deepface_chip(photo, (80, 60, 81, 101), landmarks), photo[60:161, 80:161])

    def test_an_empty_box_is_refused(self):
        with pytest.raises(ValueError, match="box"):
            deepface_chip(made_photo(), (10, 10, 0.4, 30), DLIB_150)


class TestLetterbox:
    @settings(max_examples=200, deadline=None)
    @given(
        height=st.integers(4, 400),
        width=st.integers(4, 400),
        size=st.sampled_from([160, 112, 150]),
        seed=st.integers(0, 9),
        dtype=st.sampled_from([np.uint8, np.float32, np.float64]),
    )
    def test_bit_equal_to_deepface(self, height, width, size, seed, dtype):
        from deepface.modules.preprocessing import resize_image

        chip = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
        chip = chip if dtype == np.uint8 else (chip / 255).astype(dtype)
        ours = letterbox(chip, size)
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, resize_image(chip, (size, size))[0])

    def test_a_chip_of_nothing_above_one_is_not_divided(self):
        assert letterbox(np.ones((10, 10, 3), np.uint8), 112).max() == 1

    def test_the_narrowest_chip_keeps_a_pixel(self):
        strip = letterbox(np.full((4000, 1, 3), 255, np.uint8), 160)
        assert strip.sum() == 160 * 3

    def test_an_empty_chip_is_refused(self):
        with pytest.raises(ValueError, match="no pixel"):
            letterbox(np.zeros((0, 10, 3), np.uint8), 160)
