"""Seeded random weights in DeepFace's own .h5 format, for speed and plumbing only: their vectors say nothing of faces.

Tests and benchmarks use them where the published files are not at hand. They need `allow_unverified_weights`.
"""

from pathlib import Path
from unittest import mock

import numpy as np

from pipelines.resources.embedding.engines import deepface_client_class
from pipelines.resources.embedding.registry import get_spec


def make_random_weights(name: str, folder: Path, seed: int) -> Path:
    """Writes the weights file of a Keras model of the registry into `folder` and returns its path.

    The architecture is DeepFace's own. Every number is drawn, those that Keras starts at 0 or 1 too (batch
    normalisation, biases, PReLU), so that a confusion of two of them changes the vectors.
    """
    from deepface.commons import weight_utils

    spec = get_spec(name)
    with (
        mock.patch.object(weight_utils, "download_weights_if_necessary"),
        mock.patch.object(weight_utils, "load_model_weights", lambda model, **_: model),
    ):
        network = deepface_client_class(spec)().model

    rng = np.random.default_rng(seed)
    for layer in network.layers:
        layer.set_weights([_draw(rng, variable.name, variable.shape) for variable in layer.weights])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / spec.weights_file
    network.save_weights(path)
    return path


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    match name.rpartition("/")[2].partition(":")[0]:
        case "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        case "gamma" | "moving_variance":
            return rng.uniform(0.5, 1.5, shape)
        case "beta" | "moving_mean" | "bias":
            return rng.normal(0, 0.3, shape)
        case "alpha":
            return rng.uniform(0, 0.4, shape)
        case unknown:
            raise ValueError(f"a layer has a variable {unknown} that this does not know")
