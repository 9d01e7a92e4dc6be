"""SIGKILL in the middle of a run: what was committed stays, and the next command finishes the work."""

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

from pipelines.database import embedded
from pipelines.demo_photos import make_demo_photos

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
