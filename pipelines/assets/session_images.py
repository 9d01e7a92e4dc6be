"""Photos of a session, registered once each."""

import dagster as dg

from pipelines.assets.common import BACKFILL, OWNERS, RETRY, TAGS, counts, for_each_session, plain_failure
from pipelines.partitions import MODEL_TAG, sessions
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.intake import register_session_images
from pipelines.settings import get_settings


@dg.asset(
    partitions_def=sessions,
    group_name="photos",
    kinds={"python", "postgres"},
    owners=OWNERS,
    tags=TAGS,
    code_version="1",
    backfill_policy=BACKFILL,
    retry_policy=RETRY,
)
def session_images(
    context: dg.AssetExecutionContext,
    database: Database,
    photo_store: PhotoStore,
    embedding_models: EmbeddingModels,
) -> dg.MaterializeResult:
    """The session's photos, each once by content hash with size, date and path, or with the reason it was refused."""
    settings = get_settings()
    if model := context.run.tags.get(MODEL_TAG):
        # A run that goes on to a model without weights would fail after minutes of searching for faces.
        with plain_failure():
            embedding_models.require(model)
    return for_each_session(
        context,
        lambda key: counts(register_session_images(database, photo_store, settings, key)),
        max_megapixels=settings.max_megapixels,
    )
