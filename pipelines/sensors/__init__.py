"""Sensors: what starts runs by itself."""

from collections.abc import Mapping

import dagster as dg

from pipelines.database import catalog, lineages
from pipelines.resources.database import Database
from pipelines.sensors.class_attendance_sensor import build_class_attendance_sensor
from pipelines.sensors.session_images_sensor import Job, build_session_images_sensor


def build_sensors(process_session: Mapping[str, Job], class_attendance: Mapping[str, Job]) -> list[dg.SensorDefinition]:
    """All sensors; the jobs for one session and for one class, each by embedding model."""
    return [
        build_session_images_sensor(process_session, _active_models, _first_models),
        build_class_attendance_sensor(class_attendance),
    ]


def _active_models() -> dict[str, str]:
    with Database().connection() as connection:
        return catalog.active_models(connection)


def _first_models() -> dict[str, str]:
    with Database().connection() as connection:
        return lineages.first_models(connection)
