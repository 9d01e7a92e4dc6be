"""What runs an embedding network: ONNX Runtime (`onnx`, `onnx-int8`) or DeepFace's own client (`tensorflow`).

`onnx` and `tensorflow` give the same vectors (cosine >= 0.99999, checked on 100 crops when a network is converted).
`onnx-int8` gives others, and is never chosen for anybody: see `quantization`.

The engine is part of the version of a vector, and another version makes the vectors of a whole school stale. So `auto`
depends on the installation alone, not on which files are there: it is `onnx` wherever ONNX Runtime is installed (faster,
a third of the memory, and on a CPU the same bits for any batch size), else `tensorflow`. A network whose conversion
fails its check is refused, with that remedy; engines are not switched behind anybody's back. A GPU is used where the
engine sees one, and changes no version: it computes in float32 as well (TensorFloat-32 is switched off), and machines
with and without one share their vectors.
"""

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ModelError
from pipelines.resources.embedding.definition import plain_reason
from pipelines.resources.embedding.files import replacing
from pipelines.resources.embedding.made_crops import made_crops
from pipelines.resources.embedding.onnx_runtime import Engine, marked_session, onnx_engine, onnx_session
from pipelines.resources.embedding.quantization import CALIBRATION_CROPS, RECIPE, quantize
from pipelines.resources.embedding.registry import ModelSpec, get_spec
from pipelines.resources.embedding.weights import WeightsStatus, require_weights
from pipelines.settings import Settings

EngineSetting = Literal["auto", "onnx", "onnx-int8", "tensorflow"]
EngineName = Literal["onnx", "onnx-int8", "tensorflow"]

# What the version string of a vector calls them; it separates its parts by `-`.
ENGINE_VERSIONS: dict[EngineName, str] = {
    "onnx": "onnx",
    "onnx-int8": f"onnx_int8_{RECIPE}",
    "tensorflow": "tensorflow",
}

# A file that was made from other files keeps their sha256 and how it was made.
_SOURCE_KEY, _RECIPE_KEY = "weights_sha256", "int8_recipe"
# How a made file is compared with what it was made from: on so many crops, so many at once.
_PROBES, _AT_ONCE = 100, 10
# 8 bits may turn vectors, but a network that was ruined by them must not pass for one.
_LEAST_COSINE, _LEAST_INT8_COSINE = 0.99999, 0.95

_log = logging.getLogger(__name__)


def resolve_engine(setting: EngineSetting, spec: ModelSpec) -> EngineName:
    """The engine that a setting stands for; a model that came as an ONNX file runs on ONNX Runtime in any case."""
    engine = _installed_engine() if setting == "auto" else setting
    return "onnx" if engine == "tensorflow" and spec.framework == "onnx" else engine


@lru_cache(maxsize=1)
def _installed_engine() -> EngineName:
    if find_spec("onnxruntime") is not None:
        return "onnx"
    _log.warning("ONNX Runtime is not installed: TensorFlow runs the embedding networks, which takes longer.")
    return "tensorflow"


def load_engine(engine: EngineName, spec: ModelSpec, weights: WeightsStatus, batch_size: int) -> Engine:
    """Loads the network. `weights` comes from `require_weights`; batches of up to `batch_size` crops are taken."""
    if engine == "tensorflow":
        return _load_deepface(spec, weights, batch_size)
    session = _int8_session(spec, weights) if engine == "onnx-int8" else _float_session(spec, weights)
    return _run(spec, session)


def convert_to_onnx(name: str, settings: Settings) -> Path:
    """Makes the ONNX file of a Keras model from its .h5 file, where DeepFace's ONNX engine reads it too.

    The onnx engine does this at the first use; doing it beforehand keeps TensorFlow out of that process. The file
    appears in one step, holds the sha256 of its .h5 file, and is checked against the original network first. Raises
    WeightsError for the weights, ModelError for a model that has no such file or a file that does not agree.
    """
    spec = get_spec(name)
    if spec.onnx_file is None:
        why = (
            "it came as one" if spec.framework == "onnx" else f"its network is built in memory from {spec.weights_file}"
        )
        raise ModelError(f"The model {name!r} needs no ONNX file to be made: {why}.")
    return _convert(spec, require_weights(spec, settings))


def convert_to_int8(name: str, settings: Settings) -> Path:
    """Makes the 8-bit ONNX file of a model from its float32 network, beside its weights.

    The onnx-int8 engine does this at the first use. A warning says how far its vectors are from float32. Raises
    WeightsError for the weights, ModelError where there is no 8-bit form of the network or it ruins it.
    """
    spec = get_spec(name)
    return _make_int8(spec, require_weights(spec, settings))


def _run(spec: ModelSpec, session: Any) -> Engine:
    return onnx_engine(session, spec.onnx_output, one_by_one=spec.one_by_one)


def _float_session(spec: ModelSpec, weights: WeightsStatus) -> Any:
    if spec.onnx_file is None:
        return onnx_session(_float_network(spec, weights))
    converted = marked_session(weights.path.with_name(spec.onnx_file), {_SOURCE_KEY: weights.sha256 or ""})
    return converted or onnx_session(_convert(spec, weights))


def _float_network(spec: ModelSpec, weights: WeightsStatus) -> Path | bytes:
    """The float32 network as an ONNX file or its content; that of a Keras model has been converted."""
    if spec.framework == "dlib":
        from pipelines.resources.embedding.dlib_network import dlib_onnx

        return dlib_onnx(weights.path)
    return weights.path.with_name(spec.onnx_file or spec.weights_file)


