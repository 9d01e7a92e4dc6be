"""Assigning a class in one batch against one pgvector query per crop; and one warm `assign` over HTTP.

    .venv/bin/python benchmarks/operations.py [--probes 1000] [--gallery 10000] [--rounds 3] [--calls 2000] [--clients 8]

The photos and the 512-D vectors are made: people are random directions, faces noise about them. They say how long it
takes and whether both ways find the same neighbour, nothing about recognition. Both ways read and write the same database
(an embedded server of its own, deleted at the end), in turns.
"""

import argparse
import http.client
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

MODEL = "arcface"
STUDENTS = 500
FACES_PER_PHOTO = 20
TARGET_RATIO = 20


def main() -> None:
    """Makes the class, runs both parts and prints their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="attendansee-benchmark-") as folder:
        os.environ["ATTENDANSEE_HOME"] = folder
        os.environ["ATTENDANSEE_ALLOW_UNVERIFIED_WEIGHTS"] = "1"
        os.environ.pop("DATABASE_URL", None)
        from pipelines.database import embedded
        from pipelines.settings import get_settings

        get_settings.cache_clear()
        # The network never runs, for every vector is there; the file only makes the vectors' version.
        weights = get_settings().weights_folder / "arcface_weights.h5"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"made")
        try:
            class_id, probes = make_class(arguments.probes, arguments.gallery)
            console = Console()
            console.print(compare(class_id, probes, arguments))
            console.print(serve(probes, arguments))
        finally:
            embedded.remove(Path(folder) / "postgres")


def make_class(probes: int, gallery: int) -> tuple[int, list[int]]:
    """A class with assigned crops and ones without a student; returns its id and the latter's ids."""
    from pipelines.database import crops
    from pipelines.resources.database import Database
    from pipelines.resources.embedding.registry import get_spec
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.settings import get_settings

    rng = np.random.default_rng(1)
    dimension = get_spec(MODEL).dimension
    people = rng.normal(size=(STUDENTS, dimension))
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    who = np.concatenate([np.arange(gallery) % STUDENTS, rng.permutation(np.arange(probes) % STUDENTS)])
    vectors = people[who] + rng.normal(size=(len(who), dimension)) * (0.6 / np.sqrt(dimension))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    version = EmbeddingModels.from_settings(get_settings()).version(MODEL)
    with Database().connection() as connection:
        (class_id,) = connection.execute("INSERT INTO classes (name) VALUES ('made') RETURNING id").fetchone()
        students = connection.execute(
            """INSERT INTO students (class_id, name, provisional)
            SELECT %s, 'Student ' || n, false FROM generate_series(1, %s) n RETURNING id""",
            [class_id, STUDENTS],
        ).fetchall()
        ids = connection.execute(
            """WITH session AS (
                INSERT INTO sessions (class_id, name)
                SELECT %(class)s, 'session ' || n FROM generate_series(0, %(crops)s / 500) n RETURNING id, name
            ), photo AS (
                INSERT INTO images (session_id, sha256, path, size_bytes)
                SELECT s.id, n::text, 'made/' || n || '.jpg', 1 FROM generate_series(0, %(crops)s / %(faces)s) n
                JOIN session s ON s.name = 'session ' || (n * %(faces)s / 500)
                RETURNING id, sha256
            )
            INSERT INTO face_crops (image_id, x, y, width, height, landmarks, confidence, sharpness, yaw)
            SELECT p.id, n, 0, 80, 80, array_fill(0, ARRAY[10]), 1, 1, 0
            FROM generate_series(0, %(crops)s - 1) n JOIN photo p ON p.sha256 = (n / %(faces)s)::text
            ORDER BY n RETURNING id""",
            {"class": class_id, "crops": len(who), "faces": FACES_PER_PHOTO},
        ).fetchall()
        crop_ids = [crop_id for (crop_id,) in ids]
        crops.write_embeddings(connection, MODEL, version, crop_ids, vectors)
        connection.execute(
            """INSERT INTO assignments (crop_id, model, state, student_id, decided_by)
            SELECT crop_id, %s, 'assigned', student_id, 'knn'
            FROM unnest(%s::bigint[], %s::bigint[]) AS t (crop_id, student_id)""",
            [MODEL, crop_ids[:gallery], [students[i][0] for i in who[:gallery]]],
        )
    with Database().connection() as connection:
        connection.autocommit = True
        connection.execute("ANALYZE")
    return class_id, crop_ids[gallery:]


