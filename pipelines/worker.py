"""`attendansee worker`: a warm process that executes the runs which the scale-out profile hands out over a broker.

A worker keeps the code location and the embedding networks in memory and executes each run in that process. Nothing is
lost with it: a message that a worker had taken comes back (`visibility_timeout` in the profile's dagster.yaml), a run
that had started is found out by its lock and retried (`pipelines.run_launcher`). Nothing is done twice either: who
holds a run's lock works on it, and a message about any other run is dropped.
"""

import logging
import os
from typing import Any

import dagster as dg
import psycopg
import sqlalchemy.exc
from celery import Task, shared_task
from celery.signals import worker_process_init
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_postgres.utils import DagsterPostgresException

from pipelines.database import catalog, run_locks
from pipelines.errors import AttendanseeError, DatabaseError
from pipelines.instance import prepare_dagster_home
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.run_launcher import WORKER_TAG, BrokerError, check_broker
from pipelines.settings import Settings, get_settings

_WAITING = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)

_logger = logging.getLogger(__name__)


def run_worker(settings: Settings, concurrency: int = 1) -> int:
    """Execute runs until SIGTERM or Ctrl-C, which let the runs in progress end first; returns the exit status.

    concurrency: runs at a time, each in a process of its own with its own networks. Raises an AttendanseeError where
    the broker or the database cannot be reached.
    """
    if settings.broker_url is None:
        raise BrokerError("ATTENDANSEE_BROKER_URL is not set: give the Redis that `attendansee up` uses (see README).")
    prepare_dagster_home(settings)
    check_broker(settings)
    with Database().connection():
        pass  # reached, and its tables up to date
    with dg.DagsterInstance.get() as instance:
        # The launcher's own app: broker and options are what dagster.yaml says on either side.
        app = instance.run_launcher.celery  # type: ignore[attr-defined]
    # Before the pool forks, so that its processes share the modules' memory and a new one starts at once.
    import pipelines.definitions  # noqa: F401 - for the time it takes

    worker = app.Worker(
        hostname=f"attendansee-{os.getpid()}@{os.uname().nodename}",
        concurrency=concurrency,
        pool="prefork",
        loglevel="INFO",
    )
    worker.start()
    return worker.exitcode or 0


@worker_process_init.connect
def _warm_up(**_: Any) -> None:
    """Load what every run needs, in each process of the pool."""
    # Ctrl-C in a terminal reaches a whole process group; the run in progress shall end first.
    os.setpgrp()
    from pipelines.definitions import defs

    defs.get_repository_def()
    settings = get_settings()
    with Database().connection() as connection:
        names = {settings.model, *catalog.active_models(connection).values()}
    models = EmbeddingModels.from_settings(settings)
    for name in sorted(names):
        try:
            models.get(name)
        except AttendanseeError as error:
            # A run that needs this model will fail with the same words; others can do without.
            _logger.warning("The model %s is not ready: %s", name, error)


# A task that raises is acknowledged: while PostgreSQL restarted, idle workers emptied the queue. The lock and the status of
# the run make sure that one which has begun is not begun again.
@shared_task(
    bind=True,
    name=TASK_EXECUTE_JOB_NAME,
    ignore_result=True,
    autoretry_for=(DatabaseError, DagsterPostgresException, psycopg.OperationalError, sqlalchemy.exc.OperationalError),
    retry_backoff=2,
    retry_backoff_max=30,
    max_retries=None,
)
def execute_job(self: Task, execute_job_args_packed: Any) -> None:
    """Execute one run in this process, unless another worker has it; dagster-celery's task of the same name.

    execute_job_args_packed: ExecuteRunArgs as the launcher packs them.
    """
    run_id = unpack_value(execute_job_args_packed, as_type=ExecuteRunArgs).run_id
    with dg.DagsterInstance.get() as instance, Database().connection() as connection:
        if not run_locks.hold_run(connection, run_id):
            _logger.info("Run %s is being executed already.", run_id)
            return
        run = instance.get_run_by_id(run_id)
        if run is None or run.status not in _WAITING:
            # Sent again for want of an acknowledgement. What became of the run is known; if that worker was lost, run
            # monitoring retries it.
            _logger.info("Run %s is not waiting for a worker any more.", run_id)
            return
        instance.add_run_tags(run_id, {WORKER_TAG: self.request.hostname})
        _execute_run_command_body(run_id, instance, lambda _: None, set_exit_code_on_failure=False)
