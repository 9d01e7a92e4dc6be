"""What Dagster adds to a backfill of 200 sessions: the whole of it through the daemon, against the services called alone.

    .venv/bin/python benchmarks/backfill.py [--sessions 200] [--crops 30] [--rounds 2] [--embed] [--workers 2]

Photos, faces and vectors are made: ten classes, portraits of 30 people in each, sessions of three photos that show each
of them once. The photos are noise, the vectors random directions with noise about them. Clusters, assignments and
attendance are computed from those for real; the vectors lie in the database already, as after a first attempt, unless
--embed has the `dlib` network compute them from the photos. The time says nothing about recognition.

Both ways begin with the same database (an embedded server of its own, deleted at the end), in turns. The services alone run
in as many processes as Dagster has runs at a time, which have loaded everything before the clock starts; the daemon runs
before it too, as it does under `attendansee up`. With --workers the runs go to so many workers of the scale-out profile,
over a Redis of its own (redis-server must be installed).
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

CLASSES = 10
PHOTOS = 3
FACE_PX = 60
PROCESSES = 2
TARGET_SECONDS = 0.2


def main() -> None:
    """Makes the school, runs both ways in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--crops", type=int, default=30, help="faces of a session")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--embed", action="store_true", help="compute the vectors too, by the dlib network")
    parser.add_argument("--workers", type=int, default=0, help="hand the runs to so many workers over Redis")
    arguments = parser.parse_args()
    model = "dlib" if arguments.embed else "arcface"
    with tempfile.TemporaryDirectory(prefix="attendansee-benchmark-") as folder:
        os.environ["ATTENDANSEE_HOME"] = folder
        os.environ["ATTENDANSEE_ALLOW_UNVERIFIED_WEIGHTS"] = "1"
        os.environ.pop("DATABASE_URL", None)
        os.environ.pop("ATTENDANSEE_BROKER_URL", None)
        if arguments.workers:
            os.environ["ATTENDANSEE_BROKER_URL"] = f"redis+socket://{folder}/redis.sock"
        from pipelines.database import embedded
        from pipelines.settings import get_settings

        get_settings.cache_clear()
        if not arguments.embed:
            # The network never runs, for every vector is there; the file only makes the vectors' version.
            weights = get_settings().weights_folder / "arcface_weights.h5"
            weights.parent.mkdir(parents=True)
            weights.write_bytes(b"made")
        try:
            keys = make_school(Path(folder) / "photos", model, arguments)
            with scale_out(Path(folder), arguments.workers):
                Console().print(compare(keys, model, arguments))
        finally:
            embedded.remove(Path(folder) / "postgres")


def compare(keys: Sequence[str], model: str, arguments: argparse.Namespace) -> Table:
    """Both ways in turns, `rounds` times."""
    import dagster as dg

    from pipelines.settings import get_settings
    from pipelines.up import daemon_at_work

    alone: list[float] = []
    through: list[float] = []
    with dg.DagsterInstance.get() as instance, daemon_at_work(get_settings(), instance):
        wait_for_daemon(instance)
        for _ in range(arguments.rounds):
            alone.append(compute_alone(keys, model))
            forget(model, vectors=arguments.embed)
            through.append(backfill(instance, model))
            forget(model, vectors=arguments.embed)
    overheads = sorted((slow - fast) / len(keys) for slow, fast in zip(through, alone, strict=True))
    table = Table(
        title=f"{len(keys)} sessions x {arguments.crops} crops, vectors {'computed' if arguments.embed else 'made'}, "
        f"{os.cpu_count()} cores, {platform.machine()}"
        + (f", {arguments.workers} workers over Redis" if arguments.workers else "")
    )
    for heading in ("services alone, s", "backfill, s", "Dagster's share a session, s", "target"):
        table.add_column(heading)
    table.add_row(
        f"{statistics.median(alone):.1f}",
        f"{statistics.median(through):.1f}",
        f"{statistics.median(overheads):.3f} ({overheads[0]:.3f} to {overheads[-1]:.3f})",
        f"<= {TARGET_SECONDS}",
    )
    return table


