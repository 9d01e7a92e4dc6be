"""Who each face of a session is, by one model's vectors."""

from functools import cache
from typing import Any

import dagster as dg

from pipelines.assets.common import counts, for_each_session, lineage_asset, model_asset
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.embedding import EmbeddingService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.settings import get_settings


def build_student_assignments(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/student_assignments`."""

    @lineage_asset(
        spec,
        "student_assignments",
        deps=[model_asset(spec, "face_clusters")],
        kinds={"python", "numpy", "postgres"},
        description="Each crop's student by KNN against the class's gallery, once per photo; unknown people become "
        "provisional students.",
    )
    def student_assignments(
        context: dg.AssetExecutionContext,
        config: AssignmentConfig,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        service = SessionAssignmentService(database, spec.name, embedding_models.version(spec.name))
        embedding = EmbeddingService(
            spec.name, context=ServiceContext(database, photo_store, embedding_models, get_settings())
        )

        @cache
        def embed_portraits(class_name: str) -> None:
            for crop_id, reason in embedding.embed_portraits(class_name).items():
                context.log.warning(f"Nobody is compared with crop {crop_id}, a portrait or confirmed: {reason}")

        def assign(key: SessionKey) -> dict[str, Any]:
            # A backfill's runs come to a class's portraits in any order: whoever needs their vectors makes them.
            embed_portraits(key.class_name)
            return counts(service.assign_session(key, config, context.run.run_id))

        return for_each_session(
            context,
            assign,
            model=spec.name,
            k=config.k,
            use_voting=config.use_voting,
        )

    return student_assignments
