"""Crops a second: our embedding path against `DeepFace.represent` one crop at a time, and against the machine's peak.

    .venv/bin/python benchmarks/embedding.py [--models facenet arcface dlib] [--crops 64] [--rounds 3] [--work-dir DIR]

One process runs everything in turns, round by round, so that another program on the machine slows all alike. Timed is
the way from a crop (uint8 pixels) to its vector: resizing, network, normalisation; loading and the first call are not.

The peak is the fastest product of two square float32 matrices, by numpy's BLAS or by ONNX Runtime, in the same round. A
network's work is what its convolutions and matrix products come to, two operations for a multiplication and an addition;
all else that is done for a crop counts as time only.
Where a model's published weights are not there, seeded random ones are made: right for speed, useless for faces.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray
from random_weights import make_random_weights
from rich.console import Console
from rich.table import Table

from pipelines.faces.face import DetectedFace
from pipelines.resources.embedding.dlib_network import dlib_onnx
from pipelines.resources.embedding.engines import convert_to_onnx
from pipelines.resources.embedding.registry import BUILT_IN, get_spec
from pipelines.resources.embedding.weights import require_weights, weights_status
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.settings import Settings, get_settings

TARGET_RATIOS = {"facenet": 14, "arcface": 3.6, "dlib": 10}
TARGET_SHARES = {"facenet": 0.85, "arcface": 0.85}
# Sides of the matrices multiplied for the peak: BLAS libraries differ in what suits them.
MATRIX_SIDES = (512, 1024, 2048)


class Spent(NamedTuple):
    """Seconds that one call took: of wall time, and of all cores' processor time."""

    wall: float
    processor: float


def main() -> None:
    """Parses the command line, runs every model and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(BUILT_IN), default=["facenet", "arcface", "dlib"])
    parser.add_argument(
        "--engine", choices=["auto", "onnx", "onnx-int8", "tensorflow"], default="auto", help="what our path runs on"
    )
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, help="keeps random weights and converted files; default: removed")
    arguments = parser.parse_args()

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(machine())
    speeds, shares = Table(title="Crops per second"), Table(title="The same rounds against the peak of the machine")
    for heading in ("model", "engine", "ours, crops/s", "represent, crops/s", "ratio", "target", "cosine", "weights"):
        speeds.add_column(heading)
    for heading in ("model", "GFLOP/crop", "ours, GFLOP/s", "sgemm, GFLOP/s", "share", "target"):
        shares.add_column(heading)
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.models:
            settings, weights = settings_with_weights(name, arguments.work_dir or Path(temporary))
            resource = EmbeddingModels.from_settings(settings.model_copy(update={"engine": arguments.engine}))
            speed, share = measure(name, resource, settings, arguments.crops, arguments.rounds)
            speeds.add_row(name, *speed, weights)
            shares.add_row(name, *share)
    console.print(speeds)
    console.print(shares)


def settings_with_weights(name: str, work_dir: Path) -> tuple[Settings, str]:
    """The process's settings where they have the published weights, else settings that lead to random ones."""
    settings, spec = get_settings(), get_spec(name)
    if weights_status(spec, settings).state == "verified":
        return settings, "published"
    settings = settings.model_copy(update={"deepface_home": work_dir.resolve(), "allow_unverified_weights": True})
    if weights_status(spec, settings).state == "missing":
        make_random_weights(name, settings.weights_folder, seed=0)
    return settings, "random: speed only"