def _convert(spec: ModelSpec, weights: WeightsStatus) -> Path:
    from pipelines.resources.embedding.keras_network import keras_onnx

    network = _deepface_client(spec, weights).model
    model = keras_onnx(network, {_SOURCE_KEY: weights.sha256 or ""}).SerializeToString()
    cosine = _lowest_cosine(spec, lambda batch: network(batch, training=False).numpy(), _run(spec, onnx_session(model)))
    if not cosine >= _LEAST_COSINE:
        raise ModelError(
            f"The ONNX form of the model {spec.name!r} does not agree with its weights (cosine {cosine:.6f}): set "
            "ATTENDANSEE_ENGINE=tensorflow."
        )
    assert spec.onnx_file is not None, "only a Keras model is converted"
    target = weights.path.with_name(spec.onnx_file)
    with replacing(target) as stream:
        stream.write(model)
    return target


def _int8_session(spec: ModelSpec, weights: WeightsStatus) -> Any:
    return marked_session(_int8_file(weights), _int8_marks(weights)) or onnx_session(_make_int8(spec, weights))


def _make_int8(spec: ModelSpec, weights: WeightsStatus) -> Path:
    session = _float_session(spec, weights)
    (images,) = session.get_inputs()
    inputs = (
        {images.name: batch} for batch in _batches(spec, CALIBRATION_CROPS, 1 if spec.one_by_one else _AT_ONCE, seed=1)
    )
    try:
        small = quantize(_float_network(spec, weights), inputs, _int8_marks(weights))
    except Exception as error:  # the network may be anybody's, and ONNX Runtime's tools fail in many ways
        raise ModelError(
            f"The model {spec.name!r} cannot be made to run in 8 bits ({plain_reason(error)}): set "
            "ATTENDANSEE_ENGINE=onnx."
        ) from error
    cosine = _lowest_cosine(spec, _run(spec, session), _run(spec, onnx_session(small)))
    if not cosine >= _LEAST_INT8_COSINE:
        raise ModelError(
            f"8 bits ruin the model {spec.name!r} (cosine {cosine:.3f} to its float32 vectors): set ATTENDANSEE_ENGINE=onnx."
        )
    _log.warning(
        f"The 8-bit network of {spec.name} was made. Its vectors are others (lowest cosine to float32 {cosine:.4f} on "
        f"{_PROBES} made crops): evaluate it on photos of your own before use."
    )
    target = _int8_file(weights)
    with replacing(target) as stream:
        stream.write(small)
    return target


def _int8_file(weights: WeightsStatus) -> Path:
    return weights.path.with_suffix(".int8.onnx")


def _int8_marks(weights: WeightsStatus) -> dict[str, str]:
    return {_SOURCE_KEY: weights.sha256 or "", _RECIPE_KEY: str(RECIPE)}


def _lowest_cosine(spec: ModelSpec, one: Engine, other: Engine) -> float:
    """The lowest cosine between the vectors that two networks give for the same made crops; nan where one has none."""
    cosines = []
    for batch in _batches(spec, _PROBES, _AT_ONCE, seed=0):
        a, b = one(batch).astype(np.float64), other(batch).astype(np.float64)
        cosines.append(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    return float(np.concatenate(cosines).min())


def _batches(spec: ModelSpec, count: int, size: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Made crops as the network takes them."""
    crops = made_crops(count, spec.input_size, seed)
    for start in range(0, count, size):
        yield np.stack([spec.preprocessing.image(crop, spec.input_size) for crop in crops[start : start + size]])


def _load_deepface(spec: ModelSpec, weights: WeightsStatus, batch_size: int) -> Engine:
    client = _deepface_client(spec, weights)
    if spec.framework == "dlib":  # dlib's own network, which takes crops one by one
        return lambda batch: np.array([client.forward(image) for image in batch], np.float32)

    import tensorflow as tf

    # As ONNX Runtime has it on a GPU: see the top of this file.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    shape = (batch_size, spec.input_size, spec.input_size, 3)
    # Always the same shape: a new one is a new trace, and TensorFlow's last bits differ between batch sizes.
    network = tf.function(
        lambda images: client.model(images, training=False), input_signature=[tf.TensorSpec(shape, tf.float32)]
    )

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        full = np.zeros(shape, np.float32)
        full[: len(batch)] = batch
        return network(full).numpy()[: len(batch)]

    return run


def _deepface_client(spec: ModelSpec, weights: WeightsStatus) -> Any:
    """DeepFace's own TensorFlow (or dlib) client, weights loaded; it downloads nothing, since the file is there."""
    # DeepFace looks below this folder for .deepface/weights, where `require_weights` has put the file.
    os.environ["DEEPFACE_HOME"] = str(weights.path.parents[2])
    return deepface_client_class(spec)()


def deepface_client_class(spec: ModelSpec) -> Any:
    """The class behind `DeepFace.build_model` for the TensorFlow backend (or dlib)."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from deepface.modules import modeling

    # Not `modeling.build_model`: that obeys DEEPFACE_BACKEND_ENGINE and keeps every model for the rest of the process.
    sources = modeling.AVAILABLE_MODELS["facial_recognition"][spec.deepface_name]
    module, _, client = (sources.get("tensorflow") or sources["any"]).rpartition(".")
    return getattr(import_module(module), client)
