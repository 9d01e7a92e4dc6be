"""Whole runs of the job for a session, through a real Dagster instance, detector, model and database."""

from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from pipelines.database import catalog
from pipelines.definitions import defs
from pipelines.partitions import sessions
from pipelines.settings import get_settings

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture
def root(tmp_path: Path, astronaut: Image.Image) -> Path:
    for session, brightness in (("s1", 1.0), ("s2", 0.8)):
        folder = tmp_path / "photos" / "Math101" / session
        folder.mkdir(parents=True)
        astronaut.point(lambda value, factor=brightness: value * factor).save(folder / "a.jpg", quality=95)
    return tmp_path / "photos"


@pytest.fixture
def run(database, root: Path, tmp_path: Path) -> Callable[..., dg.ExecuteInProcessResult]:
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(sessions.name, ["Math101__s1", "Math101__s2", "Math101__gone"])
    job = defs.resolve_job_def("process_session_dlib")

    def execute(partition: str | None = None, ops: dict | None = None, **tags: str) -> dg.ExecuteInProcessResult:
        store = {"photo_store": {"config": {"photos": str(root), "crops": str(tmp_path / "crops")}}}
        return job.execute_in_process(
            instance=instance,
            partition_key=partition,
            tags=tags,
            run_config={"resources": store, "ops": ops or {}},
            raise_on_error=False,
        )

    return execute


def metadata(result: dg.ExecuteInProcessResult, *key: str) -> dict[str | None, dict[str, object]]:
    """The metadata of an asset's materializations by partition."""
    return {
        event.partition: {
            name: getattr(value, "value", value)
            for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.all_events
        if event.is_step_materialization and event.asset_key == dg.AssetKey(list(key))
    }


def test_one_run_goes_from_photos_to_attendance_and_says_what_it_did(run):
    result = run("Math101__s1")
    assert result.success
    assert metadata(result, "session_images")["Math101__s1"]["photos"] == 1
    assert metadata(result, "face_crops")["Math101__s1"]["crops"] == 1
    embedded = metadata(result, "dlib", "face_embeddings")["Math101__s1"]
    assert (embedded["model"], embedded["dimension"], embedded["embedded"]) == ("dlib", 128, 1)
    assert embedded["duration_seconds"] > 0
    assert metadata(result, "dlib", "session_attendance")["Math101__s1"]["present"] == 1
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert len(checks) == 7
    assert all(checks.values())


def test_a_range_of_sessions_is_one_run_with_metadata_for_each(run):
    result = run(**{RANGE_START: "Math101__s1", RANGE_END: "Math101__s2"})
    assert result.success
    attendance = metadata(result, "dlib", "session_attendance")
    assert {key: values["present"] for key, values in attendance.items()} == {"Math101__s1": 1, "Math101__s2": 1}
    assert metadata(result, "dlib", "student_assignments")["Math101__s1"]["students_created"] == 1
    assert metadata(result, "dlib", "student_assignments")["Math101__s2"]["students_created"] == 0


def test_vectors_are_computed_once_unless_forced(run):
    key = "Math101__s1"
    run(key)
    assert metadata(run(key), "dlib", "face_embeddings")[key]["embedded"] == 0
    forced = run(key, {"dlib__face_embeddings": {"config": {"force_regenerate": True}}})
    assert metadata(forced, "dlib", "face_embeddings")[key]["embedded"] == 1


def test_a_spoilt_vector_stops_the_run_before_anybody_is_assigned_by_it(run, database):
    run("Math101__s1")
    with database.connection() as connection:
        connection.execute("UPDATE embeddings_dlib SET embedding = %s", [np.full(128, 0.5, np.float32)])
    result = run("Math101__s1")
    assert not result.success
    (failed,) = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert failed.check_name == "every_usable_crop_has_a_sound_embedding"
    assert "norm" in (failed.description or "")
    assert "force_regenerate" in (failed.description or "")
    assert metadata(result, "dlib", "student_assignments") == {}


def test_a_usable_crop_that_cannot_be_embedded_is_reported_and_stops_the_run(run, database):
    run("Math101__s1")
    with database.connection() as connection:
        connection.execute("DELETE FROM embeddings_dlib")
        connection.execute("UPDATE face_crops SET landmarks = array_fill(7::real, ARRAY[10])")
    result = run("Math101__s1")
    assert not result.success
    (reported,) = metadata(result, "dlib", "face_embeddings")["Math101__s1"]["errors"].records
    assert "landmarks" in reported.data["reason"]
    (failed,) = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert "has no embedding" in (failed.description or "")


def test_a_session_without_a_folder_fails_with_one_sentence(run):
    result = run("Math101__gone")
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert "Math101/gone" in str(event.step_failure_data.error)


def test_a_model_without_weights_is_refused_before_any_photo_is_read(database, root, tmp_path):
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(sessions.name, ["Math101__s1"])
    store = {"photo_store": {"config": {"photos": str(root), "crops": str(tmp_path / "crops")}}}
    result = defs.resolve_job_def("process_session_arcface").execute_in_process(
        instance=instance, partition_key="Math101__s1", run_config={"resources": store}, raise_on_error=False
    )
    (event,) = [event for event in result.all_events if event.is_step_failure]
    assert event.step_key == "session_images"
    assert "attendansee models fetch arcface" in str(event.step_failure_data.error)
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM images").fetchone() == (0,)


def test_a_photo_without_faces_is_a_warning_that_stops_nothing(run, root):
    Image.new("RGB", (400, 300), "gray").save(root / "Math101/s1/wall.jpg")
    result = run("Math101__s1")
    assert result.success
    (failed,) = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert (failed.check_name, failed.severity) == ("photos_show_faces", dg.AssetCheckSeverity.WARN)
    assert "wall.jpg" in (failed.description or "")


@pytest.mark.parametrize(("value", "words"), [(0, "greater than or equal to 1"), (21, "less than or equal to 20")])
def test_a_parameter_out_of_range_is_refused_with_its_range(run, value, words):
    result = run("Math101__s1", {"dlib__student_assignments": {"config": {"k": value}}})
    assert not result.success
    assert words in str([e.step_failure_data.error for e in result.all_events if e.is_step_failure])


def failed_checks(result: dg.ExecuteInProcessResult) -> dict[str, str]:
    return {c.check_name: c.description or "" for c in result.get_asset_check_evaluations() if not c.passed}


def test_small_faces_and_unknown_people_are_warned_about(run, database, monkeypatch):
    run("Math101__s1")
    assert failed_checks(run("Math101__s1")) == {}
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "Math101")
        catalog.ensure_named_student(connection, class_id, "Ada")
    monkeypatch.setenv("ATTENDANSEE_QUALITY_MIN_SIZE", "1000")
    get_settings.cache_clear()
    result = run("Math101__s1")
    assert result.success
    found = failed_checks(result)
    assert "1 of 1 faces" in found["faces_are_large_enough"]
    monkeypatch.delenv("ATTENDANSEE_QUALITY_MIN_SIZE")
    get_settings.cache_clear()
    assert "1 of 1 faces" in failed_checks(run("Math101__s1"))["most_faces_are_known"]
