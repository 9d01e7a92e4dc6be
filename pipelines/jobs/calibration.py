"""Adopting a class's thresholds and going back to the model's own, as jobs: one op each."""

from pydantic import BaseModel

from pipelines.jobs.operations import build_operation_job
from pipelines.jobs.students import DECIDED_BY
from pipelines.services.calibration import AdoptCalibration, ResetCalibration, adopt_calibration, reset_calibration
from pipelines.services.context import ServiceContext
from pipelines.services.operations import Operation


def _adopt(context: ServiceContext, p: AdoptCalibration, run_id: str | None) -> BaseModel:
    return adopt_calibration(context, p.calibration_id, p.reason, adopted_by=DECIDED_BY, run_id=run_id)


def _reset(context: ServiceContext, p: ResetCalibration, run_id: str | None) -> BaseModel:
    return reset_calibration(context, p.class_name, p.embedding_model, p.reason, adopted_by=DECIDED_BY, run_id=run_id)


CALIBRATION_JOBS = {
    operation.name: build_operation_job(operation)
    for operation in (
        Operation(
            "adopt_calibration",
            "Let the thresholds of a calibration hold for its class, from the next run on.",
            AdoptCalibration,
            _adopt,
        ),
        Operation(
            "reset_calibration",
            "Let the model's own thresholds hold for a class again, from the next run on.",
            ResetCalibration,
            _reset,
        ),
    )
}
