"""Switching a class's active model and deleting a lineage, as jobs: one op each, answering in the run's metadata."""

import dagster as dg
from pydantic import BaseModel

from pipelines.backfill import unfinished_backfills
from pipelines.database import catalog
from pipelines.errors import ClassBusyError
from pipelines.instance import UNFINISHED, classes_of_run
from pipelines.jobs.operations import build_operation_job
from pipelines.jobs.students import DECIDED_BY
from pipelines.partitions import MODEL_TAG
from pipelines.services.context import ServiceContext
from pipelines.services.model_switch import DeleteLineage, ModelSwitchService, SwitchModel
from pipelines.services.operations import Operation


def check_no_run_under_way(
    instance: dg.DagsterInstance, model: str, class_name: str | None = None, *, action: str
) -> None:
    """Raise ClassBusyError while a run processes the class with the model, or waits to.

    class_name: None for any class. action: what is to be done once the run has ended, for the message.
    """
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        # Runs that a person launches in the UI, and those of a backfill, carry no tags of ours.
        with_model = run.tags.get(MODEL_TAG) == model or any(key.path[0] == model for key in run.asset_selection or ())
        if with_model and (class_name is None or class_name in classes_of_run(instance, run.tags)):
            raise ClassBusyError(
                f"The run {run.run_id} processes {class_name or 'photos'} with {model}: {action} when it has ended, or "
                "terminate it in the Dagster UI."
            )


def check_switch(instance: dg.DagsterInstance, context: ServiceContext, parameters: SwitchModel) -> None:
    """Raise ClassBusyError while a run processes the class with its active model, or waits to.

    What such a run brings to an end after the switch, the new model has never seen, and nothing would request it again.
    """
    with context.database.connection() as connection:
        active = catalog.active_model(connection, parameters.class_name)
    if active is not None:
        check_no_run_under_way(instance, active, parameters.class_name, action="switch")


def check_deletion(instance: dg.DagsterInstance, model: str, class_name: str | None = None) -> None:
    """Raise ClassBusyError while a run (on the class, None: on any) or a backfill makes what is to be deleted.

    A stage that comes after the deletion would build on what is gone, or bring half of it back.
    """
    check_no_run_under_way(instance, model, class_name, action="delete what it makes")
    for backfill_id in unfinished_backfills(instance, model):
        raise ClassBusyError(
            f"The backfill {backfill_id} of {model} has not ended: delete what it makes when it has, or cancel it in the "
            "Dagster UI."
        )


def _switch(context: ServiceContext, p: SwitchModel, run_id: str | None) -> BaseModel:
    return ModelSwitchService(DECIDED_BY, run_id, context=context).switch(
        p.class_name, p.model_name, p.reason, accept=p.accept, allow_missing_sessions=p.allow_missing_sessions
    )


def _check_delete(instance: dg.DagsterInstance, context: ServiceContext, parameters: DeleteLineage) -> None:
    del context
    check_deletion(instance, parameters.model_name, parameters.class_name)


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
        check_switch,
    ),
    "delete_lineage": build_operation_job(
        Operation(
            "delete_lineage",
            "Delete the vectors, clusters, assignments and attendance of a model that does not count for a class.",
            DeleteLineage,
            _delete,
        ),
        _check_delete,
    ),
}
