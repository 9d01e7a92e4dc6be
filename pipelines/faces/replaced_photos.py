"""Find a photo's faces again after somebody has saved the photo anew: recompressed, resized, brightened or cut."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.faces.face import DetectedFace

# From this correlation on two pictures show one moment. In some 25 photos of classes and crews that were saved anew, at JPEG
# quality 15 or 40, at half or a third of the size, in grey, much brighter, or turned by 2 degrees, the same face had 0.92
# to 1.00 (median 0.99). Of 4,200 pairs of faces in different photos those of like size were compared: two people had 0.86
# at most, one person 0.90. Such a picture is another face, for what people said of the first may be untrue of it.
MIN_CORRELATION = 0.92
# Pixels that the shorter side of a face is shrunk to: noise and what a JPEG loses vanish, and a pair takes 0.7 ms. With 32
# pixels one person's pictures in two photos had up to 0.91, with 64 small faces that were saved anew had less.
_SIDE = 48
# Of the surroundings that a stored crop shows so many of these pixels are left away on each side: room to be elsewhere.
_TRIM = 9
# How much wider or narrower one detection of a face may be than another.
_SIZES = (0.7, 1.43)
# How far around a face it is looked for, as a share of its box.
_REACH = 0.7


class EarlierFace(NamedTuple):
    """A face as it was kept. picture: (h, w, 3) uint8, some surroundings of the box shown; photo_size: width, height."""

    picture: NDArray[np.uint8]
    box_size: tuple[float, float]
    photo_size: tuple[int, int]
    preferred: bool


def faces_found_again(
    earlier: Sequence[EarlierFace], pixels: NDArray[np.uint8], faces: Sequence[DetectedFace]
) -> list[tuple[int, int]]:
    """Which of the photo's faces are earlier ones: pairs (index in faces, index in earlier), each at most once.

    pixels: (H, W, 3) uint8, the photo. A pair's pictures must correlate (zero mean, normalised; Lewis, "Fast normalized
    cross-correlation", 1995), wherever in the photo the face lies by now: either the whole photo was resized, or a part
    was cut out of it. Of all one-to-one pairings the best, in which as many as possible of the `preferred` take part.

    Vectors would not do: the new face has none yet, and two photos of one person are as near as one photo saved twice.
    """
    from scipy.optimize import linear_sum_assignment

    score = np.zeros((len(faces), len(earlier)))
    for row, face in enumerate(faces):
        for column, old in enumerate(earlier):
            resized = pixels.shape[1] / old.photo_size[0]
            found = max(_correlation(old, pixels, face, scale) for scale in {resized, 1.0})
            if found >= MIN_CORRELATION:
                score[row, column] = found + old.preferred
    rows, columns = linear_sum_assignment(score, maximize=True)
    return [(row, column) for row, column in zip(rows.tolist(), columns.tolist(), strict=True) if score[row, column]]


def _correlation(old: EarlierFace, pixels: NDArray[np.uint8], face: DetectedFace, scale: float) -> float:
    """How alike the earlier face, resized by `scale`, is to what the photo shows about this face: -1 to 1."""
    import cv2

    x, y, width, height = face.box
    ratios = (old.box_size[0] * scale / width, old.box_size[1] * scale / height)
    if not all(_SIZES[0] < ratio < _SIZES[1] for ratio in ratios):
        return -1.0
    shrunk = _SIDE / min(width, height)
    top, left = int(max(0, y - _REACH * height)), int(max(0, x - _REACH * width))
    around = pixels[top : int(y + (1 + _REACH) * height) + 1, left : int(x + (1 + _REACH) * width) + 1]
    window = _grey(around, shrunk)
    template = _grey(old.picture, shrunk * scale)[_TRIM:-_TRIM, _TRIM:-_TRIM]
    if min(template.shape) < _SIDE / 2 or any(t > w for t, w in zip(template.shape, window.shape, strict=True)):
        return -1.0
    return float(cv2.matchTemplate(window, template, cv2.TM_CCOEFF_NORMED).max())


def _grey(picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    import cv2

    height, width = picture.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
