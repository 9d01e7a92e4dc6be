"""The assets: photos and faces once, then one lineage for each embedding model of the registry."""

import dagster as dg

from pipelines.assets.calibration import build_calibration
from pipelines.assets.class_attendance import build_class_attendance
from pipelines.assets.face_clusters import build_face_clusters
from pipelines.assets.face_crops import face_crops
from pipelines.assets.face_embeddings import build_face_embeddings
from pipelines.assets.model_comparison import build_model_comparison
from pipelines.assets.plan_reclustering import build_plan_reclustering
from pipelines.assets.session_attendance import build_session_attendance
from pipelines.assets.session_images import session_images
from pipelines.assets.student_assignments import build_student_assignments
from pipelines.resources.embedding.registry import REGISTRY, ModelSpec

PHOTO_ASSETS = [session_images, face_crops]


def build_lineage(spec: ModelSpec) -> list[dg.AssetsDefinition]:
    """The assets of one embedding model, from vectors to attendance."""
    return [
        build_face_embeddings(spec),
        build_face_clusters(spec),
        build_student_assignments(spec),
        build_session_attendance(spec),
        build_class_attendance(spec),
        build_model_comparison(spec),
        build_calibration(spec),
        build_plan_reclustering(spec),
    ]


ALL_ASSETS = [*PHOTO_ASSETS, *(asset for spec in REGISTRY.values() for asset in build_lineage(spec))]
