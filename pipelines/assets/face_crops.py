"""Faces in the photos of a session."""

import dagster as dg

from pipelines.assets.common import BACKFILL, OWNERS, RETRY, TAGS, counts, for_each_session
from pipelines.assets.session_images import session_images
from pipelines.partitions import sessions
from pipelines.resources.database import Database
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.detection import DetectionService
from pipelines.settings import get_settings


@dg.asset(
    deps=[session_images],
    partitions_def=sessions,
    group_name="photos",
    kinds={"python", "opencv", "postgres"},
    owners=OWNERS,
    tags=TAGS,
    code_version="1",
    backfill_policy=BACKFILL,
    retry_policy=RETRY,
)
def face_crops(
    context: dg.AssetExecutionContext, database: Database, photo_store: PhotoStore, face_detector: FaceDetector
) -> dg.MaterializeResult:
    """Every face of the session's photos: box, five landmarks, confidence and quality, and whether it may be clustered."""
    service = DetectionService(database, photo_store, face_detector, get_settings())
    return for_each_session(context, lambda key: counts(service.detect_session(key)), detector=face_detector.version)
