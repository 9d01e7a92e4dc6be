import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.faces.alignment import DLIB_150, five_point_chip
from pipelines.faces.quality import QualityGate, sharpness, yaw_degrees
from pipelines.settings import PROJECT_ROOT

GOOD = {"size": 80.0, "sharpness": 0.5, "confidence": 0.99, "yaw": 5.0}
FACES = PROJECT_ROOT.parent / "shared" / "data" / "faces"


def made_chip(size: int = 150) -> np.ndarray:
    """Edges at several scales, as a face has."""
    import cv2

    y, x = np.mgrid[:size, :size] / size
    grey = 120 + 50 * np.sign(np.sin(9 * x)) * np.sign(np.cos(7 * y)) + 30 * np.sin(60 * x * y)
    return cv2.GaussianBlur(np.repeat(grey[:, :, None], 3, axis=2).clip(0, 255).astype(np.uint8), (0, 0), size / 150)


class TestSharpness:
    def test_blur_lowers_it_step_by_step(self):
        import cv2

        values = [
            sharpness(cv2.GaussianBlur(made_chip(), (0, 0), sigma) if sigma else made_chip()) for sigma in (0, 1, 2, 4)
        ]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] / 3

    @pytest.mark.parametrize(("gain", "offset"), [(0.4, 0), (0.4, 120), (1.2, -10)])
    def test_exposure_and_contrast_do_not_matter(self, gain, offset):
        chip = made_chip()
        changed = (chip * gain + offset).clip(0, 255).astype(np.uint8)
        assert sharpness(changed) == pytest.approx(sharpness(chip), rel=0.1)

    @pytest.mark.parametrize("size", [112, 224, 300])
    def test_size_does_not_matter(self, size):
        assert sharpness(made_chip(size)) == pytest.approx(sharpness(made_chip(150)), rel=0.15)

    def test_enlarging_adds_no_sharpness(self):
        import cv2

        tiny = cv2.resize(made_chip(), (20, 20), interpolation=cv2.INTER_AREA)
        assert sharpness(cv2.resize(tiny, (150, 150))) < sharpness(made_chip()) / 2

    def test_a_flat_chip_has_none(self):
        assert sharpness(np.full((150, 150, 3), 90, np.uint8)) == 0


class TestYaw:
    def head(self, yaw: float, roll: float, pitch: float) -> np.ndarray:
        """Five points of an average head (mm; x image-right, y down, z away from the viewer), turned and projected."""
        points = np.array([[-31, -35, 0], [31, -35, 0], [0, 0, -28], [-25, 35, 0], [25, 35, 0]], float)
        a, b, c = np.radians([yaw, pitch, roll])
        # The nose, nearer to the viewer than the turning axis, goes image-right for positive yaw.
        turn_yaw = np.array([[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]])
        turn_pitch = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
        turn_roll = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
        return (points @ (turn_roll @ turn_pitch @ turn_yaw).T)[:, :2] + 200

    @given(yaw=st.floats(-70, 70), roll=st.floats(-80, 80), pitch=st.floats(-15, 15))
    def test_finds_the_turn_of_an_average_head(self, yaw, roll, pitch):
        assert yaw_degrees(self.head(yaw, roll, pitch)) == pytest.approx(yaw, abs=9)

    def test_the_dlib_template_looks_ahead(self):
        assert abs(yaw_degrees(DLIB_150)) < 5

    def test_points_that_coincide_count_as_turned_away(self):
        assert yaw_degrees(np.ones((5, 2))) == 90


class TestQualityGate:
    def test_a_good_face_has_no_reasons(self):
        assert QualityGate().reasons(**GOOD) == []

    @pytest.mark.parametrize(
        ("flaw", "word"),
        [
            ({"size": 31.9}, "smaller"),
            ({"sharpness": 0.1}, "blurred"),
            ({"confidence": 0.5}, "hardly"),
            ({"yaw": -61}, "turned"),
            ({"sharpness": math.nan}, "blurred"),
        ],
    )
    def test_each_flaw_has_its_reason(self, flaw, word):
        (reason,) = QualityGate().reasons(**(GOOD | flaw))
        assert word in reason

    def test_several_flaws_are_all_named_and_limits_pass(self):
        gate = QualityGate(min_size=40, min_sharpness=0.2, min_confidence=0.8, max_yaw=30)
        assert gate.reasons(size=40, sharpness=0.2, confidence=0.8, yaw=30) == []
        assert len(gate.reasons(size=39, sharpness=0.1, confidence=0.7, yaw=-31)) == 4


@pytest.mark.slow
@pytest.mark.skipif(not FACES.is_dir(), reason="needs the shared face photos beside the repository")
def test_the_default_gate_on_real_photos():
    """Every face of a sharp class photo is usable, none of a heavily blurred one."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from mtcnn import MTCNN
    from PIL import Image

    detector = MTCNN()

    def reasons(path: str) -> list[list[str]]:
        photo = np.asarray(Image.open(FACES / path).convert("RGB"))
        found = []
        for row in detector.detect_faces(photo, output_type="numpy"):
            landmarks = row[6:16].reshape(2, 5).T
            found.append(
                QualityGate().reasons(
                    size=min(row[3:5]),
                    sharpness=sharpness(five_point_chip(photo, landmarks, DLIB_150, 150)),
                    confidence=row[5],
                    yaw=yaw_degrees(landmarks),
                )
            )
        return found

    for path in ("session_01/photo_1.jpg", "session_01/photo_2.jpg", "session_03/photo_1.jpg"):
        faces = reasons(f"sessions/caltech_class/{path}")
        assert len(faces) >= 5
        assert not any(faces)
    sharp = reasons("robustness/exif_orientation/sts106_orient1.jpg")
    blurred = reasons("robustness/degraded/sts106_blur6.jpg")
    assert len(sharp) == len(blurred) == 7
    assert not any(sharp)
    assert all(blurred)
