"""Checks on photos and faces, before any model has seen them."""

import dagster as dg

from pipelines.assets.face_crops import face_crops
from pipelines.assets.session_images import session_images
from pipelines.checks.common import check_each_session
from pipelines.database import catalog, crops
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.face_detector import FaceDetector
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.intake import unregistered_photos
from pipelines.settings import get_settings

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
# More small faces than this share, and the class should be photographed from nearer.
MAX_SHARE_OF_SMALL_FACES = 0.2


@dg.asset_check(asset=session_images, blocking=True)
def every_photo_was_read_or_has_a_reason(
    context: dg.AssetCheckExecutionContext, database: Database, photo_store: PhotoStore
) -> dg.AssetCheckResult:
    """Every file in the photo root is registered by its content, as read or as refused with a reason."""
    return check_each_session(
        context,
        lambda key: [f"{path} is not registered" for path in unregistered_photos(database, photo_store, key)],
        severity=ERROR,
    )


@dg.asset_check(asset=face_crops, blocking=True)
def every_photo_was_searched_for_faces(
    context: dg.AssetCheckExecutionContext, database: Database, face_detector: FaceDetector
) -> dg.AssetCheckResult:
    """No photo that could be read was left out by the detector as it is set now."""

    def left_out(key: SessionKey) -> list[str]:
        with database.connection() as connection:
            images = catalog.session_images(connection, catalog.find_session(connection, key).id)
        return [
            f"{image.path} was not searched by {face_detector.version}"
            for image in images
            if not image.refused_reason and image.searched_with != face_detector.version
        ]

    return check_each_session(context, left_out, severity=ERROR)


@dg.asset_check(asset=face_crops)
def photos_show_faces(context: dg.AssetCheckExecutionContext, database: Database) -> dg.AssetCheckResult:
    """Every photo of the session shows somebody."""

    def without_faces(key: SessionKey) -> list[str]:
        with database.connection() as connection:
            session = catalog.find_session(connection, key)
            shown = {crop.image_id for crop in crops.session_crops(connection, session.id)}
            images = catalog.session_images(connection, session.id)
        return [f"{i.path} shows no face" for i in images if not i.refused_reason and i.id not in shown]

    return check_each_session(context, without_faces, severity=WARN)


@dg.asset_check(asset=face_crops)
def faces_are_large_enough(context: dg.AssetCheckExecutionContext, database: Database) -> dg.AssetCheckResult:
    """At most a fifth of a session's faces are smaller than what the quality gate asks for."""
    smallest = get_settings().quality_min_size

    def too_small(key: SessionKey) -> list[str]:
        with database.connection() as connection:
            rows = crops.session_crops(connection, catalog.find_session(connection, key).id)
        small = sum(min(row.width, row.height) < smallest for row in rows)
        if small <= MAX_SHARE_OF_SMALL_FACES * len(rows):
            return []
        return [f"{small} of {len(rows)} faces of {key} are under {smallest:g} pixels: photograph from nearer"]

    return check_each_session(context, too_small, severity=WARN, smallest_px=smallest)
