"""What a detector says about one face."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DetectedFace:
    """One face in the original photo's pixel coordinates (origin top left, x to the right, y down).

    box: (x, y, width, height) in pixels, inside the photo.
    landmarks: (5, 2) float32: eye, eye, nose, mouth corner, mouth corner, the image-left one of each pair first.
    confidence: the detector's own score in [0, 1].
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float32]
    confidence: float
