"""The scale-out profile's run launcher: dagster-celery's, which hands each run to a worker, made to notice lost ones."""

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from kombu import Connection
from kombu.exceptions import OperationalError

from pipelines.database import run_locks
from pipelines.errors import AttendanseeError
from pipelines.resources.database import Database
from pipelines.settings import Settings

# The worker that took a run, as Celery names it.
WORKER_TAG = "attendansee/worker"

_CONNECT_TIMEOUT_S = 5


class BrokerError(AttendanseeError):
    """The Redis that runs are handed out over cannot be used."""


class WorkerRunLauncher(CeleryRunLauncher):
    """Starts runs in `attendansee worker`s, over a Celery broker.

    The original asks Celery's result backend how a run is, which goes on saying "started" of a worker that was killed:
    such a run never ended, and neither did its backfill. Here a worker holds a lock in PostgreSQL while it works on a
    run; a run that is started and not held is lost, and Dagster's run monitoring fails and retries it.
    """

    # The in-process executor would begin again with the first step; a retry leaves out the steps that succeeded.
    supports_resume_run = False

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Called by run monitoring, for each run that has started and not ended."""
        if DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            # Executed by a command such as `attendansee run`; see `pipelines.instance.fail_lost_runs`.
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        with Database().connection() as connection:
            if run_locks.is_held(connection, run.run_id):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, f"{self.get_run_worker_debug_info(run)} is gone.")

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str:
        """Who has, or had, the run."""
        del include_container_logs
        return f"The worker {run.tags[WORKER_TAG]}" if WORKER_TAG in run.tags else "No worker took the run."

    def terminate(self, run_id: str) -> bool:
        """Stop a run that a person no longer wants; False where it has ended, or is not a worker's.

        Run monitoring records that it was canceled, after cancel_timeout_seconds.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or DAGSTER_CELERY_TASK_ID_TAG not in run.tags:
            return False
        # The original leaves this out: a run stopped by a person counted as lost, and was retried.
        self._instance.report_run_canceling(run)
        # Not by SIGTERM either: Dagster takes that for an error of the step, whose retry policy begins it again.
        self.celery.control.revoke(run.tags[DAGSTER_CELERY_TASK_ID_TAG], terminate=True, signal="SIGKILL")
        return True


def check_broker(settings: Settings) -> None:
    """Raise BrokerError unless the Redis in the settings answers; its password is not shown."""
    url = settings.broker_url.get_secret_value() if settings.broker_url else ""
    if not url.startswith(("redis://", "rediss://", "redis+socket://")):
        raise BrokerError("ATTENDANSEE_BROKER_URL is no Redis URL: write redis://:PASSWORD@HOST:6379/0.")
    try:
        broker = Connection(url, connect_timeout=_CONNECT_TIMEOUT_S)
        broker.as_uri()
    except (ValueError, KeyError):
        # Their messages quote what lies where the port should be: the rest of a password with a slash in it.
        raise BrokerError(
            "ATTENDANSEE_BROKER_URL cannot be read: write redis://:PASSWORD@HOST:6379/0, with %2F, %23, %3A and %40 for "
            "the characters /, #, : and @ of a password."
        ) from None
    with broker as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_TIMEOUT_S)
        except OperationalError as error:
            reason = " ".join(str(error).split())
            raise BrokerError(
                f"The broker {connection.as_uri()} cannot be used (is ATTENDANSEE_BROKER_URL right, and Redis up?): {reason}"
            ) from error
