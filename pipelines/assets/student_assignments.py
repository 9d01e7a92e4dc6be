"""Who each face of a session is, by one model's vectors."""

import dagster as dg

from pipelines.assets.common import counts, for_each_session, lineage_asset, model_asset
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService


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
        embedding_models: EmbeddingModels,
    ) -> None:
        service = SessionAssignmentService(database, spec.name, embedding_models.version(spec.name))
        for_each_session(
            context,
            lambda key: counts(service.assign_session(key, config, context.run.run_id)),
            model=spec.name,
            k=config.k,
            distance_threshold=config.distance_threshold or spec.assignment_distance,
            margin=spec.review_margin if config.margin is None else config.margin,
            use_voting=config.use_voting,
        )

    return student_assignments
