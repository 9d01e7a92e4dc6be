"""Dagster's UI in a real browser, as a person uses it: the graph, a register, the sensors, and a backfill launched there."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from pipelines.database import embedded
from pipelines.demo_photos import make_demo_photos

# A page takes 2 to 5 seconds on two cores; the daemon looks at backfills every 30 seconds, twice for two layers.
PAGE_SECONDS = 60
BACKFILL_SECONDS = 180

pytestmark = pytest.mark.slow

MODELS = ("arcface", "dlib", "facenet", "facenet512")
STAGES = ("face_embeddings", "face_clusters", "student_assignments", "session_attendance", "class_attendance")


@dataclass(frozen=True)
class Ui:
    """A running `attendansee up` over the processed demo class."""

    url: str
    postgres: Path

    def query(self, database: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows from the embedded server, without becoming one of its users, for whom it would stay."""
        server = embedded._running(embedded._recorded_place(self.postgres))
        assert server is not None
        with psycopg.connect(server.url(database)) as connection:
            return connection.execute(query, parameters).fetchall()


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """The UI of a home of its own; afterwards Ctrl-C must end `up` and everything it started."""
    folder = tmp_path_factory.mktemp("ui").resolve()
    make_demo_photos(folder / "photos")
    home = folder / "home"
    environment = {k: v for k, v in os.environ.items() if k != "DATABASE_URL"} | {"ATTENDANSEE_HOME": str(home)}
    command = [sys.executable, "-c", "from pipelines.cli import main; main()"]
    try:
        done = subprocess.run(
            [*command, "run", str(folder / "photos")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        up = subprocess.Popen(
            [*command, "up", "--port", port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes = [psutil.Process(up.pid)]
        try:
            assert up.stdout is not None
            # Ends in any case, for `up` gives up by itself when the UI does not answer.
            first_line = up.stdout.readline()
            url = f"http://127.0.0.1:{port}"
            assert first_line == f"Dagster UI: {url} (Ctrl-C stops it)\n"
            yield Ui(url, home / "postgres")
            processes += processes[0].children(recursive=True)
            up.send_signal(signal.SIGINT)
            output, _ = up.communicate(timeout=90)
            assert (up.returncode, output) == (0, "Stopping.\n")
            assert [process for process in processes if is_running(process)] == []
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            up.communicate()
    finally:
        embedded.remove(home / "postgres")


def is_running(process: psutil.Process) -> bool:
    """One that has ended and waits for nobody to collect it counts as gone."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def browser(open_browser) -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def page(ui: Ui, browser: Browser) -> Iterator[Page]:
    """The UI's first page, for somebody who was never here; an error that its script did not catch fails the test."""
    expect.set_options(timeout=PAGE_SECONDS * 1000)
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(PAGE_SECONDS * 1000)
    errors: list[Any] = []
    page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - Playwright cannot mark a built-in method
    page.goto(ui.url)
    yield page
    page.close()
    assert errors == []


def choose(page: Page, place: str) -> None:
    """Click an entry of the navigation at the left."""
    page.get_by_role("link").filter(has_text=re.compile(f"^{place}$")).click()


def graph_nodes(page: Page, name: str) -> Locator:
    """The asset or the folded group of this name in a graph; a group's name is followed by its number of assets."""
    return page.locator("foreignObject").filter(has_text=re.compile(rf"^{name}(\d( asset|$)|Latest event)"))


def metadata(page: Page, name: str) -> Locator:
    """The row of a partition's metadata."""
    return page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))


def test_the_lineage_shows_photos_and_every_models_assets(page: Page) -> None:
    choose(page, "Lineage")
    for group in ("photos", *MODELS):
        expect(graph_nodes(page, group)).to_be_visible()
    graph_nodes(page, "photos").click()
    for asset in ("session_images", "face_crops"):
        expect(graph_nodes(page, asset)).to_contain_text("4 partitions")


def test_a_models_group_shows_its_chain_from_embeddings_to_attendance(page: Page, ui: Ui) -> None:
    page.goto(f"{ui.url}/locations/pipelines/asset-groups/dlib")
    for stage in STAGES:
        expect(graph_nodes(page, stage)).to_contain_text("100% filled")
    for stage in ("face_embeddings", "session_attendance"):
        expect(graph_nodes(page, stage)).to_contain_text("1 / 1 Passed")


def test_a_sessions_partition_shows_how_many_were_there(page: Page, ui: Ui) -> None:
    page.goto(f"{ui.url}/assets/dlib/session_attendance")
    page.get_by_role("tab", name="Partitions").click()
    page.get_by_text("Demo101__2026-09-14").first.click()
    expect(page.get_by_text("Materialized", exact=True)).to_be_visible()
    for status, count in {"present": 5, "absent": 1, "unsure": 0, "unknown": 0}.items():
        # By the whole row, for the register below it has rows with these words too.
        expect(page.get_by_role("row", name=f"{status} {count}", exact=True)).to_be_visible()


def test_a_classs_partition_shows_the_register(page: Page, ui: Ui) -> None:
    page.goto(f"{ui.url}/assets/dlib/class_attendance?view=partitions&partition=Demo101")
    register = page.get_by_role("table").last
    expect(register.get_by_role("row").first).to_have_text("student2026-09-072026-09-142026-09-21")
    expect(register.get_by_role("row").filter(has_text="Ada")).to_have_text("Adapresentpresentpresent")
    expect(register.get_by_role("row").filter(has_text="Fay")).to_have_text("Faypresentabsentpresent")
    expect(register.get_by_role("row").last).to_have_text("Class_Demo101_Session_2026-09-21_Cluster_1unknown")


@pytest.mark.parametrize(
    ("sensor", "job"),
    [("session_images_sensor", "process_session_dlib"), ("class_attendance_sensor", "class_attendance_dlib")],
)
def test_a_sensors_page_says_what_it_does_and_that_it_is_off(page: Page, sensor: str, job: str) -> None:
    choose(page, "Automation")
    page.get_by_role("link", name=sensor).click()
    expect(page.get_by_text("Sensor has never run")).to_be_visible()
    expect(page.get_by_role("link", name=job, exact=True)).to_be_visible()
    switch = page.get_by_role("row").filter(has_text="Running").get_by_role("checkbox")
    expect(switch).to_be_enabled()
    expect(switch).not_to_be_checked()


def test_a_backfill_launched_in_the_ui_completes_and_makes_nothing_twice(page: Page, ui: Ui) -> None:
    facts = """SELECT (SELECT count(*) FROM students), (SELECT count(*) FROM images), (SELECT count(*) FROM face_crops),
        (SELECT count(*) FROM embeddings_dlib), (SELECT count(*) FROM assignments),
        (SELECT array_agg((session_id, student_id, status)::text ORDER BY session_id, student_id) FROM attendance)"""
    before = ui.query("attendansee", facts)
    # Something to do for runs that the daemon starts: vectors are computed from the photos, registers from those.
    assert ui.query("attendansee", "DELETE FROM embeddings_dlib RETURNING crop_id")
    assert ui.query("attendansee", "DELETE FROM attendance RETURNING student_id")

    choose(page, "Lineage")
    expect(graph_nodes(page, "photos")).to_be_visible()
    page.locator(".CodeMirror").click()
    page.keyboard.type('+key:"dlib/class_attendance"')
    page.keyboard.press("Enter")
    expect(graph_nodes(page, "arcface")).to_have_count(0)
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Launch runs to materialize 7 assets")
    dialog.get_by_role("button", name="All", exact=True).click()
    expect(dialog).to_contain_text("Demo101__2026-09-21")
    dialog.get_by_role("button", name="Launch backfill").click()
    expect(page.get_by_text("Created backfill")).to_be_visible()
    page.get_by_text("View", exact=True).click()

    status = page.get_by_text("Status", exact=True).locator("..")
    expect(status).to_contain_text(re.compile("Succeeded|Failed|Canceled"), timeout=BACKFILL_SECONDS * 1000)
    expect(status).to_contain_text("Succeeded")
    expect(page.get_by_text("100% completed")).to_have_count(7)
    backfill = page.url.split("?")[0].rstrip("/").rpartition("/")[2]
    runs = ui.query(
        "dagster",
        "SELECT status FROM runs JOIN run_tags USING (run_id) WHERE key = 'dagster/backfill' AND value = %s",
        backfill,
    )
    # One for the four sessions together, one for the class.
    assert runs == [("SUCCESS",)] * 2
    assert ui.query("attendansee", facts) == before
