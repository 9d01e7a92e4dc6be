"""What a service works with: the database, the photos, the models, the settings."""

from dataclasses import dataclass

from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.settings import Settings, get_settings


@dataclass(frozen=True)
class ServiceContext:
    """The outside world of a service.

    lock_patience_s: how long to wait for a class that somebody else is deciding about before ClassBusyError;
    None waits for as long as it takes, as a run should.
    """

    database: Database
    store: PhotoStore
    models: EmbeddingModels
    settings: Settings
    lock_patience_s: float | None = None


def default_context() -> ServiceContext:
    """The one that the process's settings describe."""
    settings = get_settings()
    return ServiceContext(
        Database(), PhotoStore.from_settings(settings), EmbeddingModels.from_settings(settings), settings
    )
