"""Whether a face is good enough to say who it is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Side in pixels to which the middle of a chip is scaled before its sharpness is measured.
_MEASURED_SIDE = 64
# How far the nose point stands in front of the line between the middles of eyes and mouth, as a share of the distance
# between the eyes. Anatomy says 0.5 to 0.6 for the very tip; detectors mark a point short of it.
_NOSE_DEPTH = 0.45


def sharpness(chip: NDArray[np.uint8]) -> float:
    """How much fine detail an aligned face shows for its contrast: about 0.05 (a blur) to 1.5 (noise).

    chip: (h, w, 3) uint8 RGB, from `five_point_chip`; its middle three quarters are measured, since black corners and
    background are not the face. Standard deviation of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in
    brightfield microscopy", ICPR 2000) over that of the grey values, at 64 x 64 px. The fixed size makes large and
    small faces comparable: detail finer than a network sees does not count, and an enlarged tiny face is as blurred as
    it looks. The quotient takes out exposure and contrast. A flat chip has sharpness 0. Noise counts as detail.

    Measured with dlib's network on a class of 12: above 0.15 every face's nearest portrait is the right one, from 0.10
    to 0.15 95 %, below 0.10 63 %.
    """
    import cv2

    grey = cv2.cvtColor(chip, cv2.COLOR_RGB2GRAY)
    rows, columns = grey.shape[0] // 8, grey.shape[1] // 8
    middle = grey[rows : grey.shape[0] - rows, columns : grey.shape[1] - columns]
    middle = cv2.resize(middle, (_MEASURED_SIDE, _MEASURED_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    contrast = float(middle.std())
    if contrast == 0:
        return 0.0
    return float(cv2.Laplacian(middle, cv2.CV_32F)[1:-1, 1:-1].std()) / contrast


def yaw_degrees(landmarks: NDArray[Any]) -> float:
    """About how far the head is turned to a side, in degrees: 0 frontal, positive when the nose points image-right.

    landmarks: (5, 2) as in `DetectedFace`. Orthographic view of an average head: the nose tip leaves the line between
    the middles of eyes and mouth by depth * sin(yaw), while the eyes draw together by cos(yaw). Good for "turned away
    or not", not for a pose: noses differ, and detectors place the points of a profile badly.
    """
    eye, other_eye, nose, mouth, other_mouth = np.asarray(landmarks, np.float64)
    top, bottom = (eye + other_eye) / 2, (mouth + other_mouth) / 2
    down = bottom - top
    length = float(np.hypot(*down))
    if length == 0:
        return 90.0
    right = np.array([down[1], -down[0]]) / length
    offset = float((nose - top) @ right)
    return float(np.degrees(np.arctan2(offset / _NOSE_DEPTH, abs(float((other_eye - eye) @ right)))))


@dataclass(frozen=True)
class QualityGate:
    """What a face must have to be clustered. Limits themselves pass.

    min_size: pixels, of the box's shorter side in the photo. min_sharpness: as `sharpness` gives it.
    min_confidence: the detector's, in [0, 1]. max_yaw: degrees to either side.
    """

    min_size: float = 32
    min_sharpness: float = 0.15
    min_confidence: float = 0.85
    max_yaw: float = 60

    def reasons(self, *, size: float, sharpness: float, confidence: float, yaw: float) -> list[str]:
        """Why the face is not usable, in plain words that are the same for every such face; empty means usable.

        A value that is not a number fails.
        """
        passed = {
            f"smaller than {self.min_size:g} px": size >= self.min_size,
            f"blurred (sharpness below {self.min_sharpness:g})": sharpness >= self.min_sharpness,
            f"hardly a face (confidence below {self.min_confidence:g})": confidence >= self.min_confidence,
            f"turned away by more than {self.max_yaw:g} degrees": abs(yaw) <= self.max_yaw,
        }
        return [reason for reason, ok in passed.items() if not ok]
