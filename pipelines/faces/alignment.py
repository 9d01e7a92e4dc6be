"""Cutting a face out of a photo the way the network that will read it was trained to see it.

The crop decides as much as the network does, so each model names its crop policy and every function here is
deterministic: same photo, box and landmarks, same pixels.
"""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Five points in the order of `DetectedFace.landmarks`, in pixels of a chip of the size in the name.
# dlib: medians of detected landmarks in chips that dlib itself cut (its own templates have 5 or 68 other points).
DLIB_150 = np.array([[47.0, 44.4], [99.4, 44.3], [73.7, 77.0], [47.8, 97.7], [98.7, 97.1]], dtype=np.float32)
# InsightFace, python-package/insightface/utils/face_align.py.
ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float32,
)


def similarity_transform(source: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
    """The rotation, uniform scale and shift that take `source` closest to `target` in the least-squares sense.

    source, target: (n, 2) corresponding points, n >= 2. Returns the (2, 3) matrix for `cv2.warpAffine`; never a
    reflection. Raises ValueError when the source points are not finite or all coincide.
    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if not np.isfinite(source).all():
        raise ValueError("The landmarks are not finite numbers: detect the face again.")
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    centred = source - source_mean
    variance = (centred**2).sum(axis=1).mean()
    if variance == 0:
        raise ValueError("The landmarks all lie in one point: detect the face again.")
    u, singular, vt = np.linalg.svd((target - target_mean).T @ centred / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    linear = (singular * sign).sum() / variance * rotation
    return np.column_stack([linear, target_mean - linear @ source_mean])


def five_point_chip(
    photo: NDArray[np.uint8], landmarks: NDArray[Any], template: NDArray[np.float32], size: int
) -> NDArray[np.uint8]:
    """The face warped so that its five landmarks lie as closely as possible on the template's.

    photo: (H, W, 3) uint8; landmarks: (5, 2) in photo pixels; template: (5, 2) in pixels of the chip, such as
    `DLIB_150` with size 150. Returns (size, size, 3) uint8; what lies outside the photo is black.
    Raises ValueError for landmarks that cannot be a face's: all in one point, not finite, mirrored.

    A face larger than the chip is warped at a whole multiple of the size and averaged down: plain bilinear sampling
    skips pixels, and sensor noise on 1000 px faces then moved dlib's vector by 0.003-0.005 in cosine distance (its
    threshold is 0.07) against 0.0004-0.001.
    """
    import cv2

    matrix = similarity_transform(landmarks, template)
    # OpenCV refuses to warp a photo with a side over 32766 px (a panorama), so only the face's surroundings are warped.
    scale = float(np.hypot(*matrix[:, 0]))
    # Five points that face forward span a third of the chip; mirrored ones fit only when shrunk to nearly nothing.
    if scale * np.ptp(landmarks, axis=0).max() < size / 10:
        raise ValueError("The landmarks do not lie like a face's: detect the face again.")
    centre = np.linalg.solve(matrix[:, :2], (size - 1) / 2 - matrix[:, 2])
    reach = ceil(size / scale)  # more than the half diagonal of the chip
    left, top = (int(value) - reach for value in centre)
    region = _cut(photo, left, top, 2 * reach, 2 * reach)
    matrix[:, 2] += matrix[:, :2] @ (left, top)

    factor = max(1, round(1 / scale))
    matrix *= factor
    matrix[:, 2] += (factor - 1) / 2  # pixel centres have whole coordinates
    chip = cv2.warpAffine(region, matrix, (size * factor, size * factor), flags=cv2.INTER_LINEAR)
    return chip if factor == 1 else cv2.resize(chip, (size, size), interpolation=cv2.INTER_AREA)


def deepface_chip(
    photo: NDArray[np.uint8], box: tuple[float, float, float, float], landmarks: NDArray[Any]
) -> NDArray[np.uint8]:
    """The face as DeepFace 0.0.103 cuts it (`extract_faces(align=True, expand_percentage=0)`), before any resizing.

    photo: (H, W, 3) uint8; box: (x, y, width, height) in photo pixels, rounded to whole ones; landmarks: (5, 2) in
    photo pixels, of which the eyes are used. Returns (height, width, 3) uint8; what lies outside the photo is black.
    Raises ValueError for a box that holds no pixel.

    The surroundings of the box, half its size on every side, are turned about their centre until the eyes are level,
    then the box is cut out again. DeepFace's `left_eye` is the person's, the image-right one, hence landmarks[1].
    (DeepFace also turns the box's centre, but that is the centre of the turn.)
    """
    import cv2

    x, y, width, height = (round(value) for value in box)
    if width < 1 or height < 1:
        raise ValueError("The face's box holds no pixel: detect the face again.")
    margin_x, margin_y = width // 2, height // 2
    region = _cut(photo, x - margin_x, y - margin_y, width + 2 * margin_x, height + 2 * margin_y)

    (right_eye_x, right_eye_y), (left_eye_x, left_eye_y) = np.asarray(landmarks, np.float64)[:2]
    angle = float(np.degrees(np.arctan2(left_eye_y - right_eye_y, left_eye_x - right_eye_x)))
    region_height, region_width = region.shape[:2]
    turn = cv2.getRotationMatrix2D((region_width // 2, region_height // 2), angle, 1.0)
    level = cv2.warpAffine(
        region, turn, (region_width, region_height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT
    )
    return level[margin_y : margin_y + height, margin_x : margin_x + width]


def _cut(photo: NDArray[np.uint8], x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """The rectangle of the photo, black where it lies outside."""
    cut = np.zeros((height, width, 3), np.uint8)
    left, top = max(x, 0), max(y, 0)
    inside = photo[top : max(y + height, 0), left : max(x + width, 0)]
    cut[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
    return cut


def letterbox(chip: NDArray[Any], size: int) -> NDArray[np.float32]:
    """DeepFace's resizing for its networks: aspect kept, centred between black bars, values in [0, 1].

    chip: (h, w, 3), uint8 or floating. Returns (size, size, 3) float32, channels in the order given. Values are divided
    by 255 only if one exceeds 1. Bit-equal to `deepface.modules.preprocessing.resize_image` (0.0.103), except that a
    chip so narrow that its short side would vanish keeps one pixel where DeepFace fails. Raises ValueError for an empty
    chip.
    """
    pixels = fit_square(chip, size).astype(np.float32)
    return pixels / np.float32(255) if pixels.max() > 1 else pixels


def fit_square(chip: NDArray[Any], size: int) -> NDArray[Any]:
    """The chip as large as fits into a square, aspect kept, centred between black bars.

    chip: (h, w, 3), uint8 or floating. Returns (size, size, 3) of the same type and value range. Raises ValueError for an
    empty chip.
    """
    import cv2

    height, width = chip.shape[:2]
    if not chip.size:
        raise ValueError("The crop holds no pixel: detect the face again.")
    factor = min(size / height, size / width)
    chip = cv2.resize(chip, (max(1, int(width * factor)), max(1, int(height * factor))))
    rows, columns = size - chip.shape[0], size - chip.shape[1]
    return np.pad(chip, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0)))