def measure(
    name: str, resource: EmbeddingModels, settings: Settings, count: int, rounds: int
) -> tuple[list[str], list[str]]:
    """Both paths and the peak in turns, on the same crops; the two tables' rows but for what the caller knows."""
    model = resource.get(name)
    os.environ["DEEPFACE_HOME"] = resource.deepface_folder
    from deepface import DeepFace

    photo, faces = sample_faces(count)
    chips = [model.cut(photo, face) for face in faces]

    def ours() -> list[NDArray[np.float32]]:
        return [vector for vector in model.embed(chips) if not isinstance(vector, Exception)]

    def represent(chip: NDArray[np.uint8]) -> NDArray[np.float32]:
        (result,) = DeepFace.represent(
            chip[..., ::-1], model_name=model.spec.deepface_name, detector_backend="skip", enforce_detection=False
        )
        return np.array(result["embedding"], np.float32)

    def theirs() -> list[NDArray[np.float32]]:
        return [represent(chip) for chip in chips]

    # The first calls, which build and warm up, are for comparing the vectors.
    cosines = [float(a @ b / np.linalg.norm(b)) for a, b in zip(ours(), theirs(), strict=True)]
    operations = 2 * multiply_adds(name, settings)
    products = matrix_products()
    ratios, our_speeds, their_speeds, peaks, shares = [], [], [], [], []
    for _ in range(rounds):
        # On both sides of what it is compared with: how busy the machine is changes by the second.
        before, mine, after, their = fastest(products), spent(ours).wall, fastest(products), spent(theirs).wall
        ratios.append(their / mine)
        our_speeds.append(count / mine)
        their_speeds.append(count / their)
        peaks.append(max(before, after))
        shares.append(operations * count / mine / max(before, after))
    speed = [
        model.version.split("-")[-2],
        middle(our_speeds, ".1f"),
        middle(their_speeds, ".1f"),
        middle(ratios, ".1f"),
        f">= {TARGET_RATIOS[name]}" if name in TARGET_RATIOS else "",
        f"{min(cosines):.7f}",
    ]
    share = [
        f"{operations / 1e9:.3f}",
        middle([each * operations / 1e9 for each in our_speeds], ".0f"),
        middle([each / 1e9 for each in peaks], ".0f"),
        middle(shares, ".0%"),
        f">= {TARGET_SHARES[name]:.0%}" if name in TARGET_SHARES else "",
    ]
    return speed, share


def middle(values: Sequence[float], form: str) -> str:
    """The median of the rounds, with the lowest and the highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def multiply_adds(name: str, settings: Settings) -> int:
    """Multiplications, each with an addition, that the model's network takes for one crop, by its float32 ONNX form."""
    import onnx

    spec = get_spec(name)
    weights = require_weights(spec, settings).path
    if spec.framework == "dlib":
        model = onnx.load_from_string(dlib_onnx(weights))
    else:
        file = weights.with_name(spec.onnx_file or spec.weights_file)
        model = onnx.load(file if file.is_file() else convert_to_onnx(name, settings))
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for tensor in (*graph.value_info, *graph.output):
        sizes[tensor.name] = [dimension.dim_value for dimension in tensor.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":  # (out, in, rows, columns): that many for each number that comes out
            total += int(np.prod(sizes[node.output[0]]) * np.prod(sizes[node.input[1]][1:]))
        elif node.op_type in ("Gemm", "MatMul"):
            total += int(np.prod(sizes[node.output[0]][:-1]) * np.prod(sizes[node.input[1]]))
    return total


def matrix_products() -> list[tuple[int, Callable[[], object]]]:
    """Products of float32 matrices, each with its number of operations: by numpy's BLAS and by ONNX Runtime."""
    import onnxruntime
    from onnx import TensorProto, helper

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    products: list[tuple[int, Callable[[], object]]] = []
    for side in MATRIX_SIDES:
        a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "abc")
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", [a, b], [c])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        matrix = np.random.default_rng(0).random((side, side), np.float32)
        products += [
            (2 * side**3, partial(np.matmul, matrix, matrix)),
            (2 * side**3, partial(session.run, None, {"a": matrix, "b": matrix})),
        ]
    return products


def fastest(products: Sequence[tuple[int, Callable[[], object]]], repeats: int = 7) -> float:
    """The highest rate of the products, in operations a second."""
    return max(operations / spent(product).wall for _ in range(repeats) for operations, product in products)


def sample_faces(count: int) -> tuple[NDArray[np.uint8], list[DetectedFace]]:
    """scikit-image's photo of an astronaut and boxes and landmarks that wander a little about her face."""
    from skimage.data import astronaut

    box = np.array([170, 66, 108, 122])
    landmarks = np.array([[202, 112], [246, 110], [226, 138], [205, 154], [246, 152]], np.float32)
    rng = np.random.default_rng(0)
    faces = []
    for shift in rng.integers(-8, 9, (count, 2)):
        x, y, width, height = box + np.array([*shift, *rng.integers(0, 9, 2)])
        faces.append(DetectedFace((x, y, width, height), landmarks + shift.astype(np.float32), 1.0))
    return astronaut(), faces


def spent(path: Callable[[], object]) -> Spent:
    """How long one call takes."""
    wall, processor = time.perf_counter(), time.process_time()
    path()
    return Spent(time.perf_counter() - wall, time.process_time() - processor)


def machine() -> str:
    """What ran this: processor, cores, load and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    packages = ", ".join(f"{package} {version(package)}" for package in ("deepface", "tensorflow", "onnxruntime"))
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{load}; {packages}"


if __name__ == "__main__":
    main()
