"""One model's vectors of a session's face crops."""

import dagster as dg
from pydantic import Field

from pipelines.assets.common import counts, for_each_session, lineage_asset, plain_failure
from pipelines.assets.face_crops import face_crops
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.embedding import EmbeddingService
from pipelines.settings import get_settings


class EmbeddingConfig(dg.Config):
    """Whether vectors that are there already are computed again."""

    force_regenerate: bool = Field(default=False, description="Compute vectors again that are stored already.")


def build_face_embeddings(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/face_embeddings`."""

    @lineage_asset(
        spec,
        "face_embeddings",
        deps=[face_crops],
        kinds={"python", spec.framework, "pgvector"},
        description=f"Unit vectors ({spec.dimension}-D, {spec.title}) of the session's face crops in pgvector.",
        # Without a limit until somebody sets one, for all workers together (see README, "More than one machine").
        pool="embedding",
    )
    def face_embeddings(
        context: dg.AssetExecutionContext,
        config: EmbeddingConfig,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        service = EmbeddingService(
            spec.name, context=ServiceContext(database, photo_store, embedding_models, get_settings())
        )
        with plain_failure():
            embedding_models.require(spec.name)  # else every session would fail for the same reason
        return for_each_session(
            context,
            lambda key: counts(service.embed_session(key, force=config.force_regenerate)),
            model=spec.name,
            dimension=spec.dimension,
            version=service.version,
        )

    return face_embeddings
