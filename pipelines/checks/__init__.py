"""Asset checks: integrity blocks what follows, quality warns. Names are sentences."""

from pipelines.checks.attendance import build_session_attendance_checks
from pipelines.checks.embeddings import build_embedding_check
from pipelines.checks.identities import build_identity_check
from pipelines.checks.photos import (
    every_photo_was_read_or_has_a_reason,
    every_photo_was_searched_for_faces,
    faces_are_large_enough,
    photos_show_faces,
)
from pipelines.resources.embedding.registry import REGISTRY

ALL_CHECKS = [
    every_photo_was_read_or_has_a_reason,
    every_photo_was_searched_for_faces,
    photos_show_faces,
    faces_are_large_enough,
    *(build_embedding_check(spec) for spec in REGISTRY.values()),
    *(build_identity_check(spec) for spec in REGISTRY.values()),
    *(build_session_attendance_checks(spec) for spec in REGISTRY.values()),
]
