"""Who was present in a session, by one model's assignments."""

from dataclasses import asdict

import dagster as dg

from pipelines.assets.common import for_each_session, lineage_asset, model_asset
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.attendance import AttendanceService


def build_session_attendance(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/session_attendance`."""

    @lineage_asset(
        spec,
        "session_attendance",
        deps=[model_asset(spec, "student_assignments")],
        kinds={"python", "postgres"},
        description="Present, absent or unsure for every student of the class, and the unknown people who were seen.",
    )
    def session_attendance(context: dg.AssetExecutionContext, database: Database) -> dg.MaterializeResult:
        service = AttendanceService(database, spec.name)

        def register(key: SessionKey) -> dict[str, object]:
            faces = service.register_session(key)
            people = service.register(key.class_name).counts(key.session_name)
            return {**asdict(faces), **people}

        return for_each_session(context, register, model=spec.name)

    return session_attendance