@contextmanager
def scale_out(folder: Path, workers: int) -> Iterator[None]:
    """A Redis and so many workers, all of them warm, while the block lasts; nothing for no workers."""
    if not workers:
        yield
        return
    socket = folder / "redis.sock"
    logs = [folder / f"worker-{number}.log" for number in range(workers)]
    with ExitStack() as stack:

        def start(command: list[str], log: Path) -> None:
            output = stack.enter_context(log.open("wb"))
            process = stack.enter_context(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
            stack.callback(process.terminate)

        start(["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", ""], folder / "redis.log")
        while not socket.exists():
            time.sleep(0.1)
        for log in logs:
            start([sys.executable, "-c", "from pipelines.cli import main; main()", "worker"], log)
        while not all("ready." in log.read_text() for log in logs):
            time.sleep(0.1)
        time.sleep(5)  # a worker says so before its process has loaded the network
        yield


def backfill(instance: Any, model: str) -> float:
    """Seconds from the launch of a backfill of all sessions until Dagster says that it has succeeded."""
    from pipelines.backfill import follow_backfill, launch_backfill, plan_backfill, why_backfill_failed
    from pipelines.resources.database import Database
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.settings import get_settings

    version = EmbeddingModels.from_settings(get_settings()).version(model)
    plan = plan_backfill(instance, Database(), model, version, everything=True)
    start = time.perf_counter()
    backfill_id = launch_backfill(instance, plan, model)
    *_, progress = follow_backfill(instance, backfill_id, seconds=0.5)
    seconds = time.perf_counter() - start
    if not progress.succeeded:
        raise RuntimeError(f"The backfill failed: {why_backfill_failed(instance, backfill_id)}")
    return seconds


def wait_for_daemon(instance: Any) -> None:
    """Return once the daemon has looked for backfills."""
    for _ in range(600):
        if "BACKFILL" in instance.get_daemon_heartbeats():
            return
        time.sleep(0.1)
    raise RuntimeError("The daemon has given no sign of life for a minute.")


def compute_alone(keys: Sequence[str], model: str) -> float:
    """Seconds that the services need for these sessions, in chunks as large as Dagster's runs."""
    from pipelines.settings import get_settings

    size = get_settings().sessions_per_run
    chunks = [keys[start : start + size] for start in range(0, len(keys), size)]
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        # Every process imports, connects and loads its network; the pause lets none of them take two.
        list(pool.map(warm_up, [model] * PROCESSES))
        start = time.perf_counter()
        list(pool.map(process_sessions, chunks, [model] * len(chunks)))
        return time.perf_counter() - start


def warm_up(model: str) -> None:
    """What a process does once."""
    service, *_ = services(model)
    if model == "dlib":
        service.context.models.get(model)
    with service.context.database.connection():
        time.sleep(2)


def services(model: str) -> tuple[Any, Any, Any, Any]:
    """What a model's lineage consists of, without Dagster."""
    from pipelines.services.attendance import AttendanceService
    from pipelines.services.embedding import EmbeddingService
    from pipelines.services.session_assignment import SessionAssignmentService
    from pipelines.services.session_clustering import SessionClusteringService

    embedding = EmbeddingService(model)
    database, version = embedding.context.database, embedding.version
    return (
        embedding,
        SessionClusteringService(database, model, version),
        SessionAssignmentService(database, model, version),
        AttendanceService(database, model),
    )


def process_sessions(keys: Sequence[str], model: str) -> None:
    """The stages of a lineage, one after the other over all sessions, as a run has them."""
    from pipelines.partitions import parse_session_key
    from pipelines.services.session_assignment import AssignmentConfig
    from pipelines.services.session_clustering import ClusteringConfig

    embedding, clustering, assignment, attendance = services(model)
    parsed = [parse_session_key(key) for key in keys]
    for key in parsed:
        embedding.embed_session(key)
    for key in parsed:
        clustering.cluster_session(key, ClusteringConfig())
    for class_name in {key.class_name for key in parsed}:
        embedding.embed_portraits(class_name)
    for key in parsed:
        assignment.assign_session(key, AssignmentConfig())
    for key in parsed:
        attendance.register_session(key)
        attendance.register(key.class_name)


def forget(model: str, *, vectors: bool) -> None:
    """Make the lineage as it was before: only its vectors, unless those go too."""
    from pipelines.resources.database import Database

    tables = ["clusters", "assignments", "attendance", "lineage_sessions"]
    with Database().connection() as connection:
        for table in tables:
            connection.execute(f"DELETE FROM {table} WHERE model = %s", [model])
        connection.execute("DELETE FROM students WHERE provisional")
        if vectors:
            connection.execute(f"DELETE FROM embeddings_{model}")
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")


def make_school(root: Path, model: str, arguments: argparse.Namespace) -> list[str]:
    """Register the classes with photos, crops and, unless they are to be computed, vectors; returns the sessions' keys."""
    import dagster as dg
    from PIL import Image

    from pipelines.database import catalog, crops
    from pipelines.faces.face import DetectedFace
    from pipelines.instance import prepare_dagster_home
    from pipelines.partitions import SessionKey, classes, sessions
    from pipelines.resources.database import Database
    from pipelines.resources.embedding.registry import get_spec
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.settings import get_settings

    rng = np.random.default_rng(1)
    dimension = get_spec(model).dimension
    version = EmbeddingModels.from_settings(get_settings()).version(model)
    landmarks = np.array([[18, 24], [42, 24], [30, 36], [21, 48], [39, 48]], dtype=np.float32)
    keys: list[SessionKey] = []
    with Database().connection() as connection:
        for number in range(arguments.sessions):
            class_name, in_class = (
                f"Class{number * CLASSES // arguments.sessions:02}",
                number % (arguments.sessions // CLASSES),
            )
            if in_class == 0:
                people = rng.normal(size=(arguments.crops, dimension))
                people /= np.linalg.norm(people, axis=1, keepdims=True)
            key = SessionKey(class_name, "enrol" if in_class == 0 else f"2026-{in_class:03}")
            keys.append(key)
            session = catalog.ensure_session(connection, key)
            catalog.record_photo_root(connection, class_name, str(root))
            crop_ids: list[int] = []
            photos = np.array_split(np.arange(arguments.crops), arguments.crops if key.is_enrolment else PHOTOS)
            for photo, shown in enumerate(photos):
                path = f"{class_name}/{key.session_name}/{photo}.jpg"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (FACE_PX, FACE_PX * len(shown), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / path)
                catalog.register_image(
                    connection,
                    session.id,
                    sha256=path,
                    path=path,
                    size_bytes=1,
                    width=pixels.shape[1],
                    height=FACE_PX,
                    taken_at=None,
                    refused_reason=None,
                )
                (image_id,) = connection.execute("SELECT id FROM images WHERE path = %s", [path]).fetchone()
                if key.is_enrolment:
                    student = catalog.ensure_named_student(connection, session.class_id, f"Student {shown[0]}")
                    catalog.place_image(connection, session.id, path, path, student)
                for place in range(len(shown)):
                    corner = np.array([place * FACE_PX, 0], dtype=np.float32)
                    face = DetectedFace((float(corner[0]), 0.0, FACE_PX, FACE_PX), landmarks + corner, 1.0)
                    crop_ids.append(crops.insert_crop(connection, image_id, face, None, sharpness=1.0, yaw=0.0))
                crops.mark_searched(connection, image_id, "made")
            if key.is_enrolment:
                crops.confirm_portraits(connection, session.id, session.class_id)
            if not arguments.embed:
                vectors = people + rng.normal(size=people.shape) * (0.6 / np.sqrt(dimension))
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                crops.write_embeddings(connection, model, version, crop_ids, vectors.astype(np.float32))
    prepare_dagster_home(get_settings())
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(sessions.name, [str(key) for key in keys])
        instance.add_dynamic_partitions(classes.name, sorted({key.class_name for key in keys}))
    return [str(key) for key in keys]


if __name__ == "__main__":
    main()
