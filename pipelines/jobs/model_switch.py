"""Switching a class's active model and deleting a lineage, as jobs: one op each, answering in the run's metadata."""

import dagster as dg
from pydantic import BaseModel

from pipelines.database import catalog
from pipelines.errors import ClassBusyError
from pipelines.instance import classes_of_run
from pipelines.jobs.operations import build_operation_job
from pipelines.jobs.students import DECIDED_BY
from pipelines.partitions import MODEL_TAG
from pipelines.services.context import ServiceContext
from pipelines.services.model_switch import DeleteLineage, ModelSwitchService, SwitchModel
from pipelines.services.operations import Operation

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def check_no_run_under_way(instance: dg.DagsterInstance, context: ServiceContext, parameters: SwitchModel) -> None:
    """Raise ClassBusyError while a run processes the class with its active model, or waits to.

    What such a run brings to an end after the switch, the new model has never seen, and nothing would request it again.
    """
    with context.database.connection() as connection:
        active = catalog.active_model(connection, parameters.class_name)
    if active is None:
        return
    for run in instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED)):
        # Runs that a person launches in the UI, and those of a backfill, carry no tags of ours.
        with_active = run.tags.get(MODEL_TAG) == active or any(
            key.path[0] == active for key in run.asset_selection or ()
        )
        if with_active and parameters.class_name in classes_of_run(instance, run.tags):
            raise ClassBusyError(
                f"The run {run.run_id} processes {parameters.class_name} with {active}: switch when it has ended, or "
                "terminate it in the Dagster UI."
            )


def _switch(context: ServiceContext, p: SwitchModel, run_id: str | None) -> BaseModel:
    return ModelSwitchService(DECIDED_BY, run_id, context=context).switch(
        p.class_name, p.model_name, p.reason, accept=p.accept, allow_missing_sessions=p.allow_missing_sessions
    )


def _delete(context: ServiceContext, p: DeleteLineage, run_id: str | None) -> BaseModel:
    return ModelSwitchService(DECIDED_BY, run_id, context=context).delete_lineage(p.class_name, p.model_name)


MODEL_SWITCH_JOBS = {
    "switch_model": build_operation_job(
        Operation(
            "switch_model",
            "Let another model's attendance count for a class from now on; the other lineage stays as it is.",
            SwitchModel,
            _switch,
        ),
        check_no_run_under_way,
    ),
    "delete_lineage": build_operation_job(
        Operation(
            "delete_lineage",
            "Delete the vectors, clusters, assignments and attendance of a model that does not count for a class.",
            DeleteLineage,
            _delete,
        )
    ),
}
