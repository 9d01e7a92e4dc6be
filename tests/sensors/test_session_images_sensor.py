"""The session images sensor on real folders, with Dagster's own instance, partitions and runs."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipelines.errors import ModelError
from pipelines.partitions import FINGERPRINT_TAG, sessions
from pipelines.resources.photo_store import PhotoStore
from pipelines.runner import plan
from pipelines.sensors.session_images_sensor import build_session_images_sensor
from pipelines.settings import get_settings


@dg.asset(partitions_def=sessions)
def processed_sessions(context: dg.AssetExecutionContext) -> None:
    """Stands for everything that processes a session."""
    context.log.info(context.partition_key)


JOBS = {name: dg.define_asset_job(f"process_session_{name}", [processed_sessions]) for name in ("dlib", "arcface")}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("ATTENDANSEE_MODEL", "dlib")
    monkeypatch.setenv("ATTENDANSEE_SETTLE_SECONDS", "5")
    get_settings.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    get_settings.cache_clear()


class Daemon:
    """Evaluates the sensor tick by tick and does with the results what Dagster's daemon does."""

    def __init__(self, instance: dg.DagsterInstance, photos: str) -> None:
        self.instance = instance
        self.store = PhotoStore(photos=photos, crops="unused")
        self.sensor = build_session_images_sensor(JOBS)
        self.definitions = dg.Definitions(
            assets=[processed_sessions],
            jobs=list(JOBS.values()),
            sensors=[self.sensor],
            resources={"photo_store": self.store},
            executor=dg.in_process_executor,
        )
        self.cursor: str | None = None
        self.run_keys: set[str] = set()

    def tick(self) -> SimpleNamespace:
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources={"photo_store": self.store}
        ) as context:
            result = self.sensor(context)
        if isinstance(result, dg.SkipReason):
            return SimpleNamespace(keys=[], requests=[], skipped=result.skip_message)
        self.cursor = result.cursor
        for request in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        new = [request for request in result.run_requests or [] if request.run_key not in self.run_keys]
        self.run_keys |= {request.run_key for request in new}
        return SimpleNamespace(
            keys=[request.partition_key for request in new],
            requests=new,
            skipped=result.skip_reason.skip_message if result.skip_reason else None,
        )

    def run(self, request: dg.RunRequest) -> None:
        job = self.definitions.resolve_job_def(request.job_name)
        result = job.execute_in_process(
            instance=self.instance, partition_key=request.partition_key, tags=dict(request.tags)
        )
        assert result.success


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def daemon(instance: dg.DagsterInstance, photos: Path) -> Daemon:
    return Daemon(instance, str(photos))


def put(path: Path, age: float = 100, content: bytes = b"photo") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)