def compare(class_id: int, probes: Sequence[int], arguments: argparse.Namespace) -> Table:
    """Both ways in turns, each undone afterwards; the batch writes, with attendance, and answers as it does in a run."""
    from pipelines.services.assignment import FaceCropAssignmentService

    service = FaceCropAssignmentService(MODEL)
    service.assign_class_crops(class_id)  # not timed: the sessions' first attendance, and all code loaded
    undo(probes)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        answer = service.assign_class_crops(class_id)
        ours.append(time.perf_counter() - start)
        undo(probes)
        start = time.perf_counter()
        nearest = one_by_one(class_id, probes)
        theirs.append(time.perf_counter() - start)
        undo(probes)
    found = {r.crop_id: r.k_nearest[0].crop_id for r in answer.results if r.crop_id in nearest}
    agreement = sum(found[crop_id] == nearest[crop_id] for crop_id in probes) / len(probes)
    ratios = sorted(slow / fast for slow, fast in zip(theirs, ours, strict=True))
    table = Table(
        title=f"{len(probes)} crops against {arguments.gallery}, 512-D, {os.cpu_count()} cores, {platform.machine()}"
    )
    for heading in ("batch, s", "one query per crop, s", "ratio", "target", "same neighbour", "assigned"):
        table.add_column(heading)
    table.add_row(
        f"{statistics.median(ours):.3f}",
        f"{statistics.median(theirs):.2f}",
        f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})",
        f">= {TARGET_RATIO}",
        f"{agreement:.1%}",
        str(answer.assigned),
    )
    return table


def one_by_one(class_id: int, probes: Sequence[int]) -> dict[int, int]:
    """The original's way: per crop one exact nearest-neighbour query, a vote, and one write; returns the nearest crops.

    The writes come after the queries, so that every crop is compared with the same gallery as in the batch.
    """
    from pipelines.database import crops
    from pipelines.resources.database import Database

    table = crops.embeddings_table(MODEL).as_string()
    found: dict[int, list[tuple[int, int, float]]] = {}
    with Database().connection() as connection:
        connection.autocommit = True
        for crop_id in probes:
            (vector,) = connection.execute(f"SELECT embedding FROM {table} WHERE crop_id = %s", [crop_id]).fetchone()
            found[crop_id] = connection.execute(
                f"""SELECT a.crop_id, a.student_id, 1 - (e.embedding <=> %(vector)s) AS similarity
                FROM assignments a
                JOIN students s ON s.id = a.student_id AND s.class_id = %(class)s
                JOIN {table} e ON e.crop_id = a.crop_id
                WHERE a.model = %(model)s AND a.state = 'assigned'
                ORDER BY e.embedding <=> %(vector)s LIMIT 5""",
                {"vector": vector, "class": class_id, "model": MODEL},
            ).fetchall()
        for crop_id, rows in found.items():
            ((student_id, _),) = Counter(student for _, student, _ in rows).most_common(1)
            connection.execute(
                """INSERT INTO assignments (crop_id, model, state, student_id, decided_by, cosine_similarity)
                VALUES (%s, %s, 'assigned', %s, 'knn', %s)""",
                [crop_id, MODEL, student_id, rows[0][2]],
            )
    return {crop_id: rows[0][0] for crop_id, rows in found.items()}


def undo(probes: Sequence[int]) -> None:
    """Take the students off the probes again."""
    from pipelines.resources.database import Database

    with Database().connection() as connection:
        connection.execute("DELETE FROM assignments WHERE crop_id = ANY(%s)", [list(probes)])


def serve(probes: Sequence[int], arguments: argparse.Namespace) -> Table:
    """`attendansee api` in a process of its own, asked by several clients at once for suggestions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "api", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_it_answers(port, server)

        def client(number: int) -> tuple[list[float], int]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            seconds, errors = [], 0
            body = json.dumps({"embedding_model": MODEL, "auto_commit": False})
            for call in range(number, arguments.calls, arguments.clients):
                start = time.perf_counter()
                path = f"/api/attendance/face-crops/{probes[call % len(probes)]}/assign/"
                connection.request("POST", path, body, {"content-type": "application/json"})
                response = connection.getresponse()
                answer = json.load(response)
                seconds.append(time.perf_counter() - start)
                errors += response.status != http.HTTPStatus.OK or answer["status"] != "assigned"
            return seconds, errors

        start = time.perf_counter()
        with ThreadPoolExecutor(arguments.clients) as clients:
            results = list(clients.map(client, range(arguments.clients)))
        elapsed = time.perf_counter() - start
    finally:
        server.terminate()
        server.wait(timeout=60)
    seconds = sorted(second for of_client, _ in results for second in of_client)
    table = Table(title=f"{arguments.calls} calls of assign over HTTP, {arguments.clients} clients")
    for heading in ("p50, ms", "p99, ms", "calls/s", "errors"):
        table.add_column(heading)
    table.add_row(
        f"{seconds[len(seconds) // 2] * 1000:.0f}",
        f"{seconds[int(len(seconds) * 0.99)] * 1000:.0f}",
        f"{len(seconds) / elapsed:.0f}",
        str(sum(errors for _, errors in results)),
    )
    return table


def wait_until_it_answers(port: int, server: subprocess.Popen) -> None:
    """Return once the server answers; raise where it ended or does not come up."""
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"`attendansee api` ended by itself with {server.returncode}.")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/openapi.json")
            connection.getresponse().read()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("`attendansee api` does not answer after a minute.")


if __name__ == "__main__":
    main()
