"""Who was present in a session, by one model's assignments."""

from dataclasses import asdict
from typing import Any

import dagster as dg

from pipelines.assets.common import for_each_session, lineage_asset, model_asset
from pipelines.assets.review_metadata import register_table, review_metadata
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import ServiceContext
from pipelines.services.review import Review, read_review
from pipelines.settings import get_settings

_COLUMNS = ["student", "status", "by_hand", "faces", "doubtful_faces", "risk"]


def build_session_attendance(spec: ModelSpec) -> dg.AssetsDefinition:
    """`<model>/session_attendance`."""

    @lineage_asset(
        spec,
        "session_attendance",
        deps=[model_asset(spec, "student_assignments")],
        kinds={"python", "postgres"},
        description="Present, absent or unsure for every student of the class, and the unknown people who were seen.",
    )
    def session_attendance(
        context: dg.AssetExecutionContext,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> dg.MaterializeResult:
        service = AttendanceService(database, spec.name)
        settings = get_settings()
        surroundings = ServiceContext(database, photo_store, embedding_models, settings)

        def register(key: SessionKey) -> dict[str, Any]:
            faces = asdict(service.register_session(key))
            if key.is_enrolment:
                return {**faces, **service.register(key.class_name).counts(key.session_name)}
            review = read_review(surroundings, key.class_name, spec.name, key.session_name, alone=True)
            (session,) = review.sessions
            return {
                **faces,
                **session.counts,
                "register": register_table(_COLUMNS, _rows(review)),
                **review_metadata(review, photo_store, thumbnails=settings.thumbnails_in_ui),
            }

        return for_each_session(context, register, model=spec.name)

    return session_attendance


def _rows(review: Review) -> list[list[Any]]:
    """A row for each cell of the one session."""
    names = review.names()
    return [
        [
            names[cell.student_id],
            cell.status,
            cell.mark.decided_by if cell.mark else None,
            len(cell.crop_ids),
            len(cell.doubtful_ids),
            None if cell.risk is None else round(cell.risk, 4),
        ]
        for cell in review.cells
    ]
