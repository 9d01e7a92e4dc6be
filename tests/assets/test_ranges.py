"""Runs over several sessions, as a backfill has them: one that fails stops no other, and is recorded as failed."""

import re
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from PIL import Image

from pipelines.definitions import defs
from pipelines.jobs import SESSION_STAGES
from pipelines.partitions import sessions

LINEAGE = [dg.AssetKey(["dlib", stage]) for stage in SESSION_STAGES]
PHOTOS = [dg.AssetKey("session_images"), dg.AssetKey("face_crops")]
MADE, FAILED = AssetPartitionStatus.MATERIALIZED, AssetPartitionStatus.FAILED


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture
def root(tmp_path: Path, astronaut: Image.Image) -> Path:
    for path, brightness in (("s1/a.jpg", 1.0), ("s2/a.jpg", 0.8), ("s3/a.jpg", 0.9), ("enrol/Eileen.jpg", 0.95)):
        file = tmp_path / "photos" / "Math101" / path
        file.parent.mkdir(parents=True)
        astronaut.point(lambda value, factor=brightness: value * factor).save(file, quality=95)
    return tmp_path / "photos"


class Runs:
    """Runs of some assets over a range of sessions, in the order in which these were added."""

    def __init__(self, keys: list[str], store: dict[str, str]) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.instance.add_dynamic_partitions(sessions.name, keys)
        self.keys = keys
        self.store = store

    def __call__(
        self,
        assets: list[dg.AssetKey],
        first: str = "",
        last: str = "",
        repeats: dg.ExecuteInProcessResult | None = None,
    ) -> dg.ExecuteInProcessResult:
        """repeats: the run whose tags this one inherits, as "Re-execute all" in the UI has it."""
        inherited = dict(self.instance.get_run_by_id(repeats.run_id).tags) if repeats else {}
        job = defs.resolve_job_def("process_session_dlib").get_subset(asset_selection=set(assets))
        start, end = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
        return job.execute_in_process(
            instance=self.instance,
            tags={**inherited, start: first or self.keys[0], end: last or first or self.keys[-1]},
            run_config={"resources": {"photo_store": {"config": self.store}}},
            raise_on_error=False,
        )

    def status(self, asset: dg.AssetKey) -> dict[str, AssetPartitionStatus | None]:
        """What the partitions page of the UI shows for each session, without its class."""
        found = self.instance.get_status_by_partition(asset, self.keys, sessions)
        return {key.rpartition("__")[2]: found.get(key) for key in self.keys}


@pytest.fixture
def make_runs(database, root: Path, tmp_path: Path) -> Callable[..., Runs]:
    store = {"photos": str(root), "crops": str(tmp_path / "crops")}
    return lambda *names: Runs([f"Math101__{name}" for name in names], store)


