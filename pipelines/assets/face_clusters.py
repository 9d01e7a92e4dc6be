"""A session's faces grouped into people by one model's vectors."""

import dagster as dg

from pipelines.assets.common import counts, for_each_session, lineage_asset, model_asset
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService


def build_face_clusters(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/face_clusters`."""

    @lineage_asset(
        spec,
        "face_clusters",
        deps=[model_asset(spec, "face_embeddings")],
        kinds={"python", "numpy", "postgres"},
        description="The session's usable crops in groups of one person each; crops of one photo stay apart.",
    )
    def face_clusters(
        context: dg.AssetExecutionContext,
        config: ClusteringConfig,
        database: Database,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        service = SessionClusteringService(database, spec.name, embedding_models.version(spec.name))
        return for_each_session(
            context,
            lambda key: counts(service.cluster_session(key, config)),
            model=spec.name,
            algorithm=config.algorithm,
            distance_threshold=config.distance_threshold or spec.clustering_distance,
        )

    return face_clusters
