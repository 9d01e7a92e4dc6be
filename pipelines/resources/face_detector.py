"""Finds faces in photos: MTCNN, or any detector that DeepFace offers, behind one Dagster resource.

MTCNN is Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016, with
the trained networks of the package `mtcnn`. They run on ONNX Runtime, in a cascade of our own. The package's needs
TensorFlow (6 s and 590 MB to load against 0.4 s and 110 MB) and two to three times as long per photo; its memory grows
with the square of the proposals (13 megapixels of gravel: 5.7 GB against 0.6); and its pyramid is right for 20 px faces
only: with `min_face_size=30` it ends in an error that the package takes for "no faces", whatever the photo shows.
"""

import os
import shutil
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.errors import ModelError
from pipelines.faces.face import DetectedFace
from pipelines.resources.embedding.weights import replacing
from pipelines.settings import Settings, get_settings

Floats = NDArray[np.floating[Any]]

# Side of the window that MTCNN's first network slides over the pyramid: no photo below it has a face to find.
_WINDOW = 12
_PYRAMID_STEP = 0.709  # about sqrt(1/2): each level has half the pixels of the one before
_BAND = 512  # rows of a level searched at a time, which bounds memory; even, for the network moves in steps of 2

# The first two thresholds are the paper's. What the third network lets pass is only a candidate, for it looks again.
_PROPOSAL_THRESHOLD, _REFINED_THRESHOLD, _CANDIDATE_THRESHOLD = 0.6, 0.7, 0.6
# The median face of a photo that is the right way up. Of labelled photos on their side the median was 0.92 at most; a
# drawing without any face, looked at sideways, had one of 0.90.
_CLEAR_CONFIDENCE = 0.98
# Share of white pixels from which a photo without a clear face is looked at again with its contrast restored.
_WASHED_OUT = 0.25
# A photo of at most this longer side is enlarged: its faces are small, and enlarged they are clearer to the networks (of
# seven faces of 10 to 18 px six were found, and one of those with 0.95; at three times the size all, with 1.00).
_THUMBNAIL, _ENLARGEMENT = 256, 3.0
# Part of the version string: raise it with every change to the code here that changes what is found.
_CASCADE = 2

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
    """The three networks and the cascade over them."""

    def __init__(self) -> None:
        self._pnet = _network("pnet", "conv pool2 conv conv", None)
        self._rnet = _network("rnet", "conv pool3 conv pool3valid conv flatten dense", 24)
        self._onet = _network("onet", "conv pool3 conv pool3valid conv pool2 conv flatten dense", 48)

    def find(self, photo: NDArray[np.uint8], min_face_px: int, min_confidence: float) -> _Found:
        """Faces of at least `min_confidence`, in the photo as it is or, if there are none that are clear, turned.

        Where there is none in an overexposed photo, what little contrast it has is restored and looked at.
        """
        best = self._look(photo, min_face_px, min_confidence)
        if best.is_clear():
            return best
        for quarter_turns in (1, 2, 3):
            turned = np.ascontiguousarray(np.rot90(photo, quarter_turns))
            seen = self._look(turned, min_face_px, min_confidence)
            if seen.is_clear() and seen.confidences.sum() > best.confidences.sum():
                best = _turn_back(seen, photo.shape[1], photo.shape[0], quarter_turns)
        if not len(best.confidences) and (photo.min(axis=2) >= 250).mean() >= _WASHED_OUT:
            return self._look(_with_contrast(photo), min_face_px, min_confidence)
        return best

    def _look(self, photo: NDArray[np.uint8], min_face_px: int, min_confidence: float) -> _Found:
        """Faces in the photo as it is.

        The third network looks twice, the second time at the box it has corrected; the confidence is the mean. A face
        keeps its score, what only happened to look like one in the first crop loses it (rocket flames: 0.92, 0.52).
        """
        candidates = self._inspect(photo, self._refine(photo, self._propose(photo, min_face_px)))
        candidates = candidates.best(_CANDIDATE_THRESHOLD)
        again = self._inspect(photo, candidates.corners)
        return again._replace(confidences=(candidates.confidences + again.confidences) / 2).best(min_confidence)

    def _propose(self, photo: NDArray[np.uint8], min_face_px: int) -> Floats:
        """First network: (n, 4) corners of windows that may hold a face, from all levels of an image pyramid."""
        import cv2

        height, width = photo.shape[:2]
        corners, scores = [_NOTHING.corners], [_NOTHING.confidences]
        scale = _WINDOW / min_face_px
        while min(height, width) * scale >= _WINDOW:
            size = (round(width * scale), round(height * scale))
            level = cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
            bands = [self._propose_in_band(level, top) for top in range(0, size[1] - _WINDOW + 1, _BAND)]
            boxes = np.concatenate([band[0] for band in bands])
            likeness = np.concatenate([band[1] for band in bands])
            chosen = _suppress(boxes, likeness, 0.5)
            corners.append(boxes[chosen] * ([width / size[0], height / size[1]] * 2))
            scores.append(likeness[chosen])
            scale *= _PYRAMID_STEP
        boxes = np.concatenate(corners)
        return boxes[_suppress(boxes, np.concatenate(scores), 0.7)]

    def _propose_in_band(self, level: NDArray[np.uint8], top: int) -> tuple[Floats, Floats]:
        """Corners and scores of the windows whose upper edge is within _BAND rows from `top` of a pyramid level."""
        band = level[top : top + _BAND + _WINDOW - 2]
        corrections, likeness = self._pnet.run(None, {"image": _normalise(band[None])})
        scores = likeness[0, 1]
        y, x = np.nonzero(scores > _PROPOSAL_THRESHOLD)
        left, upper = 2 * x, 2 * y + top
        windows = np.stack([left + 1, upper + 1, left + _WINDOW, upper + _WINDOW], axis=1)
        return windows + corrections[0][:, y, x].T * (_WINDOW - 1), scores[y, x]

    def _refine(self, photo: NDArray[np.uint8], corners: Floats) -> Floats:
        """Second network: throws out most windows and corrects the others."""
        if not len(corners):
            return corners
        squares = _squares(corners)
        corrections, likeness = _run(self._rnet, _crops(photo, squares, 24))
        likely = likeness[:, 1] > _REFINED_THRESHOLD
        refined = _correct(squares, corrections)[likely]
        return refined[_suppress(refined, likeness[likely, 1], 0.7)]

    def _inspect(self, photo: NDArray[np.uint8], corners: Floats) -> _Found:
        """Third network: corrected boxes, landmarks and scores, each the mean over the crop and its mirror image.

        Of a photo shifted and scaled a little, this and the second look move landmarks by 0.4 % of the face's width
        instead of 0.7 %, box edges by 0.6 % instead of 1.3 %.
        """
        if not len(corners):
            return _NOTHING
        squares = _squares(corners)
        crops = _crops(photo, squares, 48)
        corrections, points, likeness = _run(self._onet, crops)
        mirror_corrections, mirror_points, mirror_likeness = _run(self._onet, crops[:, :, ::-1])
        corrections = (corrections + mirror_corrections[:, [2, 1, 0, 3]] * [-1, 1, -1, 1]) / 2
        x = (points[:, :5] + 1 - mirror_points[:, [1, 0, 2, 4, 3]]) / 2
        y = (points[:, 5:] + mirror_points[:, [6, 5, 7, 9, 8]]) / 2
        landmarks = squares[:, None, :2] - 1 + np.stack([x, y], axis=2) * _extents(squares)[:, None]
        scores = (likeness[:, 1] + mirror_likeness[:, 1]) / 2
        return _Found(_correct(squares, corrections), landmarks, scores)


