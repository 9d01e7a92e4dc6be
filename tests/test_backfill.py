"""Backfills of a model's lineage by real daemons: from the terminal, over GraphQL and in the UI; with faults and kills.

The photos are noise, the faces places in it: what is looked at is who did what, how often, and what is left of it.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import psutil
import pytest
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from PIL import Image
from playwright.sync_api import Browser, expect

from pipelines.backfill import plan_backfill, unfinished_backfills
from pipelines.database import catalog, crops, embedded
from pipelines.faces.face import DetectedFace
from pipelines.instance import prepare_dagster_home
from pipelines.jobs import SESSION_STAGES
from pipelines.partitions import SessionKey, sessions
from pipelines.resources import database as database_resource
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.settings import PROJECT_ROOT, get_settings

pytestmark = pytest.mark.slow

CLASSES = ("Art", "Biology")
# Portraits come to be known last, as when a class is enrolled in the middle of a term.
SESSIONS = ("s1", "s2", "enrol")
KEYS = [str(SessionKey(class_name, name)) for class_name in CLASSES for name in SESSIONS]
FACES = 3
FACE_PX = 100
ATTENDANSEE = [sys.executable, "-c", "from pipelines.cli import main; main()"]
MODEL = "dlib"
LINEAGE = [dg.AssetKey([MODEL, stage]) for stage in SESSION_STAGES]


class School:
    """Two classes whose photos were searched for faces, in a home of their own, and what a model has made of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.photos = home / "photos"
        self.environment = {k: v for k, v in os.environ.items() if k != "DATABASE_URL"} | {
            "ATTENDANSEE_HOME": str(home)
        }

    def photo(self, key: str) -> Path:
        session = SessionKey(*key.split("__"))
        return self.photos / session.class_name / session.session_name / "Ada.jpg"

    def make(self) -> None:
        """Put photos and faces where the photo assets would have."""
        rng = np.random.default_rng(5)
        landmarks = np.array([[30, 40], [70, 40], [50, 60], [35, 80], [65, 80]], np.float32)
        with Database().connection() as connection:
            for key in (SessionKey(*key.split("__")) for key in KEYS):
                file = self.photo(str(key))
                file.parent.mkdir(parents=True)
                faces = 1 if key.is_enrolment else FACES
                Image.fromarray(rng.integers(0, 256, (FACE_PX, FACE_PX * faces, 3), dtype=np.uint8)).save(file)
                session = catalog.ensure_session(connection, key)
                catalog.record_photo_root(connection, key.class_name, str(self.photos))
                path = str(file.relative_to(self.photos))
                catalog.register_image(
                    connection,
                    session.id,
                    sha256=path,
                    path=path,
                    size_bytes=1,
                    width=FACE_PX * faces,
                    height=FACE_PX,
                    taken_at=None,
                    refused_reason=None,
                )
                (image,) = catalog.session_images(connection, session.id)
                for place in range(faces):
                    corner = np.array([place * FACE_PX, 0], np.float32)
                    face = DetectedFace((float(corner[0]), 0.0, FACE_PX, FACE_PX), landmarks + corner, 1.0)
                    crops.insert_crop(connection, image.id, face, None, sharpness=1.0, yaw=0.0)
                crops.mark_searched(connection, image.id, "made")
                if key.is_enrolment:
                    student = catalog.ensure_named_student(connection, session.class_id, "Ada")
                    catalog.place_image(connection, session.id, path, path, student)
                    crops.confirm_portraits(connection, session.id, session.class_id)
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions(sessions.name or "", KEYS)
            instance.add_dynamic_partitions("classes", list(CLASSES))
            for key in KEYS:
                instance.report_runless_asset_event(dg.AssetMaterialization("face_crops", partition=key))

    def forget(self) -> None:
        """As if the model had never seen the school."""
        with dg.DagsterInstance.get() as instance:
            instance.wipe_assets([*LINEAGE, dg.AssetKey([MODEL, "class_attendance"])])
        with Database().connection() as connection:
            for table in ("clusters", "assignments", "attendance", "lineage_sessions"):
                connection.execute(f"DELETE FROM {table}")
            connection.execute("DELETE FROM embeddings_dlib")
            connection.execute("DELETE FROM students WHERE provisional")

    def made(self) -> dict[str, list[int]]:
        """Vectors, clustered faces, assigned faces and attendance rows of each session."""
        with Database().connection() as connection:
            rows = connection.execute(
                """SELECT c.name || '__' || s.name,
                    (SELECT count(*) FROM embeddings_dlib e JOIN face_crops f ON f.id = e.crop_id
                        JOIN images i ON i.id = f.image_id WHERE i.session_id = s.id),
                    (SELECT count(*) FROM cluster_members m JOIN clusters k ON k.id = m.cluster_id
                        WHERE k.session_id = s.id),
                    (SELECT count(*) FROM assignments a JOIN face_crops f ON f.id = a.crop_id
                        JOIN images i ON i.id = f.image_id WHERE i.session_id = s.id),
                    (SELECT count(*) FROM attendance t WHERE t.session_id = s.id)
                FROM sessions s JOIN classes c ON c.id = s.class_id"""
            ).fetchall()
        return {key: counts for key, *counts in rows}

    def check_complete(self) -> None:
        """Everything is there, and once."""
        with Database().connection() as connection:
            # Whom a session shows, and Ada, who else is absent.
            students = dict(
                connection.execute(
                    """SELECT c.name || '__' || s.name, count(DISTINCT st.id)
                    FROM sessions s JOIN classes c ON c.id = s.class_id JOIN students st ON st.class_id = c.id
                    WHERE NOT st.provisional OR EXISTS (SELECT 1 FROM assignments a JOIN face_crops f ON f.id = a.crop_id
                        JOIN images i ON i.id = f.image_id WHERE i.session_id = s.id AND a.student_id = st.id)
                    GROUP BY 1"""
                ).fetchall()
            )
            (nobody,) = connection.execute(
                """SELECT count(*) FROM students s WHERE provisional
                AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.student_id = s.id)"""
            ).fetchone()
        assert nobody == 0
        for key, counts in self.made().items():
            enrolment = key.endswith("__enrol")
            faces = 1 if enrolment else FACES
            assert counts == [faces, faces, faces, 0 if enrolment else students[key]], key

    def vectors_made_at(self) -> dict[int, Any]:
        with Database().connection() as connection:
            return dict(connection.execute("SELECT crop_id, created_at FROM embeddings_dlib").fetchall())

    def missing(self) -> list[str]:
        """Keys of the sessions and classes that a backfill would take."""
        version = EmbeddingModels.from_settings(get_settings()).version(MODEL)
        with dg.DagsterInstance.get() as instance:
            plan = plan_backfill(instance, Database(), MODEL, version)
        return [*plan.sessions, *plan.classes]

    def runs(self) -> list[tuple[str, str, str]]:
        """First and last partition and status of every run of a backfill, in the order of their making."""
        start, end = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
        with dg.DagsterInstance.get() as instance:
            runs = reversed(instance.get_runs())
            return [
                (run.tags[start], run.tags[end], run.status.value) for run in runs if "dagster/backfill" in run.tags
            ]

    def statuses(self, asset: dg.AssetKey) -> dict[str, AssetPartitionStatus | None]:
        """What the UI's partitions page shows."""
        with dg.DagsterInstance.get() as instance:
            found = instance.get_status_by_partition(asset, KEYS, sessions) or {}
            return {key: found.get(key) for key in KEYS}

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ATTENDANSEE, *arguments],
            env=self.environment | {"COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def backfill(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of the command."""
        process = self.command("backfill", "--model", MODEL, *arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    @contextmanager
    def deciding_about(self, class_name: str) -> Iterator[None]:
        """Hold the class's lock, as somebody does who decides about it: runs wait for it, in the middle of their work."""
        with Database().connection() as connection:
            catalog.lock_class(connection, catalog.find_class(connection, class_name))
            yield


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Iterator[School]:
    """This process sees the same home as the commands that it starts."""
    home = tmp_path_factory.mktemp("school").resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTENDANSEE_HOME", str(home))
        patch.delenv("DATABASE_URL", raising=False)
        patch.setenv("DAGSTER_HOME", "")
        get_settings.cache_clear()
        database_resource._ready_url.cache_clear()
        prepare_dagster_home(get_settings())
        made = School(home)
        made.make()
        yield made
    get_settings.cache_clear()
    database_resource._ready_url.cache_clear()
    embedded.remove(home / "postgres")


@pytest.fixture
def new(school: School) -> School:
    """The school as the model has never seen it."""
    school.forget()
    return school


class Up:
    """A running `attendansee up`."""

    def __init__(self, school: School) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = school.command("up", "--port", str(port))
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"Dagster UI: {self.url} (Ctrl-C stops it)\n"

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of the webserver's GraphQL API."""
        request = urllib.request.Request(
            f"{self.url}/graphql", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return json.load(opener.open(request, timeout=60))["data"]


@pytest.fixture(scope="module")
def up(school: School) -> Iterator[Up]:
    running = Up(school)
    yield running
    running.process.send_signal(signal.SIGINT)
    running.process.communicate(timeout=90)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
    return result


def processes_below(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        # Not the server, whose end is tested elsewhere.
        with suppress(psutil.NoSuchProcess):
            if "postgres" not in process.name():
                process.kill()


def test_without_a_daemon_the_command_brings_its_own_and_outlives_a_power_cut(new: School) -> None:
    with new.deciding_about("Biology"):
        process = new.command("backfill", "--model", MODEL)
        wait_for(lambda: new.made()["Art__s2"][2] == FACES)
        before = new.vectors_made_at()
        refused = subprocess.run(
            [*ATTENDANSEE, "up", "--port", "1"], env=new.environment, capture_output=True, text=True, check=False
        )
        assert "A command is executing a backfill" in refused.stderr
        kill(processes_below(process.pid))
        process.communicate()
    # Every session of one class is assigned, none of the other; nobody was registered.
    assert [new.made()[key][2:] for key in KEYS] == [*[[FACES, 0]] * 2, [1, 0], *[[0, 0]] * 3]
    with dg.DagsterInstance.get() as instance:
        (unfinished,) = unfinished_backfills(instance, MODEL)
        instance.wipe_daemon_heartbeats()  # as after a minute, for which the command waits otherwise

    status, output = new.backfill()
    assert status == 0, output
    assert f"The backfill {unfinished} has not ended yet: following it." in output
    new.check_complete()
    assert new.vectors_made_at() == before
    assert new.missing() == []
    for asset in LINEAGE:
        assert new.statuses(asset) == dict.fromkeys(KEYS, AssetPartitionStatus.MATERIALIZED)
    runs = new.runs()
    status, output = new.backfill()
    assert (status, output) == (0, "All 6 sessions are up to date.\n")
    assert new.runs() == runs


def test_a_session_that_fails_costs_no_other_and_is_all_that_the_next_launch_does(new: School, up: Up) -> None:
    photo, hidden = new.photo("Art__s2"), new.home / "hidden.jpg"
    photo.rename(hidden)
    status, output = new.backfill()
    hidden.rename(photo)
    assert status == 1
    assert "6 sessions to process, 0 are up to date." in output
    assert "failed: 1 of 6 failed, the others are done. Art__s2: crop " in output
    # The class whose sessions are all there has its register.
    assert new.missing() == ["Art__s2", "Art"]
    assert new.made()["Art__s2"] == [0, 0, 0, 0]
    for key in set(KEYS) - {"Art__s2"}:
        assert new.made()[key][2] == (1 if key.endswith("enrol") else FACES)
    for asset in LINEAGE[1:]:
        assert new.statuses(asset) == {
            key: AssetPartitionStatus.FAILED if key == "Art__s2" else AssetPartitionStatus.MATERIALIZED for key in KEYS
        }
    vectors, runs = new.vectors_made_at(), new.runs()
    assert len(vectors) == 3 * FACES + 2

    status, output = new.backfill()
    assert status == 0, output
    assert "1 sessions to process, 5 are up to date." in output
    assert new.runs()[len(runs) :] == [("Art__s2", "Art__s2", "SUCCESS"), ("Art", "Art", "SUCCESS")]
    after = new.vectors_made_at()
    assert len(after) == len(vectors) + FACES
    assert {crop_id: after[crop_id] for crop_id in vectors} == vectors
    new.check_complete()


def test_a_run_killed_in_the_middle_leaves_whole_sessions_and_is_finished_by_the_daemon(new: School, up: Up) -> None:
    with new.deciding_about("Biology"):
        process = new.command("backfill", "--model", MODEL)
        wait_for(lambda: new.made()["Art__s2"][2] == FACES)
        before = new.vectors_made_at()
        with dg.DagsterInstance.get() as instance:
            (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
            messages = [entry.message for entry in instance.all_logs(run.run_id)]
        (pid,) = {int(found) for message in messages for found in re.findall(r"\(pid: (\d+)\)", message)}
        assert pid in {process.pid for process in processes_below(up.process.pid)}
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        assert [new.made()[key][2:] for key in KEYS] == [*[[FACES, 0]] * 2, [1, 0], *[[0, 0]] * 3]
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    new.check_complete()
    assert new.vectors_made_at() == before
    assert [status for *_, status in new.runs()[-3:]] == ["FAILURE", "SUCCESS", "SUCCESS"]
    assert new.backfill() == (0, "All 6 sessions are up to date.\n")


def test_one_class_is_processed_alone_and_all_of_it_again_without_a_new_vector(new: School, up: Up) -> None:
    assert new.backfill("--class", "Biology")[0] == 0
    assert {key for key, counts in new.made().items() if any(counts)} == {k for k in KEYS if k.startswith("Biology")}
    before = new.vectors_made_at()
    assert new.backfill("--class", "Biology", "--all")[0] == 0
    assert new.vectors_made_at() == before
    assert new.runs()[-2:] == [("Biology__s1", "Biology__enrol", "SUCCESS"), ("Biology", "Biology", "SUCCESS")]
    status, output = new.backfill("--class", "Chemistry")
    assert status == 1
    assert "There is no class 'Chemistry'" in output


def test_ctrl_c_leaves_the_backfill_to_the_daemon_and_says_where_it_is(new: School, up: Up) -> None:
    with new.deciding_about("Biology"):
        process = new.command("backfill", "--model", MODEL)
        wait_for(lambda: new.made()["Art__s2"][2] == FACES)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        with dg.DagsterInstance.get() as instance:
            (unfinished,) = unfinished_backfills(instance, MODEL)
        assert f"The backfill goes on: see http://127.0.0.1:3000/runs/b/{unfinished}, or run the same" in output
    status, output = new.backfill()
    assert status == 0
    assert f"The backfill {unfinished} has not ended yet" in output
    new.check_complete()


def test_the_call_in_the_readme_launches_a_backfill_over_graphql(new: School, up: Up) -> None:
    (call,) = re.findall(r"^curl \S+/graphql .*?-d '(.*?)'$", (PROJECT_ROOT / "README.md").read_text(), re.M | re.S)
    body = json.loads(call)
    for asset in body["variables"]["p"]["assetSelection"]:
        asset["path"][0] = MODEL
    answer = up.ask(body)["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    question = {
        "query": "query Q($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {status}}}",
        "variables": {"id": answer["backfillId"]},
    }
    ended = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED")
    status = wait_for(
        lambda: (found := up.ask(question)["partitionBackfillOrError"]["status"]) in ended and found, seconds=300
    )
    assert status == "COMPLETED_SUCCESS"
    new.check_complete()
    assert new.missing() == []


def test_a_group_is_backfilled_in_the_ui_and_its_partitions_are_all_green(
    new: School, up: Up, open_browser: Callable[[], AbstractContextManager[Browser]], tmp_path: Path
) -> None:
    before = len(new.runs())
    assert set(new.statuses(LINEAGE[-1]).values()) == {None}
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(f"{up.url}/locations/pipelines/asset-groups/{MODEL}")
        page.get_by_role("button", name="Materialize all").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="All", exact=True).click()
        expect(dialog).to_contain_text("6 partitions selected")
        dialog.get_by_role("button", name="Launch backfill").click()
        page.get_by_text("View", exact=True).click()
        status = page.get_by_text("Status", exact=True).locator("..")
        expect(status).to_contain_text(re.compile("Succeeded|Failed|Canceled"), timeout=300_000)
        assert re.fullmatch(rf"{up.url}/runs/b/\w+", page.url.split("?")[0].rstrip("/"))  # as the command says it
        expect(status).to_contain_text("Succeeded")
        page.goto(f"{up.url}/assets/{MODEL}/session_attendance?view=partitions")
        for state, count in {"Materialized": 6, "Failed": 0, "Materializing": 0, "Missing": 0}.items():
            expect(page.get_by_text(f"{state} ({count})")).to_be_visible()
        page.screenshot(path=tmp_path / "partitions.png")
    assert {status for *_, status in new.runs()[before:]} == {"SUCCESS"}
    new.check_complete()
