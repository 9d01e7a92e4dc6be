"""Clustering all crops of one class: seconds and peak memory as it grows, and the result against average linkage elsewhere.

    .venv/bin/python benchmarks/clustering.py [--sizes 1000 2000 5000 10000 20000] [--compare 5000]

The 512-D vectors are made: 100 students, every fifth with a look-alike, photos of 20 faces that show nobody twice; crops
of unequal quality, the bad ones with something in common across people, as blur and pose have. So neither people nor
threshold are clear-cut, and average linkage itself makes mistakes. The figures say how long it takes and whether the
result is the exact one, nothing about recognition.

Each run is a process of its own, whose peak memory is everything in it: Python, its libraries, the vectors. The second
table is about the first `--compare` crops without their photos, since scikit-learn and SciPy know no cannot-links.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

DIMENSION = 512
STUDENTS = 100
FACES_PER_PHOTO = 20
# ArcFace's verification threshold, at which the service clusters by default.
DISTANCE_THRESHOLD = 0.68
TARGET_SECONDS, TARGET_MB, TARGET_DIFFERENCE = 60, 2048, 0.005


def main() -> None:
    """Makes the class, runs both parts and prints their tables; or, in a process of its own, one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 5000, 10_000, 20_000])
    parser.add_argument("--compare", type=int, default=5000, help="crops of the comparison")
    parser.add_argument("--run", nargs=3, metavar=("FOLDER", "METHOD", "CROPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        folder, method, crops = arguments.run
        print(json.dumps(run(Path(folder), method, int(crops))))
        return
    with tempfile.TemporaryDirectory(prefix="attendansee-benchmark-") as name:
        folder = Path(name)
        in_a_process(folder, "make", max(*arguments.sizes, arguments.compare))
        students = np.load(folder / "students.npy")
        machine = f"{os.cpu_count()} cores, {platform.machine()}, load before {os.getloadavg()[0]:.1f}"
        console = Console()
        console.print(growth(folder, students, arguments.sizes, machine))
        console.print(comparison(folder, students, arguments.compare))


def make_class(crops: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """The crops' vectors (n, 512), students and photos, photo after photo."""
    rng = np.random.default_rng(1)

    def directions(*shape: int) -> NDArray[np.float64]:
        values = rng.normal(size=shape)
        return values / np.linalg.norm(values, axis=-1, keepdims=True)

    people = directions(STUDENTS, DIMENSION)
    people[4::5] += 0.6 * people[3::5]
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    photos = np.arange(crops) // FACES_PER_PHOTO
    students = np.concatenate([rng.permutation(STUDENTS)[:FACES_PER_PHOTO] for _ in range(photos[-1] + 1)])[:crops]
    in_common = directions(8, DIMENSION)
    badness = np.exp(rng.normal(math.log(0.75), 0.45, size=(crops, 1)))
    vectors = people[students]
    vectors += badness * (0.85 * directions(crops, DIMENSION) + 0.5 * directions(crops, 8) @ in_common)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), students, photos


def growth(folder: Path, students: NDArray[np.int64], sizes: list[int], machine: str) -> Table:
    """Our clustering with the photos' cannot-links, size after size."""
    table = Table(title=f"Clustering one class, {DIMENSION}-D; {machine}")
    for heading in ("crops", "photos", "s", "CPU s", "grows with", "peak MB", "clusters", "BCubed F"):
        table.add_column(heading, justify="right")
    before: tuple[int, float] | None = None
    for size in sizes:
        found = in_a_process(folder, "ours with photos", size)
        seconds = found["cpu_seconds"]
        exponent = "" if before is None else f"n^{math.log(seconds / before[1]) / math.log(size / before[0]):.1f}"
        before = size, seconds
        table.add_row(
            *(f"{size}", f"{math.ceil(size / FACES_PER_PHOTO)}", f"{found['seconds']:.2f}", f"{seconds:.2f}"),
            *(exponent, f"{found['peak_mb']:.0f}", f"{len(set(found['labels']))}", f"{f_score(found, students):.4f}"),
        )
    table.caption = f"target at 20000: <= {TARGET_SECONDS} s, <= {TARGET_MB} MB"
    return table


def comparison(folder: Path, students: NDArray[np.int64], crops: int) -> Table:
    """Ours without photos against exact average linkage by scikit-learn and by SciPy, on the same crops."""
    table = Table(title=f"The first {crops} crops without their photos")
    for heading in ("method", "s", "peak MB", "clusters", "BCubed F", "ours less it", "same clusters"):
        table.add_column(heading, justify="right")
    ours = in_a_process(folder, "ours", crops)
    for method in ("ours", "scikit-learn", "SciPy"):
        found = ours if method == "ours" else in_a_process(folder, method, crops)
        f = f_score(found, students)
        table.add_row(
            *(method, f"{found['seconds']:.2f}", f"{found['peak_mb']:.0f}", f"{len(set(found['labels']))}", f"{f:.4f}"),
            f"{f_score(ours, students) - f:+.4f}",
            "yes" if partition(found["labels"]) == partition(ours["labels"]) else "no",
        )
    table.caption = f"target: F within {TARGET_DIFFERENCE}"
    return table


def in_a_process(folder: Path, method: str, crops: int) -> dict:
    """What `run` returns, from a process of its own, whose peak memory is at least what this one has: so this stays small."""
    command = [sys.executable, __file__, "--run", str(folder), method, str(crops)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def run(folder: Path, method: str, crops: int) -> dict:
    """Cluster the first crops by a method: its labels, its time and the process's peak memory; or make the class."""
    if method == "make":
        vectors, students, shown_by = make_class(crops)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "students.npy", students)
        np.save(folder / "photos.npy", shown_by)
        return {}
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")[:crops].copy()
    photos = np.load(folder / "photos.npy")[:crops]
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.cluster import AgglomerativeClustering

    from pipelines.faces.clustering import agglomerative_clusters

    start, cpu_start = time.perf_counter(), time.process_time()
    if method.startswith("ours"):
        labels = agglomerative_clusters(vectors, DISTANCE_THRESHOLD, photos if "photos" in method else None).labels
    elif method == "scikit-learn":
        model = AgglomerativeClustering(
            n_clusters=None, distance_threshold=DISTANCE_THRESHOLD, metric="cosine", linkage="average"
        )
        labels = model.fit(vectors).labels_
    else:
        labels = fcluster(linkage(vectors, "average", metric="cosine"), DISTANCE_THRESHOLD, "distance")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "labels": labels.tolist(),
    }


def f_score(found: dict, students: NDArray[np.int64]) -> float:
    """BCubed F of a run against who the crops show."""
    from pipelines.faces.metrics import bcubed

    return bcubed(found["labels"], students[: len(found["labels"])].tolist()).f1


def partition(labels: list[int]) -> set[frozenset[int]]:
    """The clusters as sets of crops."""
    clusters: dict[int, set[int]] = {}
    for crop, label in enumerate(labels):
        clusters.setdefault(label, set()).add(crop)
    return set(map(frozenset, clusters.values()))


if __name__ == "__main__":
    main()
