"""A class's register: students by sessions."""

from collections import Counter
from typing import Any

import dagster as dg

from pipelines.assets.common import for_each_partition, lineage_asset, model_asset
from pipelines.assets.review_metadata import register_table, review_metadata
from pipelines.partitions import classes
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import ServiceContext
from pipelines.services.review import read_review
from pipelines.settings import get_settings


def build_class_attendance(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/class_attendance`."""

    @lineage_asset(
        spec,
        "class_attendance",
        # For lineage only: the class attendance sensor requests the runs. An eager condition would wait for every
        # session of every class and start all classes whenever one session changes.
        deps=[
            dg.AssetDep(model_asset(spec, "session_attendance"), partition_mapping=dg.AllPartitionMapping()),
        ],
        partitions_def=classes,
        kinds={"python", "postgres"},
        description="The class's register over all its sessions, as a table.",
    )
    def class_attendance(
        context: dg.AssetExecutionContext,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        service = AttendanceService(database, spec.name)
        settings = get_settings()
        surroundings = ServiceContext(database, photo_store, embedding_models, settings)

        def register(class_name: str) -> dict[str, Any]:
            register = service.register(class_name)
            counts: Counter[str] = Counter()
            for session in register.sessions:
                counts.update(register.counts(session))
            return {
                "model": spec.name,
                "students": len(register.students),
                "sessions": len(register.sessions),
                "unknown": len(register.unknown),
                "visitors": len(register.visitors),
                **{f"cells_{status}": counts[status] for status in ("present", "absent", "unsure", "excused")},
                "set_by_hand": len(register.marks),
                "register": register_table(["student", *register.sessions], [list(row) for row in register.rows()]),
                **review_metadata(
                    read_review(surroundings, class_name, spec.name),
                    photo_store,
                    thumbnails=settings.thumbnails_in_ui,
                ),
            }

        return for_each_partition(context, register)

    return class_attendance
