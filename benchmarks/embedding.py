"""Crops a second: our embedding path against `DeepFace.represent` one crop at a time, on the same crops.

    .venv/bin/python benchmarks/embedding.py [--models facenet arcface dlib] [--crops 64] [--rounds 3] [--work-dir DIR]

One process runs both in turns, round by round, so that another program on the machine slows both alike. Timed is the way
from a crop (uint8 pixels) to its vector: resizing, network, normalisation; loading and the first call are not.
Where a model's published weights are not there, seeded random ones are made: right for speed, useless for faces.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray
from random_weights import make_random_weights
from rich.console import Console
from rich.table import Table

from pipelines.faces.face import DetectedFace
from pipelines.resources.embedding.registry import REGISTRY, get_spec
from pipelines.resources.embedding.weights import weights_status
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.settings import Settings, get_settings

TARGET_RATIOS = {"facenet": 10, "arcface": 3, "dlib": 10}


def main() -> None:
    """Parses the command line, runs every model and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(REGISTRY), default=["facenet", "arcface", "dlib"])
    parser.add_argument(
        "--engine", choices=["auto", "onnx", "tensorflow"], default="auto", help="what our path runs on"
    )
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, help="keeps random weights and converted files; default: removed")
    arguments = parser.parse_args()

    table = Table(title=machine())
    for heading in (
        "model",
        "engine",
        "ours, crops/s",
        "represent, crops/s",
        "ratio",
        "target",
        "lowest cosine",
        "weights",
    ):
        table.add_column(heading)
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.models:
            settings, weights = settings_with_weights(name, arguments.work_dir or Path(temporary))
            resource = EmbeddingModels.from_settings(settings.model_copy(update={"engine": arguments.engine}))
            table.add_row(*measure(name, resource, arguments.crops, arguments.rounds), weights)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def settings_with_weights(name: str, work_dir: Path) -> tuple[Settings, str]:
    """The process's settings where they have the published weights, else settings that lead to random ones."""
    settings, spec = get_settings(), get_spec(name)
    if weights_status(spec, settings).state == "verified":
        return settings, "published"
    settings = settings.model_copy(update={"deepface_home": work_dir.resolve(), "allow_unverified_weights": True})
    if weights_status(spec, settings).state == "missing":
        make_random_weights(name, settings.weights_folder, seed=0)
    return settings, "random: speed only"


def measure(name: str, resource: EmbeddingModels, count: int, rounds: int) -> list[str]:
    """Both paths in turns on the same crops; the table row but for its last cell."""
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
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    our_speed, their_speed = (statistics.median(count / each for each in column) for column in zip(*times, strict=True))
    ratios = [b / a for a, b in times]
    ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    target = f">= {TARGET_RATIOS[name]}" if name in TARGET_RATIOS else ""
    engine = model.version.split("-")[-2]
    return [name, engine, f"{our_speed:.1f}", f"{their_speed:.1f}", ratio, target, f"{min(cosines):.7f}"]


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


def seconds(path: Callable[[], object]) -> float:
    """How long one call takes, in seconds of wall time."""
    start = time.perf_counter()
    path()
    return time.perf_counter() - start


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
