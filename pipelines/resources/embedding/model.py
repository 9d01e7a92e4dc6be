"""A loaded embedding model: from a photo to the chip its network was made for, from chips to vectors."""

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import AttendanseeError
from pipelines.faces.alignment import ARCFACE_112, DLIB_150, deepface_chip, five_point_chip
from pipelines.faces.face import DetectedFace
from pipelines.resources.embedding.engines import ENGINE_VERSIONS, EngineName, load_engine
from pipelines.resources.embedding.onnx_runtime import Engine
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding.weights import WeightsStatus


class EmbeddingError(AttendanseeError):
    """One face cannot be cut out or embedded: the message is the reason; other faces go on."""


def version_string(spec: ModelSpec, engine: EngineName, weights: WeightsStatus) -> str:
    """What a vector depends on besides its face: model, crop policy, preprocessing, engine and weights; no spaces.

    A vector of another version is computed anew. Thresholds are not in it, though a threshold is valid for one version
    only: they are applied to vectors that exist, and a changed one must not make any stale.
    """
    sha256 = (weights.sha256 or "missing")[:12]
    return f"{spec.name}-{spec.crop_policy}-{spec.preprocessing.version}-{ENGINE_VERSIONS[engine]}-{sha256}"


class EmbeddingModel:
    """One embedding model with its network in memory; get it from `load_model` or the resource `EmbeddingModels`."""

    def __init__(self, spec: ModelSpec, version: str, engine: Engine, batch_size: int) -> None:
        self.spec = spec
        self.version = version
        self._engine = engine
        self._batch_size = batch_size

    def cut(self, photo: NDArray[np.uint8], face: DetectedFace) -> NDArray[np.uint8]:
        """The face cut out of its photo by the model's crop policy.

        photo: (H, W, 3) uint8 RGB, the one whose coordinates `face` has. Returns (h, w, 3) uint8 RGB, of the network's
        input size for the five-point policies and of the box's size for DeepFace's. Raises EmbeddingError for a face
        without extent.
        """
        size = self.spec.input_size
        try:
            match self.spec.crop_policy:
                case "deepface":
                    return deepface_chip(photo, face.box, face.landmarks)
                case "five_point_dlib":
                    return five_point_chip(photo, face.landmarks, DLIB_150 * np.float32(size / 150), size)
                case "five_point_arcface":
                    return five_point_chip(photo, face.landmarks, ARCFACE_112 * np.float32(size / 112), size)
        except ValueError as error:
            raise EmbeddingError(str(error)) from error

    def embed(self, chips: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32] | EmbeddingError]:
        """One result for each chip, in order: its vector, or why it has none.

        chips: (h, w, 3) uint8 RGB of any size. A vector is float32 (dimension,) of norm 1, for the built-in models with
        the direction that `DeepFace.represent(chip, model_name, detector_backend="skip")` gives. Chips run in batches of
        the model's size.
        """
        results: list[NDArray[np.float32] | EmbeddingError] = []
        for start in range(0, len(chips), self._batch_size):
            results += self._embed_batch(chips[start : start + self._batch_size])
        return results

    def _embed_batch(self, chips: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32] | EmbeddingError]:
        prepared = [self._prepare(chip) for chip in chips]
        images = [image for image in prepared if not isinstance(image, EmbeddingError)]
        vectors = iter(self._engine(np.stack(images)) if images else ())
        return [image if isinstance(image, EmbeddingError) else _unit(next(vectors)) for image in prepared]

    def _prepare(self, chip: NDArray[np.uint8]) -> NDArray[np.float32] | EmbeddingError:
        """The chip as the network takes it."""
        if not isinstance(chip, np.ndarray) or chip.dtype != np.uint8 or chip.ndim != 3 or chip.shape[2] != 3:
            what = f"{chip.dtype} of shape {chip.shape}" if isinstance(chip, np.ndarray) else type(chip).__name__
            return EmbeddingError(f"The crop cannot be embedded: it is {what}, not uint8 of shape (height, width, 3).")
        try:
            return self.spec.preprocessing.image(chip, self.spec.input_size)
        except ValueError as error:
            return EmbeddingError(str(error))


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32] | EmbeddingError:
    norm = np.linalg.norm(vector)
    if not np.isfinite(norm) or norm == 0:
        return EmbeddingError("The crop cannot be embedded: the network's output for it has no direction.")
    return vector / norm


_loading = Lock()  # two threads that want a model at once would load it twice


def load_model(spec: ModelSpec, engine: EngineName, batch_size: int, weights: WeightsStatus) -> EmbeddingModel:
    """The model in memory, loaded once per process and again when its weights file has changed.

    weights: from `require_weights`, so that missing ones are found before any work starts.
    """
    with _loading:
        return _load_model(spec, engine, batch_size, weights)


@lru_cache(maxsize=4)
def _load_model(spec: ModelSpec, engine: EngineName, batch_size: int, weights: WeightsStatus) -> EmbeddingModel:
    network = load_engine(engine, spec, weights, batch_size)
    return EmbeddingModel(spec, version_string(spec, engine, weights), network, batch_size)