def test_new_sessions_become_partitions_and_runs_that_succeed(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/mon/a.jpg")
    put(photos / "art/mon/a.jpg")

    tick = daemon.tick()

    assert daemon.instance.get_dynamic_partitions("sessions") == ["art__mon", "math__mon"]
    assert daemon.instance.get_dynamic_partitions("classes") == ["art", "math"]
    assert [request.job_name for request in tick.requests] == ["process_session_dlib"] * 2
    art = tick.requests[0]
    assert {name: value for name, value in art.tags.items() if name.startswith("attendansee/")} == {
        "attendansee/class": "art",
        "attendansee/session": "mon",
        "attendansee/model": "dlib",
        FINGERPRINT_TAG: art.tags[FINGERPRINT_TAG],
    }
    assert art.run_key.startswith("art__mon:")
    assert art.run_key.endswith(":dlib")
    for request in tick.requests:
        daemon.run(request)
    assert daemon.instance.get_materialized_partitions(processed_sessions.key) == {"art__mon", "math__mon"}
    assert daemon.tick().skipped == "No new photos; 2 sessions known."


def test_partitions_that_exist_are_not_added_again(instance: dg.DagsterInstance, photos: Path) -> None:
    instance.add_dynamic_partitions("sessions", ["math__mon"])
    put(photos / "math/mon/a.jpg")
    put(photos / "math/tue/a.jpg")
    store = PhotoStore(photos=str(photos), crops="unused")
    with dg.build_sensor_context(instance=instance, resources={"photo_store": store}) as context:
        result = build_session_images_sensor(JOBS)(context)
    assert {request.partitions_def_name: request.partition_keys for request in result.dynamic_partitions_requests} == {
        "sessions": ["math__tue"],
        "classes": ["math"],
    }


def test_a_photo_being_written_waits_and_a_new_one_runs_the_session_again(
    daemon: Daemon, photos: Path, settings: pytest.MonkeyPatch
) -> None:
    put(photos / "math/mon/a.jpg")
    put(photos / "math/mon/b.jpg", age=0)
    waiting = daemon.tick()
    assert waiting.keys == []
    assert waiting.skipped == "Waiting for photos to settle, for the class's enrolment or for its model: math__mon."
    settings.setenv("ATTENDANSEE_SETTLE_SECONDS", "0")
    get_settings.cache_clear()
    assert daemon.tick().keys == ["math__mon"]
    put(photos / "math/mon/c.jpg")
    assert daemon.tick().keys == ["math__mon"]
    (photos / "math/mon/c.jpg").unlink()
    assert daemon.tick().keys == ["math__mon"]
    assert daemon.tick().keys == []


def test_a_class_is_processed_with_its_own_active_model(daemon: Daemon, photos: Path) -> None:
    daemon.sensor = build_session_images_sensor(JOBS, lambda: {"math": "arcface"})
    put(photos / "math/mon/a.jpg")
    put(photos / "art/mon/a.jpg")
    requested = {request.partition_key: request.job_name for request in daemon.tick().requests}
    assert requested == {"math__mon": "process_session_arcface", "art__mon": "process_session_dlib"}


def test_a_class_whose_model_is_broken_waits_and_loses_nothing(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/mon/a.jpg")
    put(photos / "art/mon/a.jpg")
    daemon.sensor = build_session_images_sensor(JOBS, lambda: {"math": "mine"})
    assert daemon.tick().keys == ["art__mon"]
    daemon.sensor = build_session_images_sensor(JOBS, lambda: {"math": "arcface"})
    assert daemon.tick().keys == ["math__mon"]


def test_a_class_that_switched_is_not_processed_again_and_its_new_photos_by_the_new_model(
    daemon: Daemon, photos: Path
) -> None:
    put(photos / "math/mon/a.jpg")
    put(photos / "math/tue/a.jpg")
    assert daemon.tick().keys == ["math__mon", "math__tue"]
    daemon.sensor = build_session_images_sensor(JOBS, lambda: {"math": "arcface"}, lambda: {"math": "dlib"})
    assert daemon.tick().keys == []
    daemon.cursor = None
    assert daemon.tick().keys == []
    put(photos / "math/tue/b.jpg")
    put(photos / "math/wed/a.jpg")
    requested = {request.partition_key: request.job_name for request in daemon.tick().requests}
    assert requested == {"math__tue": "process_session_arcface", "math__wed": "process_session_arcface"}


def test_what_the_run_command_has_processed_is_not_requested_again(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/enrol/Ana.jpg")
    for number in range(30):
        put(photos / f"math/s{number:02d}/a.jpg")

    def processed_elsewhere(key: str, photos_of: str | None = None, job: str = "process_session_dlib") -> None:
        """As `attendansee run` does it: no run key, but the fingerprint of what was processed."""
        (item,) = [
            item
            for item in plan(
                daemon.store.scan(), [], lambda _: "dlib", get_settings().detection_configuration, "math", None
            )
            if str(item.key) == (photos_of or key)
        ]
        tags = {FINGERPRINT_TAG: item.fingerprint}
        job_definition = daemon.definitions.resolve_job_def(job)
        daemon.instance.add_dynamic_partitions("sessions", [key])
        assert job_definition.execute_in_process(
            instance=daemon.instance, partition_key=key, tags=tags, asset_selection=[processed_sessions.key]
        ).success

    processed_elsewhere("math__enrol")
    for number in range(28):
        processed_elsewhere(f"math__s{number:02d}")
    # Of other photos, or by another model: neither says anything of this session.
    processed_elsewhere("math__s28", photos_of="math__s01")
    processed_elsewhere("math__s29", job="process_session_arcface")
    assert daemon.tick().keys == ["math__s28", "math__s29"]
    assert daemon.tick().keys == []

    put(photos / "math/s03/b.jpg")
    put(photos / "math/s04/b.jpg")
    processed_elsewhere("math__s03")
    assert daemon.tick().keys == ["math__s04"]
    # New portraits give names to faces: what was done before they came is due again.
    put(photos / "math/enrol/Bo.jpg")
    assert daemon.tick().keys == ["math__enrol"]
    processed_elsewhere("math__enrol")
    processed_elsewhere("math__s07")
    requested = {key for _ in range(2) for key in daemon.tick().keys}
    assert requested == {f"math__s{number:02d}" for number in range(30)} - {"math__s07"}


def test_the_run_command_leaves_out_what_the_sensor_had_processed(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/enrol/Ana.jpg")
    put(photos / "math/mon/a.jpg")
    requests = [request for _ in range(2) for request in daemon.tick().requests]
    # A photo that goes and comes back gives the session another run key, and the same content.
    put(photos / "math/mon/b.jpg")
    requests += daemon.tick().requests
    (photos / "math/mon/b.jpg").unlink()
    requests += daemon.tick().requests
    work = plan(daemon.store.scan(), [], lambda _: "dlib", get_settings().detection_configuration, None, None)
    latest = {request.partition_key: request.tags[FINGERPRINT_TAG] for request in requests}
    assert latest == {str(item.key): item.fingerprint for item in work}
    assert len(requests) == 4


def test_a_session_folder_that_is_gone_is_told_once(
    daemon: Daemon, photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("mon", "tue", "wed"):
        put(photos / f"math/{name}/a.jpg")
    put(photos / "art/mon/a.jpg")
    daemon.tick()
    for gone in ("math/mon", "math/tue", "art/mon"):
        (photos / gone / "a.jpg").unlink()
        (photos / gone).rmdir()
    (photos / "art").rmdir()
    assert capfd.readouterr().err == ""
    assert "'math' has no folder any more for 2 of its sessions (mon, tue)" in daemon.tick().skipped
    assert capfd.readouterr().err.count("no folder any more") == 1
    assert "no folder any more" not in daemon.tick().skipped + capfd.readouterr().err
    (photos / "math/mon").mkdir()
    assert daemon.tick().keys == ["math__mon"]


def test_a_class_that_cannot_be_listed_stops_no_other(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/enrol/Ana.jpg")
    put(photos / "math/mon/a.jpg")
    assert daemon.tick().keys == ["math__enrol"]
    (photos / "math/enrol/loop").symlink_to("loop")
    put(photos / "art/mon/a.jpg")
    assert daemon.tick().keys == ["art__mon"]
    (photos / "math/enrol/loop").unlink()
    assert daemon.tick().keys == ["math__mon"]


def test_deleting_photos_never_deletes_a_partition(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/mon/a.jpg")
    daemon.tick()
    (photos / "math/mon/a.jpg").unlink()
    # Its faces must not count any longer; once its folder is gone too, nothing is known about it.
    assert daemon.tick().keys == ["math__mon"]
    assert daemon.tick().keys == []
    (photos / "math/mon").rmdir()
    assert daemon.tick().keys == []
    assert daemon.instance.get_dynamic_partitions("sessions") == ["math__mon"]


def test_a_root_that_went_away_is_a_reason_and_no_empty_folder(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/mon/a.jpg")
    daemon.tick()
    before = daemon.cursor
    photos.rename(photos.with_name("unmounted"))
    away = daemon.tick()
    assert away.keys == []
    assert away.skipped == f"The photo root {photos} does not exist: create or mount it, or set ATTENDANSEE_PHOTOS."
    assert daemon.cursor == before
    photos.with_name("unmounted").rename(photos)
    assert daemon.tick().keys == []


def test_the_class_waits_until_the_run_of_its_portraits_has_finished(daemon: Daemon, photos: Path) -> None:
    put(photos / "math/enrol/Ana.jpg")
    put(photos / "math/mon/a.jpg")
    enrolment = daemon.tick()
    assert enrolment.keys == ["math__enrol"]

    job = daemon.definitions.resolve_job_def("process_session_dlib")
    tags = {"dagster/partition": "math__enrol"}
    for status in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING):
        run = daemon.instance.create_run_for_job(job, tags=tags, status=status)
        assert "math__mon" in daemon.tick().skipped
        daemon.instance.report_run_failed(run)

    session = daemon.tick()
    assert session.keys == ["math__mon"]
    version = enrolment.requests[0].run_key.split(":")[1]
    assert session.requests[0].run_key.split(":")[2:] == [version, "dlib"]


def test_a_bad_name_is_reported_once(daemon: Daemon, photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(photos / "math 101/mon/a.jpg")
    put(photos / "math/mon/a.jpg")
    assert daemon.tick().keys == ["math__mon"]
    assert capfd.readouterr().err.count("'math 101' cannot be used: rename it") == 1
    again = daemon.tick()
    assert "math 101" not in again.skipped + capfd.readouterr().err


def test_a_bad_name_alone_is_the_reason_of_the_tick(daemon: Daemon, photos: Path) -> None:
    put(photos / "math 101/mon/a.jpg")
    assert "rename it" in daemon.tick().skipped


@pytest.mark.parametrize("cursor", ["rubbish", "e30=", "0"])
def test_an_unusable_cursor_starts_anew_under_the_same_run_keys(
    daemon: Daemon, photos: Path, cursor: str, capfd: pytest.CaptureFixture[str]
) -> None:
    put(photos / "math/mon/a.jpg")
    daemon.tick()
    put(photos / "math/tue/a.jpg")
    daemon.cursor = cursor
    # `keys` leaves out run keys that were requested before, as Dagster does.
    assert daemon.tick().keys == ["math__tue"]
    assert "The cursor cannot be used" in capfd.readouterr().err


def test_a_tick_requests_no_more_than_its_budget(daemon: Daemon, photos: Path) -> None:
    for index in range(60):
        put(photos / f"math/s{index:02d}/a.jpg")
    ticks = [daemon.tick().keys for _ in range(4)]
    assert [len(keys) for keys in ticks] == [25, 25, 10, 0]
    assert len({key for keys in ticks for key in keys}) == 60


def test_the_model_that_is_set_decides_the_job(daemon: Daemon, photos: Path, settings: pytest.MonkeyPatch) -> None:
    put(photos / "math/mon/a.jpg")
    settings.setenv("ATTENDANSEE_MODEL", "arcface")
    get_settings.cache_clear()
    assert [request.job_name for request in daemon.tick().requests] == ["process_session_arcface"]
    settings.setenv("ATTENDANSEE_MODEL", "eigenfaces")
    get_settings.cache_clear()
    with pytest.raises(ModelError, match=r"no model 'eigenfaces': set ATTENDANSEE_MODEL to one of dlib, arcface\.$"):
        daemon.tick()


def test_photos_in_a_memory_store_are_processed_when_two_ticks_saw_the_same(instance: dg.DagsterInstance) -> None:
    MemoryFileSystem().pipe_file("/watched/math/mon/a.jpg", b"photo")
    try:
        daemon = Daemon(instance, "memory://watched")
        assert daemon.tick().keys == []
        assert daemon.tick().keys == ["math__mon"]
        assert daemon.tick().keys == []
    finally:
        MemoryFileSystem().rm("/watched", recursive=True)


def test_dagster_resolves_requests_for_partitions_that_the_same_tick_adds(photos: Path) -> None:
    put(photos / "math/mon/a.jpg")
    # An instance that other processes can open, as the daemon's: Dagster resolves partitions with no other kind.
    with dg.instance_for_test() as instance:
        daemon = Daemon(instance, str(photos))
        with dg.build_sensor_context(
            instance_ref=instance.get_ref(), definitions=daemon.definitions, resources={"photo_store": daemon.store}
        ) as context:
            tick = daemon.sensor.evaluate_tick(context)
    (request,) = tick.run_requests
    assert request.tags["dagster/partition"] == "math__mon"
    assert request.tags["dagster/sensor_name"] == "session_images_sensor"


@pytest.mark.parametrize(("watch", "status"), [("1", "RUNNING"), ("0", "STOPPED"), (None, "STOPPED")])
def test_it_is_off_unless_the_deployment_watches(settings: pytest.MonkeyPatch, watch: str | None, status: str) -> None:
    if watch is None:
        settings.delenv("ATTENDANSEE_WATCH", raising=False)
    else:
        settings.setenv("ATTENDANSEE_WATCH", watch)
    get_settings.cache_clear()
    sensor = build_session_images_sensor(JOBS)
    assert (sensor.default_status.value, sensor.minimum_interval_seconds) == (status, 30)
    assert {target.name for target in sensor.jobs} == {"process_session_dlib", "process_session_arcface"}


def test_twenty_thousand_photos_fit_into_a_tick(daemon: Daemon, photos: Path, settings: pytest.MonkeyPatch) -> None:
    settings.setenv("ATTENDANSEE_SETTLE_SECONDS", "0")
    get_settings.cache_clear()
    for session in range(400):
        folder = photos / f"class_{session % 20}/s{session}"
        folder.mkdir(parents=True)
        for index in range(50):
            (folder / f"{index}.jpg").touch()
    assert len(daemon.tick().keys) == 25
    started = time.process_time()
    assert len(daemon.tick().keys) == 25
    # The daemon gives up on a tick after 60 seconds.
    assert time.process_time() - started < 5
    assert len(daemon.cursor or "") < 400 * 40
