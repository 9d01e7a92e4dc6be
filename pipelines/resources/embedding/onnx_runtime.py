"""Networks on ONNX Runtime: on which device they run, and how crops go through them."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (n, ...) float32 as the model's `Preprocessing` makes it -> (n, dimension) float32.
Engine = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# GPUs whose providers compute in float32. Not CoreML, which takes half precision, nor TensorRT, which builds an engine of
# its own for minutes. TensorFloat-32, CUDA's default, would keep 10 of 23 bits.
_GPU_OPTIONS: dict[str, dict[str, str]] = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "ROCMExecutionProvider": {},
    "DmlExecutionProvider": {},
}
_CPU = "CPUExecutionProvider"


def choose_providers(available: Sequence[str]) -> list[str]:
    """The ONNX Runtime providers to ask for, best first: a GPU that is there, and the CPU in any case, last.

    available: what `onnxruntime.get_available_providers()` says, which is what the installed package was built for; whether
    there is such a device is known only once a network is loaded.

    >>> choose_providers(["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])
    ['CUDAExecutionProvider', 'CPUExecutionProvider']
    """
    return [*(name for name in _GPU_OPTIONS if name in available), _CPU]


def onnx_session(network: Path | bytes) -> Any:
    """An ONNX file, or its content, as an `onnxruntime.InferenceSession`.

    A GPU that cannot be used is told in a warning, and the CPU takes its place.
    """
    import onnxruntime

    gpus = choose_providers(onnxruntime.get_available_providers())[:-1]
    if gpus:
        try:
            session = _session(network, [*gpus, _CPU])
        except Exception as error:  # noqa: BLE001 (drivers fail in many ways; what is wrong with the network fails again below)
            reason = " ".join(str(error).split())
        else:
            # ONNX Runtime itself goes on with the CPU where a GPU's libraries are missing.
            if session.get_providers()[0] != _CPU:
                return session
            reason = "its libraries or its device are missing"
        logging.getLogger(__name__).warning(f"The GPU ({', '.join(gpus)}) is not used, but the CPU: {reason}.")
    return _session(network, [_CPU])


def _session(network: Path | bytes, providers: Sequence[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    options.log_severity_level = 3
    # Threads that wait by spinning gain 15 % on an idle machine and lose 25-60 % beside one other busy process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if "DmlExecutionProvider" in providers:
        options.enable_mem_pattern = False  # as DirectML asks
    source = network if isinstance(network, bytes) else str(network)
    wanted = [(name, _GPU_OPTIONS.get(name, {})) for name in providers]
    return onnxruntime.InferenceSession(source, options, providers=wanted)


def marked_session(path: Path, marks: Mapping[str, str]) -> Any | None:
    """The network of a file that we have made; None where there is none, it is cut off, or its metadata say otherwise."""
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidProtobuf

    if not path.is_file():
        return None
    try:
        session = onnx_session(path)
    except (InvalidArgument, InvalidProtobuf):  # such as half a file that DeepFace was downloading when it was killed
        return None
    # A file without our marks may be any network.
    return session if marks.items() <= session.get_modelmeta().custom_metadata_map.items() else None


def onnx_engine(session: Any, output: str | None = None, *, one_by_one: bool = False) -> Engine:
    """What takes batches through a network with one input.

    output: which one is the vector; None for the first. one_by_one: for a network that takes no more than one crop.
    """
    (images,) = session.get_inputs()
    outputs = [output or session.get_outputs()[0].name]

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if one_by_one:
            return np.concatenate([forward(batch[i : i + 1]) for i in range(len(batch))])
        return forward(batch)

    def forward(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        (vectors,) = session.run(outputs, {images.name: batch})
        # Some networks give (n, dimension, 1, 1).
        return np.asarray(vectors, np.float32).reshape(len(batch), -1)

    return run
