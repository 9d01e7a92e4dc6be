"""From photo file to stored vector: how long each stage takes, and its share; and detection against its package's own.

    .venv/bin/python benchmarks/stages.py [--models dlib facenet arcface] [--rounds 3] [--work-dir DIR]

Each round is a new session with all photos, taken through the services that the pipeline's assets call: registered (read,
hashed, decoded once to see whether it can be), searched for faces, embedded by each model, written to PostgreSQL with
pgvector. Stages are timed inside of these services, what is left over is a stage too, so the shares make 100 %.

Then the same photos go through our detector and through the cascade of the package `mtcnn` (the same networks, on
TensorFlow), in turns. Loading and the first time are not timed.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from embedding import Spent, machine, middle, spent
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from workplace import Workplace, workplace

from pipelines.database import crops
from pipelines.resources.embedding.model import EmbeddingModel
from pipelines.resources.embedding.registry import BUILT_IN
from pipelines.resources.face_detector import FaceDetector, _Mtcnn
from pipelines.resources.photo_reader import read_photo
from pipelines.resources.photo_store import PhotoStore
from pipelines.services import detection, embedding, intake

READ, FIND, KEEP, CUT, EMBED, WRITE, REST = (
    "read and decode",
    "detect",
    "keep crops for people",
    "cut the model's crops",
    "embed",
    "write vectors",
    "rest: database, bookkeeping",
)
PARTS = {"_propose": "pyramid, first network", "_refine": "second network", "_inspect": "third network"}
# What belongs to which stage; what is timed within something else is taken from that.
TIMED: list[tuple[Any, str, str]] = [
    (PhotoStore, "read", READ),
    (intake, "read_photo", READ),
    (detection, "read_photo", READ),
    (embedding, "read_photo", READ),
    (FaceDetector, "detect", FIND),
    *((_Mtcnn, name, f"{FIND}: {part}") for name, part in PARTS.items()),
    (detection, "cut_out", KEEP),
    (detection, "_sharpness", KEEP),
    (PhotoStore, "write_crop", KEEP),
    (EmbeddingModel, "cut", CUT),
    (EmbeddingModel, "embed", EMBED),
    (crops, "write_embeddings", WRITE),
]


class Stopwatch:
    """Seconds of wall time by stage; of stages within one another the innermost counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stages = [REST]
        self._since = time.perf_counter()

    def switch(self) -> None:
        """Book the time since the last switch to the stage that is running."""
        now = time.perf_counter()
        self.seconds[self._stages[-1]] = self.seconds.get(self._stages[-1], 0) + now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, booked to a stage."""

        def run(*arguments: Any, **named: Any) -> Any:
            self.switch()
            self._stages.append(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.switch()
                self._stages.pop()

        return run


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """The seconds of each stage of what runs within."""
    watch = Stopwatch()
    with ExitStack() as patches:
        for place, name, stage in TIMED:
            patches.enter_context(mock.patch.object(place, name, watch.timed(getattr(place, name), stage)))
        yield watch.seconds
    watch.switch()


def main() -> None:
    """Parses the command line, runs both parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(BUILT_IN), default=["dlib", "facenet", "arcface"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, help="keeps random weights and converted files; default: removed")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(machine())
    with workplace(arguments.work_dir) as place:
        console.print(by_stage(place, arguments.models, arguments.rounds))
        console.print(detectors(place, arguments.rounds))


def by_stage(place: Workplace, models: list[str], rounds: int) -> Table:
    """Milliseconds a photo in each stage and its share, for each model."""
    photos, which = place.class_photos()
    services = {}
    weights = {}
    for model in models:
        services[model], weights[model] = place.embedding(model)
    times: dict[str, list[dict[str, float]]] = {model: [] for model in models}
    found = 0
    for number in range(rounds + 1):  # the first round, in which everything is loaded, does not count
        with stages() as until_crops:
            key = place.add_session(f"round_{number}", photos)
            found = place.detection().detect_session(key).crops
        for model, service in services.items():
            with stages() as seconds:
                service.embed_session(key)
            if number:
                every = {*until_crops, *seconds}
                times[model].append({stage: until_crops.get(stage, 0) + seconds.get(stage, 0) for stage in every})

    table = Table(title=f"{len(photos)} photos of {which} with {found} faces, {rounds} rounds: ms per photo")
    table.add_column("stage")
    for model in models:
        table.add_column(f"{model} ({weights[model]})")
        table.add_column("share")
    totals = {model: statistics.median(sum(each.values()) for each in times[model]) for model in models}
    for stage in (READ, *(f"{FIND}: {part}" for part in PARTS.values()), FIND, KEEP, CUT, EMBED, WRITE, REST):
        cells = []
        for model in models:
            middle_one = statistics.median(each.get(stage, 0) for each in times[model])
            cells += [f"{1000 * middle_one / len(photos):.1f}", f"{middle_one / totals[model]:.0%}"]
        table.add_row("detect: rest" if stage == FIND else stage, *cells)
    table.add_row("all", *(cell for total in totals.values() for cell in (f"{1000 * total / len(photos):.1f}", "")))
    return table


def detectors(place: Workplace, rounds: int) -> Table:
    """Ours and the package's cascade on the same photos, in turns."""
    from mtcnn import MTCNN

    photos, _ = place.class_photos()
    pixels = [read_photo(photo.read_bytes(), photo.name, 150).pixels for photo in photos]
    ways: dict[str, Callable[[NDArray[np.uint8]], list[Any]]] = {
        "ours": FaceDetector().detect,
        "the package's cascade": MTCNN().detect_faces,
    }
    times: dict[str, list[Spent]] = {way: [] for way in ways}
    faces = {way: sum(len(detect(photo)) for photo in pixels) for way, detect in ways.items()}
    for _ in range(rounds):
        for way, detect in ways.items():
            times[way].append(spent(lambda detect=detect: [detect(photo) for photo in pixels]))  # type: ignore[misc]
    table = Table(title="Detection on the same photos")
    for heading in ("way", "ms per photo", "processor ms per photo", "times ours", "faces"):
        table.add_column(heading)
    for way, took in times.items():
        table.add_row(
            way,
            middle([1000 * each.wall / len(pixels) for each in took], ".0f"),
            middle([1000 * each.processor / len(pixels) for each in took], ".0f"),
            middle([each.wall / our.wall for each, our in zip(took, times["ours"], strict=True)], ".1f"),
            str(faces[way]),
        )
    return table


if __name__ == "__main__":
    main()
