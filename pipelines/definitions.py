"""The code location: assembles, nothing else."""

import dagster as dg

from pipelines.assets import ALL_ASSETS
from pipelines.checks import ALL_CHECKS
from pipelines.jobs import CLASS_ATTENDANCE, PROCESS_SESSION
from pipelines.jobs.calibration import CALIBRATION_JOBS
from pipelines.jobs.decisions import DECISION_JOBS
from pipelines.jobs.model_switch import MODEL_SWITCH_JOBS
from pipelines.jobs.operations import OPERATION_JOBS
from pipelines.jobs.reclustering import APPLY_RECLUSTERING
from pipelines.jobs.students import STUDENT_JOBS
from pipelines.resources import build_resources
from pipelines.sensors import build_sensors
from pipelines.settings import get_settings

defs = dg.Definitions(
    assets=ALL_ASSETS,
    asset_checks=ALL_CHECKS,
    jobs=[
        *PROCESS_SESSION.values(),
        *CLASS_ATTENDANCE.values(),
        *OPERATION_JOBS.values(),
        *STUDENT_JOBS.values(),
        *DECISION_JOBS.values(),
        *CALIBRATION_JOBS.values(),
        *MODEL_SWITCH_JOBS.values(),
        APPLY_RECLUSTERING,
    ],
    sensors=build_sensors(PROCESS_SESSION, CLASS_ATTENDANCE),
    resources=build_resources(get_settings()),
    # One process for a whole run: a process per step pays Dagster's and TensorFlow's start-up for each of them.
    executor=dg.in_process_executor,
)
