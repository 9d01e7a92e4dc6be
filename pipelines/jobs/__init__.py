"""Jobs: what a run does from end to end, for one model."""

from typing import TYPE_CHECKING

import dagster as dg

from pipelines.assets import PHOTO_ASSETS
from pipelines.assets.common import model_asset
from pipelines.partitions import MODEL_TAG
from pipelines.resources.embedding.registry import REGISTRY, ModelSpec

if TYPE_CHECKING:
    # What dg.define_asset_job returns; Dagster does not export it.
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition as Job

SESSION_STAGES = ("face_embeddings", "face_clusters", "student_assignments", "session_attendance")


def build_process_session(spec: ModelSpec) -> "Job":
    """From a session's photos to its attendance in one run, so that start-up is paid once."""
    return dg.define_asset_job(
        f"process_session_{spec.name}",
        selection=dg.AssetSelection.assets(*PHOTO_ASSETS, *(model_asset(spec, stage) for stage in SESSION_STAGES)),
        description=f"Photos of a session to its attendance, with {spec.title} embeddings.",
        tags={MODEL_TAG: spec.name},
    )


def build_class_attendance_job(spec: ModelSpec) -> "Job":
    """A class's register anew."""
    return dg.define_asset_job(
        f"class_attendance_{spec.name}",
        selection=dg.AssetSelection.assets(model_asset(spec, "class_attendance")),
        description="The register of a class over all its sessions.",
        tags={MODEL_TAG: spec.name},
    )


PROCESS_SESSION = {name: build_process_session(spec) for name, spec in REGISTRY.items()}
CLASS_ATTENDANCE = {name: build_class_attendance_job(spec) for name, spec in REGISTRY.items()}
