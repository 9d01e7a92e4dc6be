"""Refreshes a class's register when one of its sessions has a new attendance."""

import json
from collections.abc import Mapping

import dagster as dg

from pipelines.partitions import CLASS_TAG, MODEL_TAG, BadNameError, classes, parse_session_key
from pipelines.sensors.session_images_sensor import MINIMUM_INTERVAL_SECONDS, Job, default_status

EVENTS_PER_TICK = 500


def build_class_attendance_sensor(jobs: Mapping[str, Job]) -> dg.SensorDefinition:
    """The sensor; jobs: what refreshes the register of one class, by embedding model."""

    # Not @dg.asset_sensor: it takes the newest materialization and skips the other sessions' before it. Not
    # @dg.run_status_sensor: it sees one run at a time, so 25 sessions of a class would refresh it 25 times.
    @dg.sensor(
        name="class_attendance_sensor",
        jobs=list(jobs.values()),
        minimum_interval_seconds=MINIMUM_INTERVAL_SECONDS,
        default_status=default_status(),
        description="Refreshes the register of each class with new session attendance, once for all its sessions.",
    )
    def class_attendance_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        positions = _positions(context)
        requests = []
        for model, job in jobs.items():
            newest = _changed_classes(context, model, positions)
            requests += [
                dg.RunRequest(
                    run_key=f"{class_name}:{storage_id}:{model}",
                    job_name=job.name,
                    partition_key=class_name,
                    tags={CLASS_TAG: class_name, MODEL_TAG: model},
                )
                for class_name, storage_id in sorted(newest.items())
            ]
        known = set(classes.get_partition_keys(dynamic_partitions_store=context.instance))
        missing = sorted({request.partition_key for request in requests if request.partition_key} - known)
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else "No session has a new attendance.",
            dynamic_partitions_requests=[classes.build_add_request(missing)] if missing else [],
            cursor=json.dumps(positions),
        )

    return class_attendance_sensor


def _changed_classes(context: dg.SensorEvaluationContext, model: str, positions: dict[str, int]) -> dict[str, int]:
    """Classes with session attendance since the model's position, each with its newest event; moves the position."""
    events = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey([model, "session_attendance"]), after_storage_id=positions.get(model)
        ),
        limit=EVENTS_PER_TICK,
        ascending=True,
    ).records
    newest = {}
    for event in events:
        positions[model] = event.storage_id
        try:
            newest[parse_session_key(event.partition_key or "").class_name] = event.storage_id
        except BadNameError as error:
            # Somebody reported it by hand: it must not stop the sensor at this event for ever.
            context.log.warning(str(error))
    return newest


def _positions(context: dg.SensorEvaluationContext) -> dict[str, int]:
    """Storage id of the last event handled, by model."""
    try:
        positions = json.loads(context.cursor or "{}")
        return {model: int(position) for model, position in positions.items()}
    except (ValueError, TypeError, AttributeError):
        context.log.warning("The cursor cannot be used: starting with the first event; run keys avoid repeats.")
        return {}
