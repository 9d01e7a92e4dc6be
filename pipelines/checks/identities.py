"""Whether what people have confirmed stands in every lineage."""

import dagster as dg

from pipelines.assets.common import model_asset
from pipelines.checks.common import check_each_session
from pipelines.database import catalog
from pipelines.database.confirmations import lost_confirmations
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec


def build_identity_check(spec: ModelSpec) -> dg.AssetChecksDefinition:
    """The blocking check of one model's `student_assignments`."""

    @dg.asset_check(
        asset=model_asset(spec, "student_assignments"),
        name="no_confirmed_identity_is_lost",
        description="Every crop that a person or a portrait has confirmed has that student.",
        blocking=True,
    )
    def no_confirmed_identity_is_lost(
        context: dg.AssetCheckExecutionContext, database: Database
    ) -> dg.AssetCheckResult:
        def lost(key: SessionKey) -> list[str]:
            with database.connection() as connection:
                session = catalog.find_session(connection, key)
                rows = lost_confirmations(connection, session.class_id, spec.name, session.id)
            return [f"crop {crop_id} is confirmed as {name}" for crop_id, name in rows]

        return check_each_session(context, lost, severity=dg.AssetCheckSeverity.ERROR)

    return no_confirmed_identity_is_lost
