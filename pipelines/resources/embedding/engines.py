"""What runs an embedding network: ONNX Runtime (`onnx`) or DeepFace's own client (`tensorflow`).

Both give the same vectors (cosine >= 0.99999). `auto` is `onnx` for every model: faster, a third of the memory, and the
same bits for any batch size. It is not "whichever file is there", since the engine is part of the version of a vector:
a file that appears must not make the vectors of a whole school stale.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ModelError
from pipelines.resources.embedding.registry import ModelSpec, get_spec
from pipelines.resources.embedding.weights import WeightsStatus, replacing, require_weights
from pipelines.settings import Settings

EngineName = Literal["onnx", "tensorflow"]

# (n, size, size, 3) float32 BGR in [0, 1], which is what DeepFace feeds its networks -> (n, dimension) float32.
Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# The key under which a converted file keeps the sha256 of the weights it was made from.
_SOURCE_KEY = "weights_sha256"


def resolve_engine(setting: Literal["auto", "onnx", "tensorflow"]) -> EngineName:
    """The engine that a setting stands for."""
    return "onnx" if setting == "auto" else setting


def load_engine(engine: EngineName, spec: ModelSpec, weights: WeightsStatus, batch_size: int) -> Engine:
    """Loads the network. `weights` comes from `require_weights`; batches of up to `batch_size` crops are taken."""
    if engine == "onnx":
        return _load_onnx(spec, weights)
    return _load_deepface(spec, weights, batch_size)


def convert_to_onnx(name: str, settings: Settings) -> Path:
    """Makes the ONNX file of a Keras model from its .h5 file, where DeepFace's ONNX engine reads it too.

    The onnx engine does this at the first use; doing it beforehand keeps TensorFlow out of that process. The file
    appears in one step, holds the sha256 of its .h5 file, and is checked against the original network first. Raises
    WeightsError for the weights, ModelError for a model that has no such file or a file that does not agree.
    """
    spec = get_spec(name)
    if spec.onnx_file is None:
        raise ModelError(
            f"The model {name!r} needs no ONNX file: its network is built in memory from {spec.weights_file}."
        )
    weights = require_weights(spec, settings)
    return _convert(spec, weights, weights.path.with_name(spec.onnx_file))


def _load_onnx(spec: ModelSpec, weights: WeightsStatus) -> Engine:
    if spec.onnx_file is None:
        from pipelines.resources.embedding.dlib_network import dlib_onnx

        return _onnx_runner(_onnx_session(dlib_onnx(weights.path)))
    path = weights.path.with_name(spec.onnx_file)
    return _onnx_runner(_converted_session(path, weights) or _onnx_session(_convert(spec, weights, path)))


def _converted_session(path: Path, weights: WeightsStatus) -> Any | None:
    """The network of a converted file; None where there is none, it is cut off, or it is of other weights."""
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidProtobuf

    if not path.is_file():
        return None
    try:
        session = _onnx_session(path)
    except (InvalidArgument, InvalidProtobuf):  # such as half a file that DeepFace was downloading when it was killed
        return None
    # A file without our mark may be any network.
    return session if session.get_modelmeta().custom_metadata_map.get(_SOURCE_KEY) == weights.sha256 else None


def _onnx_session(model: Path | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.log_severity_level = 3
    # Threads that wait by spinning gain 15 % on an idle machine and lose 25-60 % beside one other busy process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _onnx_runner(session: Any) -> Engine:
    (images,) = session.get_inputs()

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        (vectors,) = session.run(None, {images.name: batch})
        return vectors

    return run


def _convert(spec: ModelSpec, weights: WeightsStatus, target: Path) -> Path:
    from pipelines.resources.embedding.keras_network import keras_onnx

    network = _deepface_client(spec, weights).model
    model = keras_onnx(network, {_SOURCE_KEY: weights.sha256 or ""}).SerializeToString()
    probe = np.random.default_rng(0).random((2, spec.input_size, spec.input_size, 3), np.float32)
    expected, converted = network(probe, training=False).numpy(), _onnx_runner(_onnx_session(model))(probe)
    error = np.linalg.norm(expected - converted) / np.linalg.norm(expected)
    if not error < 1e-4:
        raise ModelError(
            f"The ONNX form of the model {spec.name!r} does not agree with its weights (relative error {error:.1e}): "
            "set ATTENDANSEE_ENGINE=tensorflow."
        )
    with replacing(target) as stream:
        stream.write(model)
    return target


def _load_deepface(spec: ModelSpec, weights: WeightsStatus, batch_size: int) -> Engine:
    client = _deepface_client(spec, weights)
    if spec.onnx_file is None:  # dlib's own network, which takes crops one by one
        return lambda batch: np.array([client.forward(image) for image in batch], np.float32)

    import tensorflow as tf

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
