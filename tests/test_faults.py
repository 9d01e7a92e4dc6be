"""A kill or a restart in the middle: what was committed stays, and the next command or call finishes the work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from fastapi.testclient import TestClient

from pipelines.api.app import create_app
from pipelines.database import attendance, crops, embedded
from pipelines.definitions import defs
from pipelines.demo_photos import make_demo_photos
from pipelines.services import embedding
from pipelines.settings import get_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "photos"
    make_demo_photos(folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home of its own, for its server is going to be killed."""
    environment = {k: v for k, v in os.environ.items() if k != "DATABASE_URL"}
    yield {**environment, "ATTENDANSEE_HOME": str(tmp_path / "home")}
    embedded.remove(tmp_path / "home" / "postgres")


def attendansee(environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=180)
    return process.returncode, stdout, stderr


def rows(url: str, table: str) -> int:
    with psycopg.connect(url) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def wait_for_rows(url_of: Path, table: str, at_least: int) -> int:
    """Wait until the run has committed so much, and say how much."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(psycopg.Error):
            if (count := rows(embedded.ensure(url_of).url("attendansee"), table)) >= at_least:
                return count
        time.sleep(0.05)
    raise AssertionError(f"{table} never had {at_least} rows")


@pytest.mark.parametrize("victim", ["the run", "PostgreSQL"])
def test_a_kill_in_the_middle_loses_nothing_and_the_next_command_finishes(environment, demo_photos, victim):
    folder = Path(environment["ATTENDANSEE_HOME"]) / "postgres"
    process = attendansee(environment, "run", demo_photos)
    # Until the tables are there, `ensure` of this process would race with the run's own for making the server.
    while not (folder / "data").is_dir() and not (folder / "location.txt").is_file():
        assert process.poll() is None, finish(process)
        time.sleep(0.1)
    committed = wait_for_rows(folder, "face_crops", 7)
    server = embedded.ensure(folder)
    if victim == "the run":
        process.kill()
        process.communicate()
    else:
        os.kill(int((server.data_dir / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        finish(process)

    url = embedded.ensure(folder).url("attendansee")
    assert rows(url, "face_crops") >= committed
    status, register, errors = finish(attendansee(environment, "run", demo_photos))
    assert status == 0, errors
    assert "unknown" in register
    with psycopg.connect(url) as connection:
        twice = connection.execute(
            "SELECT image_id, x, y FROM face_crops GROUP BY image_id, x, y HAVING count(*) > 1"
        ).fetchall()
        without = connection.execute(
            "SELECT f.id FROM face_crops f LEFT JOIN embeddings_dlib e ON e.crop_id = f.id WHERE e.crop_id IS NULL"
        ).fetchall()
        students = connection.execute("SELECT count(*) FROM students WHERE NOT provisional").fetchone()
    assert (twice, without, students) == ([], [], (6,))
    again, register_again, _ = finish(attendansee(environment, "run", demo_photos, "--force"))
    assert (again, register_again) == (0, register)


def test_ctrl_c_ends_the_command_and_not_one_session_of_many(environment, demo_photos):
    folder = Path(environment["ATTENDANSEE_HOME"]) / "postgres"
    process = attendansee(environment, "run", demo_photos)
    while not (folder / "data").is_dir() and not (folder / "location.txt").is_file():
        assert process.poll() is None, finish(process)
        time.sleep(0.1)
    wait_for_rows(folder, "face_crops", 7)
    process.send_signal(signal.SIGINT)
    status, stdout, stderr = finish(process)
    assert status == 1
    assert "Aborted!" in stderr
    assert "present" not in stdout
    assert finish(attendansee(environment, "run", demo_photos))[0] == 0


@pytest.fixture
def restarted_before(home, monkeypatch):
    """Lets the database restart once, just before a function of a module works for the n-th time."""

    def arrange(module, name: str, time_of_restart: int = 1) -> list[int]:
        calls: list[int] = []
        original = getattr(module, name)

        def restart(*arguments, **keywords):
            calls.append(1)
            if len(calls) == time_of_restart:
                assert embedded.stop(home / "postgres")
                embedded.ensure(home / "postgres")
            return original(*arguments, **keywords)

        monkeypatch.setattr(module, name, restart)
        return calls

    return arrange


def post(path: str, **body: object) -> tuple[int, dict]:
    """One call over HTTP, without a retry."""
    with TestClient(create_app(get_settings()), "http://127.0.0.1", raise_server_exceptions=False) as client:
        response = client.post(f"/api/attendance/{path}", json=body)
        return response.status_code, response.json()


def count(database, table: str) -> int:
    with database.connection() as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_a_batch_of_embeddings_goes_on_where_a_restart_of_the_database_broke_it(
    detect, database, restarted_before, monkeypatch
):
    detect("2026-09-07")
    monkeypatch.setattr(embedding, "WRITE_EVERY", 4)
    restarted_before(crops, "write_embeddings", time_of_restart=2)
    with database.connection() as connection:
        ids = [crop_id for (crop_id,) in connection.execute("SELECT id FROM face_crops")]
    status, problem = post("face-crops/generate-embeddings-batch/", face_crop_ids=ids, model_name="dlib")
    assert (status, problem["detail"]) == (503, "The database was restarted or cannot be reached: try again.")
    assert count(database, "embeddings_dlib") == 4
    status, answer = post("face-crops/generate-embeddings-batch/", face_crop_ids=ids, model_name="dlib")
    assert (status, answer["status"], answer["success"], answer["skipped"]) == (200, "success", 8, 4)
    assert count(database, "embeddings_dlib") == 12


@pytest.fixture
def class_to_assign(embedded_class, database):
    """Portraits, and a session of 20 photos that shows each person once a photo."""
    people = [f"student {n}" for n in range(10)]
    embedded_class.enrol("m", *people)
    embedded_class.session("m__1", [people] * 20)
    with database.connection() as connection:
        return connection.execute("SELECT id FROM classes").fetchone()[0]


def assigned_once(database) -> None:
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT count(*), count(DISTINCT a.crop_id), count(DISTINCT (f.image_id, a.student_id))
            FROM assignments a JOIN face_crops f ON f.id = a.crop_id WHERE a.state = 'assigned'"""
        ).fetchone()
    assert rows == (200, 200, 200)


def test_a_restart_in_the_middle_of_an_assignment_writes_nothing_and_the_second_call_everything(
    class_to_assign, database, restarted_before
):
    restarted_before(attendance, "register_session")  # the assignments are written and not committed
    status, problem = post(f"classes/{class_to_assign}/assign-crops/", embedding_model="dlib")
    assert (status, problem["detail"]) == (503, "The database was restarted or cannot be reached: try again.")
    assert count(database, "assignments") == 0
    status, answer = post(f"classes/{class_to_assign}/assign-crops/", embedding_model="dlib")
    assert (status, answer["assigned"]) == (200, 200)
    assigned_once(database)


def test_a_job_that_a_restart_breaks_is_tried_again(class_to_assign, database, restarted_before):
    calls = restarted_before(attendance, "register_session")
    config = {"class_id": class_to_assign, "embedding_model": "dlib"}
    job = defs.resolve_job_def("assign_class_crops")
    assert job.execute_in_process(run_config={"ops": {job.name: {"config": config}}}).success
    assert len(calls) == 2
    assigned_once(database)
