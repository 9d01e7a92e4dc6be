"""What clustering a class anew would change, for a person to look at before it is applied."""

import dagster as dg

from pipelines.assets.common import for_each_partition, lineage_asset, model_asset
from pipelines.partitions import classes
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.reclustering import ReclusteringConfig, ReclusteringService, rows
from pipelines.settings import get_settings

# Rows in the event log; `attendansee plan-reclustering` gives them all.
ROWS_SHOWN = 200
COLUMNS = ("change", "session", "about", "old", "new")


def build_plan_reclustering(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/plan_reclustering`."""

    @lineage_asset(
        spec,
        "plan_reclustering",
        # For lineage only: people start it.
        deps=[dg.AssetDep(model_asset(spec, "student_assignments"), partition_mapping=dg.AllPartitionMapping())],
        partitions_def=classes,
        kinds={"python", "numpy", "postgres"},
        description="What clustering the class anew would change: faces moved, students made, merged or emptied, "
        "attendance. Nothing is changed before a person applies the plan.",
    )
    def plan_reclustering(
        context: dg.AssetExecutionContext,
        config: ReclusteringConfig,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        service = ReclusteringService(context=ServiceContext(database, photo_store, embedding_models, get_settings()))

        def plan(class_name: str) -> dict[str, object]:
            made = service.plan(class_name, spec.name, config, context.run.run_id)
            changed = list(rows(made.changes))
            return {
                "plan_id": made.plan_id,
                "crops": made.crops,
                "clusters_found": made.changes.clusters_found,
                "max_clusters_reached": made.changes.max_clusters_reached,
                "crops_moved": len(made.changes.moved),
                "students_created": len(made.changes.created),
                "students_merged": len(made.changes.merged),
                "students_emptied": len(made.changes.emptied),
                "attendance_changes": len(made.changes.attendance),
                "rows_left_out": max(0, len(changed) - ROWS_SHOWN),
                "changes": dg.MetadataValue.table(
                    [dg.TableRecord(row) for row in changed[:ROWS_SHOWN]],
                    schema=dg.TableSchema([dg.TableColumn(column) for column in COLUMNS]),
                ),
                **config.model_dump(),
            }

        return for_each_partition(context, plan)

    return plan_reclustering
