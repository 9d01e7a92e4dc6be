"""A model's lineage of a class beside that of the class's active model."""

from typing import Any

import dagster as dg

from pipelines.assets.common import for_each_partition, lineage_asset, model_asset
from pipelines.database import catalog
from pipelines.partitions import classes
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.model_comparison import COLUMNS, Lineage, ModelComparison, compare_models

# Rows in the event log, and sessions that a lineage lacks; `attendansee compare` gives them all.
ROWS_SHOWN = 200


def build_model_comparison(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/model_comparison`."""

    @lineage_asset(
        spec,
        "model_comparison",
        # For lineage only: nobody compares models after every session.
        deps=[dg.AssetDep(model_asset(spec, "session_attendance"), partition_mapping=dg.AllPartitionMapping())],
        partitions_def=classes,
        kinds={"python", "numpy", "postgres"},
        description="This model's lineage of a class beside that of its active model: coverage, disagreements, attendance.",
    )
    def model_comparison(
        context: dg.AssetExecutionContext, database: Database, embedding_models: EmbeddingModels
    ) -> dg.MaterializeResult:
        def compare(class_name: str) -> dict[str, Any]:
            with database.connection() as connection:
                active = catalog.active_model(connection, class_name)
            if active in (None, spec.name):
                # No failure: whoever makes a whole group for all classes would have one in each that has switched.
                return {"result": f"nothing to compare: no other model is active in {class_name}"}
            return _metadata(compare_models(database, embedding_models, class_name, spec.name))

        return for_each_partition(context, compare)

    return model_comparison


def _metadata(comparison: ModelComparison) -> dict[str, Any]:
    old, new = comparison.old, comparison.new
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in comparison.rows()]
    return {
        "active_model": old.model,
        "compared_model": new.model,
        "sessions": comparison.sessions,
        "sessions_covered": new.sessions_covered,
        "crops": comparison.crops,
        "crops_embedded": new.crops_embedded,
        "crops_compared": comparison.crops_compared,
        "crops_agreed": comparison.crops_agreed,
        "disagreements": len(comparison.disagreements),
        "contradicted_confirmations": comparison.contradictions,
        "attendance_cells": comparison.attendance_cells,
        "attendance_changes": len(comparison.attendance_changes),
        "lineages": dg.MetadataValue.json({"old": _shown(old), "new": _shown(new)}),
        "rows_left_out": max(0, len(rows) - ROWS_SHOWN),
        "differences": dg.MetadataValue.table(
            [dg.TableRecord(row) for row in rows[:ROWS_SHOWN]],
            schema=dg.TableSchema([dg.TableColumn(column) for column in COLUMNS]),
        ),
    }


def _shown(lineage: Lineage) -> dict[str, Any]:
    lacking = dict(list(lineage.lacking.items())[:ROWS_SHOWN])
    return lineage.model_copy(update={"lacking": lacking}).model_dump(mode="json")
