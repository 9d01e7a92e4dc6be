"""The operations on face crops as jobs: one op each, launched with parameters, answering in the run's metadata."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from pipelines.assets.common import RETRY, plain_failure
from pipelines.partitions import CLASS_TAG
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.context import ServiceContext
from pipelines.services.operations import OPERATIONS, Operation, class_concerned
from pipelines.services.parameters import checked
from pipelines.settings import get_settings

# Under this name the answer lies in the metadata of the op's output.
RESPONSE = "response"


def build_operation_job(
    operation: Operation, check: Callable[[dg.DagsterInstance, ServiceContext, Any], None] | None = None
) -> dg.JobDefinition:
    """The job of one operation; its only op is configured under the same name.

    check: raises AttendanseeError where other runs of the instance forbid the operation with these parameters.
    """

    # Not a `config` argument: Dagster would say in pydantic's words what is out of range, and try it a second time. An
    # op's definition must not share the name of a job's, so the op has the job's name as its alias.
    @dg.op(
        name=f"{operation.name}_op",
        description=operation.description,
        config_schema=operation.parameters.to_config_schema().as_field(),
        retry_policy=RETRY,
    )
    def perform(
        context: dg.OpExecutionContext,
        database: Database,
        photo_store: PhotoStore,
        embedding_models: EmbeddingModels,
    ) -> None:
        with plain_failure():
            parameters = checked(operation.parameters, **context.op_config)
            with database.connection() as connection:
                class_name = class_concerned(connection, parameters)
            # Others see by it that the class is being processed.
            if class_name is not None:
                context.instance.add_run_tags(context.run_id, {CLASS_TAG: class_name})
            surroundings = ServiceContext(database, photo_store, embedding_models, get_settings())
            if check is not None:
                check(context.instance, surroundings, parameters)
            answer = operation.perform(surroundings, parameters, context.run_id)
        context.add_output_metadata({RESPONSE: dg.MetadataValue.json(answer.model_dump(mode="json"))})

    @dg.job(name=operation.name, description=operation.description, tags={"domain": "attendance", "pii": "true"})
    def job() -> None:
        perform.alias(operation.name)()

    return job


OPERATION_JOBS = {name: build_operation_job(operation) for name, operation in OPERATIONS.items()}
