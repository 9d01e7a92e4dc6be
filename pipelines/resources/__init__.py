"""What touches the outside: database, photo store, face detector, embedding models."""

import dagster as dg

from pipelines.settings import Settings


def build_resources(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """The resources under the names that assets, checks and sensors ask for."""
    from pipelines.resources.database import Database
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.resources.face_detector import FaceDetector
    from pipelines.resources.photo_store import PhotoStore

    return {
        "database": Database(),
        "photo_store": PhotoStore.from_settings(settings),
        "face_detector": FaceDetector.from_settings(settings),
        "embedding_models": EmbeddingModels.from_settings(settings),
    }
