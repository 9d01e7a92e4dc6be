"""Applying a plan of clustering a class anew, as a job."""

from pydantic import BaseModel

from pipelines.jobs.operations import build_operation_job
from pipelines.jobs.students import DECIDED_BY
from pipelines.services.context import ServiceContext
from pipelines.services.operations import Operation
from pipelines.services.reclustering import ApplyReclustering, ReclusteringService


def _apply(context: ServiceContext, p: ApplyReclustering, run_id: str | None) -> BaseModel:
    return ReclusteringService(context=context).apply(p.plan_id, DECIDED_BY, p.reason, run_id)


APPLY_RECLUSTERING = build_operation_job(
    Operation(
        "apply_reclustering",
        "Do exactly what a plan of clustering a class anew says; refused where the class has changed since.",
        ApplyReclustering,
        _apply,
    )
)
