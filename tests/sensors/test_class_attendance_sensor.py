"""The class attendance sensor on the events of Dagster's own instance."""

from collections.abc import Iterator

import dagster as dg
import pytest

from pipelines.partitions import classes
from pipelines.sensors import build_sensors
from pipelines.sensors import class_attendance_sensor as module
from pipelines.sensors.class_attendance_sensor import build_class_attendance_sensor
from pipelines.settings import get_settings


@dg.asset(partitions_def=classes)
def registers(context: dg.AssetExecutionContext) -> None:
    """Stands for a class's register."""
    context.log.info(context.partition_key)


JOBS = {name: dg.define_asset_job(f"class_attendance_{name}", [registers]) for name in ("dlib", "arcface")}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def attended(
    instance: dg.DagsterInstance, *partitions: str | None, model: str = "dlib", asset: str | None = None
) -> None:
    for partition in partitions:
        event = dg.AssetMaterialization([model, asset or "session_attendance"], partition=partition)
        instance.report_runless_asset_event(event)


def tick(instance: dg.DagsterInstance, cursor: str | None = None) -> dg.SensorResult:
    result = build_class_attendance_sensor(JOBS)(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult)
    return result


def requested(result: dg.SensorResult) -> list[tuple[str | None, str | None]]:
    return [(request.job_name, request.partition_key) for request in result.run_requests or []]


def test_sessions_of_a_class_since_the_last_tick_are_one_request(instance: dg.DagsterInstance) -> None:
    attended(instance, "math__mon", "art__mon", "math__tue", "math__enrol")
    first = tick(instance)
    assert requested(first) == [("class_attendance_dlib", "art"), ("class_attendance_dlib", "math")]
    assert (first.run_requests or [])[0].tags == {"attendansee/class": "art", "attendansee/model": "dlib"}
    assert [request.partition_keys for request in first.dynamic_partitions_requests or []] == [["art", "math"]]

    second = tick(instance, first.cursor)
    assert requested(second) == []
    assert second.skip_reason == dg.SkipReason("No session has a new attendance.")

    attended(instance, "math__mon")
    third = tick(instance, second.cursor)
    assert requested(third) == [("class_attendance_dlib", "math")]
    run_keys = {request.run_key for result in (first, third) for request in result.run_requests or []}
    assert len(run_keys) == 3


def test_each_model_refreshes_its_own_register(instance: dg.DagsterInstance) -> None:
    attended(instance, "math__mon", model="arcface")
    attended(instance, "math__mon", model="facenet")
    attended(instance, "math__tue", asset="student_assignments")
    first = tick(instance)
    assert requested(first) == [("class_attendance_arcface", "math")]
    attended(instance, "math__mon")
    assert requested(tick(instance, first.cursor)) == [("class_attendance_dlib", "math")]


def test_a_known_class_is_not_added_again(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions("classes", ["math"])
    attended(instance, "math__mon")
    assert tick(instance).dynamic_partitions_requests == []


def test_events_of_no_session_do_not_stop_it(instance: dg.DagsterInstance) -> None:
    attended(instance, None, "nonsense", "math__mon")
    first = tick(instance)
    assert requested(first) == [("class_attendance_dlib", "math")]
    assert requested(tick(instance, first.cursor)) == []


@pytest.mark.parametrize("cursor", ["rubbish", "[]", '{"dlib": "x"}', '{"dlib": null}'])
def test_an_unusable_cursor_starts_with_the_first_event(instance: dg.DagsterInstance, cursor: str) -> None:
    attended(instance, "math__mon")
    assert requested(tick(instance, cursor)) == [("class_attendance_dlib", "math")]


def test_more_events_than_a_tick_takes_are_left_to_the_next(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVENTS_PER_TICK", 2)
    attended(instance, "a__1", "a__2", "b__1", "c__1", "d__1")
    cursor, seen = None, []
    for _ in range(4):
        result = tick(instance, cursor)
        cursor = result.cursor
        seen.append([partition for _, partition in requested(result)])
    assert seen == [["a"], ["b", "c"], ["d"], []]


def test_the_requested_run_succeeds() -> None:
    sensor = build_class_attendance_sensor(JOBS)
    definitions = dg.Definitions(assets=[registers], jobs=list(JOBS.values()), sensors=[sensor])
    # An instance that other processes can open, as the daemon's: Dagster resolves partitions with no other kind.
    with dg.instance_for_test() as instance:
        attended(instance, "math__mon")
        data = sensor.evaluate_tick(dg.build_sensor_context(instance_ref=instance.get_ref(), definitions=definitions))
        for request in data.dynamic_partitions_requests:
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        (run,) = data.run_requests
        job = definitions.resolve_job_def(run.job_name)
        assert job.execute_in_process(instance=instance, partition_key=run.partition_key, tags=dict(run.tags)).success
        assert instance.get_materialized_partitions(registers.key) == {"math"}


def test_all_sensors_are_built_and_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTENDANSEE_WATCH", raising=False)
    get_settings.cache_clear()
    sensors = build_sensors(JOBS, JOBS)
    assert [sensor.name for sensor in sensors] == ["session_images_sensor", "class_attendance_sensor"]
    assert {sensor.default_status for sensor in sensors} == {dg.DefaultSensorStatus.STOPPED}