@lru_cache(maxsize=1)
def _mtcnn() -> _Mtcnn:
    return _Mtcnn()


def _network(name: str, layers: str, side: int | None) -> Any:
    """An ONNX Runtime session of one of the package's networks, built from the arrays in its weights file.

    It takes `image`, (n, side, side, 3) float32 in [-1, 1], and gives what the package's Keras network gives (channels
    second): box corrections, from the third network also landmarks, and softmax(no face, face).
    """
    import joblib
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    package = find_spec("mtcnn")  # found, not imported: `import mtcnn` imports TensorFlow
    if package is None or package.origin is None:
        raise ModelError("The face detector 'mtcnn' cannot run: install the Python package mtcnn.")
    arrays = joblib.load(Path(package.origin).parent / "assets" / "weights" / f"{name}.lz4")
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{operator}_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def constant(array: NDArray[np.float32]) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), f"constant_{len(constants)}"))
        return constants[-1].name

    def weighted(kind: str, x: str) -> str:
        kernel, bias = arrays.pop(0), arrays.pop(0)
        if kind == "conv":
            return add("Conv", x, constant(kernel.transpose(3, 2, 0, 1)), constant(bias))
        return add("Gemm", x, constant(kernel), constant(bias))

    x = add("Transpose", "image", perm=[0, 3, 1, 2])
    for kind in layers.split():
        if kind in ("conv", "dense"):
            x = weighted(kind, x)
            slopes = arrays.pop(0)
            x = add("PRelu", x, constant(slopes.reshape(-1, 1, 1) if kind == "conv" else slopes))
        elif kind == "flatten":  # the networks were trained with columns before rows
            x = add("Flatten", add("Transpose", x, perm=[0, 3, 2, 1]))
        else:
            padding = "VALID" if kind.endswith("valid") else "SAME_UPPER"
            x = add("MaxPool", x, kernel_shape=[int(kind[4])] * 2, strides=[2, 2], auto_pad=padding)
    outputs = []
    while arrays:
        outputs.append(weighted("conv" if side is None else "dense", x))
    outputs[-1] = add("Softmax", outputs[-1], axis=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", side or "height", side or "width", 3])
    results = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    graph = helper.make_graph(nodes, name, [image], results, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False  # the arena would keep the memory of the largest photo seen
    # Threads that spin while they wait take twice the processor time, from whatever else runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(network: Any, crops: NDArray[np.uint8]) -> list[Floats]:
    """The network's outputs for (n, side, side, 3) crops, n > 0, in chunks that bound memory."""
    chunks = [network.run(None, {"image": _normalise(crops[i : i + 256])}) for i in range(0, len(crops), 256)]
    return [np.concatenate(parts) for parts in zip(*chunks, strict=True)]


def _normalise(images: NDArray[np.uint8]) -> Floats:
    return (images.astype(np.float32) - 127.5) / 128


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


def _crops(photo: NDArray[np.uint8], squares: Floats, side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3): what the squares show, averaged down, with grey where they lie outside the photo."""
    import cv2

    crops = np.empty((len(squares), side, side, 3), dtype=np.uint8)
    for index, (left, top, right, _) in enumerate(np.rint(squares).astype(int).tolist()):
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

    The overlap is the intersection's share of the union, or of the smaller box. Memory is linear in the boxes.
    """
    areas = np.prod((corners[:, 2:] - corners[:, :2]).clip(0), axis=1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        upper_left = np.maximum(corners[best, :2], corners[order, :2])
        lower_right = np.minimum(corners[best, 2:], corners[order, 2:])
        common = np.prod((lower_right - upper_left).clip(0), axis=1)
        whole = np.minimum(areas[best], areas[order]) if of_smaller else areas[best] + areas[order] - common
        order = order[common <= max_overlap * whole]
    return np.array(kept, dtype=np.intp)


def _with_contrast(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey version of an overexposed photo, in which what is nearly white can be told from what is white.

    Of each pixel the darkest channel, which was the last to saturate; then Zuiderveld, "Contrast limited adaptive
    histogram equalization", 1994. Of a group photo with pure white skin it gives five faces of seven instead of none.
    """
    import cv2

    darkest = (255 * (photo.min(axis=2) / np.float32(255)) ** 4).astype(np.uint8)
    smooth = cv2.GaussianBlur(darkest, (0, 0), max(photo.shape) / 500)  # blocks of JPEG show at such contrast
    grey = cv2.createCLAHE(clipLimit=2, tileGridSize=(8, 8)).apply(smooth)
    return np.repeat(grey[..., None], 3, axis=2)


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