def why(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data.description


def count(database, table: str, session: str) -> int:
    with database.connection() as connection:
        return connection.execute(
            f"""SELECT count(*) FROM {table} t JOIN face_crops f ON f.id = t.crop_id
            JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id WHERE s.name = %s""",
            [session],
        ).fetchone()[0]


def test_a_session_that_fails_at_the_first_stage_is_left_out_of_the_later_ones(make_runs, database):
    runs = make_runs("s1", "gone", "s2")
    result = runs([*PHOTOS, *LINEAGE])
    assert not result.success
    assert why(result).startswith("1 of 3 failed, the others are done. Math101__gone: ")
    assert "Math101/gone" in why(result)
    for asset in (*PHOTOS, *LINEAGE):
        assert runs.status(asset) == {"s1": MADE, "gone": FAILED, "s2": MADE}
    assert [count(database, "assignments", name) for name in ("s1", "s2")] == [1, 1]
    # The steps before the last one, which names the session, went through.
    assert [event.step_key for event in result.all_events if event.is_step_failure] == ["dlib__session_attendance"]


def test_what_is_recorded_of_the_others_is_the_same_as_if_none_had_failed(make_runs):
    runs = make_runs("s1", "gone")
    runs([*PHOTOS, *LINEAGE])
    partly = {asset: runs.instance.get_latest_materialization_event(asset).asset_materialization for asset in LINEAGE}
    runs(LINEAGE, "Math101__s1")
    for asset, before in partly.items():
        after = runs.instance.get_latest_materialization_event(asset).asset_materialization
        assert before.partition == after.partition == "Math101__s1"
        assert before.metadata.keys() == after.metadata.keys()


def test_a_session_with_an_unsound_vector_stops_alone_before_anybody_is_assigned_by_it(make_runs, database):
    runs = make_runs("s1", "s2", "s3")
    runs([*PHOTOS, LINEAGE[0]])
    with database.connection() as connection:
        connection.execute(
            """UPDATE embeddings_dlib SET embedding = %s FROM face_crops f JOIN images i ON i.id = f.image_id
            JOIN sessions s ON s.id = i.session_id WHERE crop_id = f.id AND s.name = 's2'""",
            [np.full(128, 0.5, np.float32)],
        )
    result = runs(LINEAGE)
    assert not result.success
    assert "Math101__s2: crop " in why(result)
    assert "norm" in why(result)
    (failed,) = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert (failed.check_name, failed.severity) == (
        "every_usable_crop_has_a_sound_embedding",
        dg.AssetCheckSeverity.WARN,
    )
    assert runs.status(LINEAGE[0]) == {"s1": MADE, "s2": MADE, "s3": MADE}
    for asset in LINEAGE[1:]:
        assert runs.status(asset) == {"s1": MADE, "s2": FAILED, "s3": MADE}
    assert [count(database, "assignments", name) for name in ("s1", "s2", "s3")] == [1, 0, 1]


def test_an_unsound_vector_in_every_session_stops_the_run_at_once(make_runs, database):
    runs = make_runs("s1", "s2")
    runs([*PHOTOS, LINEAGE[0]])
    with database.connection() as connection:
        connection.execute("UPDATE embeddings_dlib SET embedding = %s", [np.full(128, 0.5, np.float32)])
    result = runs(LINEAGE)
    assert not result.success
    (failed,) = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert failed.severity == dg.AssetCheckSeverity.ERROR
    assert runs.status(LINEAGE[1]) == {"s1": FAILED, "s2": FAILED}


def test_an_error_nobody_foresaw_is_tried_once_more_and_then_stops_its_session_alone(make_runs, database):
    runs = make_runs("s1", "s2")
    runs(PHOTOS)
    with database.connection() as connection:
        connection.execute("ALTER TABLE embeddings_dlib ADD CONSTRAINT no_second CHECK (crop_id % 2 = 1)")
    result = runs(LINEAGE)
    assert not result.success
    assert "1 of 2 failed" in why(result)
    assert "CheckViolation" in why(result)
    retries = [event.step_key for event in result.all_events if event.is_step_up_for_retry]
    assert retries == ["dlib__face_embeddings"]
    assert sorted(map(str, runs.status(LINEAGE[-1]).values())) == sorted(map(str, (MADE, FAILED)))


def test_a_second_run_over_the_session_that_failed_is_all_that_is_left_to_do(make_runs, root):
    runs = make_runs("s1", "s2")
    (root / "Math101" / "s2").rename(root / "Math101" / "elsewhere")
    assert not runs([*PHOTOS, *LINEAGE]).success
    (root / "Math101" / "elsewhere").rename(root / "Math101" / "s2")
    assert runs([*PHOTOS, *LINEAGE], "Math101__s2").success
    for asset in (*PHOTOS, *LINEAGE):
        assert runs.status(asset) == {"s1": MADE, "s2": MADE}


def test_a_repeated_run_does_not_leave_out_what_failed_in_the_first(make_runs, root):
    runs = make_runs("s1", "s2", "s3")
    (root / "Math101" / "s2").rename(root / "Math101" / "elsewhere")
    first = runs([*PHOTOS, *LINEAGE])
    assert "1 of 3 failed" in why(first)
    second = runs([*PHOTOS, *LINEAGE], repeats=first)
    assert "1 of 3 failed" in why(second), "it is still not there"
    (root / "Math101" / "elsewhere").rename(root / "Math101" / "s2")
    (root / "Math101" / "s3").rename(root / "Math101" / "gone")
    third = runs([*PHOTOS, *LINEAGE], repeats=second)
    assert why(third).startswith("1 of 3 failed, the others are done. Math101__s3: ")
    for asset in (*PHOTOS, *LINEAGE):
        assert runs.status(asset) == {"s1": MADE, "s2": MADE, "s3": FAILED}


def test_a_retry_of_the_last_stage_alone_still_leaves_out_what_failed_before_it(make_runs, root):
    runs = make_runs("s1", "s2")
    (root / "Math101" / "s2").rename(root / "Math101" / "elsewhere")
    first = runs([*PHOTOS, *LINEAGE])
    (root / "Math101" / "elsewhere").rename(root / "Math101" / "s2")
    assert "1 of 2 failed, the others are done. Math101__s2: " in why(runs(LINEAGE[-1:], repeats=first))


@pytest.mark.parametrize("sessions", [("s1",), ("s1", "s2")], ids=["of one session", "of a range"])
def test_a_row_that_postgresql_refuses_is_not_in_the_event_log(make_runs, database, sessions):
    runs = make_runs(*sessions)
    runs(PHOTOS)
    with database.connection() as connection:
        connection.execute("ALTER TABLE embeddings_dlib ADD CONSTRAINT none_at_all CHECK (crop_id < 0)")
    result = runs(LINEAGE)
    assert not result.success
    log = "\n".join(entry.to_json() for entry in runs.instance.all_logs(result.run_id))
    assert 'violates check constraint \\"none_at_all\\"' in log
    assert "Failing row" not in log
    assert "DETAIL" not in log
    assert not re.search(r"(-?\d*\.\d+(e-?\d+)?[,\s\]]+){8}", log), "a vector"


@pytest.mark.parametrize("first", ["s1", "enrol"])
def test_portraits_are_compared_with_whichever_session_comes_first(make_runs, database, first):
    runs = make_runs("enrol", "s1", "s2")
    assert runs(PHOTOS).success
    order = [first, *(name for name in ("s1", "s2", "enrol") if name != first)]
    for name in order:
        assert runs(LINEAGE, f"Math101__{name}").success
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT s.name, a.state, st.name, a.decided_by FROM assignments a JOIN face_crops f ON f.id = a.crop_id
            JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
            JOIN students st ON st.id = a.student_id ORDER BY s.name"""
        ).fetchall()
        students = connection.execute("SELECT name FROM students").fetchall()
        times = connection.execute("SELECT count(*), count(DISTINCT created_at) FROM embeddings_dlib").fetchone()
    assert rows == [
        ("enrol", "assigned", "Eileen", "person"),
        ("s1", "assigned", "Eileen", "knn"),
        ("s2", "assigned", "Eileen", "knn"),
    ]
    assert students == [("Eileen",)]
    assert times == (3, 3)


def test_a_session_whose_photos_nobody_has_searched_is_not_taken_for_one_without_people(make_runs, database):
    runs = make_runs("s1", "s2")
    assert runs(PHOTOS[:1]).success
    result = runs(LINEAGE)
    assert not result.success
    assert "Math101__s1: The photos of Math101__s1 were not searched for faces yet" in why(result)
    assert runs.status(LINEAGE[0]) == {"s1": FAILED, "s2": FAILED}
