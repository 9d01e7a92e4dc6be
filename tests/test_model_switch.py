"""From one model to another and back, from end to end: real photos, detector, network, runs and commands.

The new model is dlib's trained network under the name and in the table of another one: a lineage of its own, whose vectors
are worth something.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipelines.assets import ALL_ASSETS
from pipelines.cli import main
from pipelines.demo_photos import CLASS_NAME as DEMO
from pipelines.demo_photos import make_demo_photos
from pipelines.instance import prepare_dagster_home
from pipelines.jobs import CLASS_ATTENDANCE, PROCESS_SESSION, SESSION_STAGES
from pipelines.resources import build_resources
from pipelines.resources.embedding.registry import REGISTRY, get_spec
from pipelines.resources.photo_store import PhotoStore
from pipelines.sensors import build_sensors
from pipelines.services.decisions import DecisionService
from pipelines.settings import get_settings

CLASS_NAME = "Switch101"  # the demo's photos, in a class that has no runs of other tests
NEW = "facenet"
REASON = ["--reason", "it knows people with masks"]


def attendansee(*arguments: object, fails: bool = False) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == int(fails), result.output
    return result


def attendance(model: str | None = None) -> str:
    chosen = ["--model", model] if model else []
    return attendansee("attendance", CLASS_NAME, "--format", "json", *chosen).stdout


def comparison() -> dict:
    return json.loads(attendansee("compare", CLASS_NAME, "--model", NEW, "--format", "json").stdout)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    make_demo_photos(folder)
    (folder / DEMO).rename(folder / CLASS_NAME)
    return folder


@pytest.fixture
def backfill(database, monkeypatch) -> Callable[[], None]:
    """Lets the new model's stages run for every session, as a backfill of its group does."""
    monkeypatch.setitem(REGISTRY, NEW, replace(get_spec("dlib"), name=NEW))

    def run() -> None:
        prepare_dagster_home(get_settings())
        with dg.DagsterInstance.get() as instance:
            keys = [key for key in instance.get_dynamic_partitions("sessions") if key.startswith(CLASS_NAME)]
            for key in sorted(keys, key=lambda key: not key.endswith("__enrol")):
                result = dg.materialize(
                    ALL_ASSETS,
                    selection=[dg.AssetKey([NEW, stage]) for stage in SESSION_STAGES],
                    instance=instance,
                    partition_key=key,
                    resources=build_resources(get_settings()),
                )
                assert result.success

    return run


def requests_of_the_sensor(photos: Path) -> dict[str, str]:
    """The job that a first tick of the sensor would request for each session."""
    sensor = build_sensors(PROCESS_SESSION, CLASS_ATTENDANCE)[0]
    store = PhotoStore.from_settings(get_settings().model_copy(update={"photos": str(photos)}))
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(instance=instance, resources={"photo_store": store}) as context,
    ):
        result = sensor(context)
    return {request.partition_key: request.job_name for request in result.run_requests}


def take_ada_for_fay(database) -> int:
    """A teacher is wrong about a face that both models know; returns its id."""
    with database.connection() as connection:
        ids = dict(connection.execute("SELECT name, id FROM students").fetchall())
        (crop_id,) = connection.execute(
            "SELECT min(crop_id) FROM assignments WHERE student_id = %s AND model = 'dlib' AND decided_by = 'knn'",
            [ids["Ada"]],
        ).fetchone()
    DecisionService("a teacher").assign(crop_id, ids["Fay"])
    return crop_id


def what_it_says_to_accept(refusal: str) -> list[str]:
    return re.findall(r"--accept|(?<=--accept )\d+", refusal)


def add_a_session(photos: Path) -> None:
    folder = photos / CLASS_NAME / "2026-09-28"
    folder.mkdir()
    with Image.open(next((photos / CLASS_NAME / "2026-09-21").glob("*.jpg"))) as photo:
        photo.point(lambda value: value * 0.9).save(folder / "a.jpg", quality=95)


@pytest.mark.slow
def test_a_class_goes_to_another_model_and_back(database, photos, backfill, monkeypatch):
    monkeypatch.setenv("ATTENDANSEE_SETTLE_SECONDS", "0")
    get_settings.cache_clear()
    attendansee("run", photos)
    old = attendance()
    refused = attendansee("switch-model", CLASS_NAME, NEW, *REASON, fails=True).stderr
    assert f"{NEW} covers 0 of 3 sessions of {CLASS_NAME}" in refused

    backfill()
    assert attendance() == old
    compared = comparison()
    assert compared["new"]["sessions_covered"] == compared["sessions"] == 3
    assert compared["new"]["crops_embedded"] == compared["crops"] > 20
    assert compared["crops_agreed"] == compared["crops_compared"] > 20
    assert (compared["attendance_changes"], compared["disagreements"]) == ([], [])

    crop_id = take_ada_for_fay(database)
    before = attendance()
    refused = attendansee("switch-model", CLASS_NAME, NEW, *REASON, fails=True).stderr
    assert f"face crop {crop_id} is Fay, for {NEW} Ada" in refused
    (wrong,) = [d for d in comparison()["disagreements"] if d["face_crop_id"] == crop_id]
    assert (wrong["confirmed"], wrong["new"]["student"], wrong["contradicts"]) == ("Fay", "Ada", True)
    accept = what_it_says_to_accept(refused)
    attendansee("switch-model", CLASS_NAME, NEW, *REASON, *accept)

    # The same people were there, whoever says so.
    assert json.loads(attendance()) == {**json.loads(before), "model": NEW}
    assert "0 of 4 sessions processed" in attendansee("run", photos).stderr
    assert set(requests_of_the_sensor(photos).values()) == {f"process_session_{NEW}"}

    attendansee("switch-model", CLASS_NAME, "dlib", *REASON)
    assert attendance() == before, "byte for byte"

    # New photos are the new model's once it counts, and what the old one then lacks is said.
    attendansee("switch-model", CLASS_NAME, NEW, *REASON, *accept)
    add_a_session(photos)
    assert "1 of 5 sessions processed" in attendansee("run", photos).stderr
    assert "2026-09-28" in attendance()
    with database.connection() as connection:
        models = connection.execute(
            "SELECT DISTINCT model FROM attendance t JOIN sessions s ON s.id = t.session_id WHERE s.name = '2026-09-28'"
        ).fetchall()
    assert models == [(NEW,)]
    refused = attendansee("switch-model", CLASS_NAME, "dlib", *REASON, fails=True).stderr
    assert f"dlib covers 3 of 4 sessions of {CLASS_NAME}" in refused
    assert f"{CLASS_NAME}__2026-09-28 (" in refused
    attendansee("switch-model", CLASS_NAME, "dlib", *REASON, "--allow-missing-sessions")
    assert attendance() == before, "byte for byte"

    # What is missing is done by the next run, and nothing else.
    assert "1 of 5 sessions processed" in attendansee("run", photos).stderr
    assert "2026-09-28" in attendance()
    attendansee("delete-lineage", CLASS_NAME, NEW, "--yes")
    with database.connection() as connection:
        assert connection.execute(f"SELECT count(*) FROM embeddings_{NEW}").fetchone() == (0,)
    assert "0 of 5 sessions processed" in attendansee("run", photos).stderr
