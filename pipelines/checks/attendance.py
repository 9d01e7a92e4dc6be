"""Doubts about a session's attendance."""

import dagster as dg

from pipelines.assets.common import model_asset
from pipelines.checks.common import check_each_session
from pipelines.database import attendance, catalog
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec

# More unknown faces than this share of a class with known students, and its portraits want a look.
MAX_SHARE_OF_UNKNOWN_FACES = 0.3


def build_session_attendance_checks(spec: ModelSpec) -> dg.AssetChecksDefinition:
    """The warning on one model's `session_attendance`."""

    @dg.asset_check(
        asset=model_asset(spec, "session_attendance"),
        name="most_faces_are_known",
        description="In a class with named students, at most 30 % of a session's faces are of unknown people.",
    )
    def most_faces_are_known(context: dg.AssetCheckExecutionContext, database: Database) -> dg.AssetCheckResult:
        def unknown(key: SessionKey) -> list[str]:
            with database.connection() as connection:
                session = catalog.find_session(connection, key)
                if not catalog.named_students(connection, session.class_id, spec.name):
                    return []
                faces = attendance.count_faces(connection, session.id, spec.name)
            if faces.unknown_faces <= MAX_SHARE_OF_UNKNOWN_FACES * faces.faces:
                return []
            return [f"{faces.unknown_faces} of {faces.faces} faces of {key} are unknown: enrol or name these people"]

        return check_each_session(context, unknown, severity=dg.AssetCheckSeverity.WARN)

    return most_faces_are_known
