"""One model's vectors of a session's face crops."""

import dagster as dg
from pydantic import Field

from pipelines.assets.common import (
    BACKFILL,
    OWNERS,
    RETRY,
    TAGS,
    counts,
    for_each_session,
    model_asset,
    model_code_version,
)
from pipelines.assets.face_crops import face_crops
from pipelines.partitions import sessions
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.embedding import EmbeddingService
from pipelines.settings import get_settings


class EmbeddingConfig(dg.Config):
    """Whether vectors that are there already are computed again."""

    force_regenerate: bool = Field(default=False, description="Compute vectors again that are stored already.")


def build_face_embeddings(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/face_embeddings`."""

    @dg.asset(
        key=model_asset(spec, "face_embeddings"),
        deps=[face_crops],
        partitions_def=sessions,
        group_name=spec.name,
        kinds={"python", "tensorflow", "pgvector"} if spec.name != "dlib" else {"python", "dlib", "pgvector"},
        owners=OWNERS,
        tags=TAGS,
        code_version=model_code_version(spec, "1"),
        backfill_policy=BACKFILL,
        retry_policy=RETRY,
        description=f"Unit vectors ({spec.dimension}-D, {spec.deepface_name}) of the session's face crops in pgvector.",
    )
    def face_embeddings(
        context: dg.AssetExecutionContext,
        config: EmbeddingConfig,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> None:
        service = EmbeddingService(database, photo_store, embedding_models, spec.name, get_settings())
        for_each_session(
            context,
            lambda key: counts(service.embed_session(key, force=config.force_regenerate)),
            model=spec.name,
            dimension=spec.dimension,
            version=service.version,
        )

    return face_embeddings
