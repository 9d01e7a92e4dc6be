"""Dagster as the API sees it: which classes its runs are processing, and launching a job in its webserver."""

from collections.abc import Callable, Collection, Mapping
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from pipelines.errors import AttendanseeError, ClassBusyError
from pipelines.instance import classes_of_run, fail_lost_runs
from pipelines.partitions import CLASS_TAG
from pipelines.settings import Settings

if TYPE_CHECKING:
    import dagster as dg

LAUNCH_TIMEOUT_S = 30
# For so long an answer of Dagster's counts for all calls, so that those about one crop stay fast.
FRESH_S = 1.0


class DagsterError(AttendanseeError):
    """Dagster cannot be asked."""


class RunStarted(BaseModel):
    """A run that Dagster was asked for."""

    run_id: str
    url: str


class DagsterRuns:
    """The runs of the Dagster instance in ATTENDANSEE_HOME, and the webserver at ATTENDANSEE_DAGSTER_URL."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = Lock()
        self._opened: dg.DagsterInstance | None = None
        self._asking = Lock()
        self._asked = float("-inf")
        self._run_of: dict[str, str] = {}

    def check_free(self, class_names: Callable[[], Collection[str]]) -> None:
        """Raise ClassBusyError where a run is processing one of the classes; they are asked for only if a run is there.

        What is known of the runs may be FRESH_S old: a run that has just begun is kept apart by the class's own lock.
        """
        with self._asking:
            if monotonic() - self._asked >= FRESH_S:
                self._run_of = self._processing()
                self._asked = monotonic()
            run_of = self._run_of
        busy = next((name for name in class_names() if name in run_of), None) if run_of else None
        if busy is not None:
            raise ClassBusyError(
                f"The class is being processed by the Dagster run {run_of[busy]}: try again when it has ended, "
                f"see {self._url_of(run_of[busy])}."
            )

    def _processing(self) -> dict[str, str]:
        """The run that is processing each class, by the class's name."""
        import dagster as dg
        from dagster_postgres.utils import DagsterPostgresException
        from sqlalchemy.exc import DBAPIError

        # Runs that wait in the queue are doing nothing yet, and would block the class for ever where no daemon runs.
        processing = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
        instance = self._instance()
        if instance is None:
            return {}
        try:
            fail_lost_runs(instance)
            runs = instance.get_runs(dg.RunsFilter(statuses=processing))
            return {name: run.run_id for run in runs for name in classes_of_run(instance, run.tags)}
        except (DBAPIError, DagsterPostgresException) as error:
            raise DagsterError("Dagster's records in the database cannot be read: try again.") from error

    def launch(self, job: str, config: Mapping[str, Any], class_name: str | None = None) -> RunStarted:
        """Have the webserver launch a job whose one op has the job's name; raises DagsterError where it cannot."""
        from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError
        from gql.transport.requests import RequestsHTTPTransport

        url = urlsplit(self.settings.dagster_url)
        # A proxy that the environment names is for other places than the webserver beside us.
        transport = RequestsHTTPTransport(
            f"{self.settings.dagster_url.rstrip('/')}/graphql",
            timeout=LAUNCH_TIMEOUT_S,
            proxies={"no_proxy": url.hostname or ""},
        )
        client = DagsterGraphQLClient(url.hostname or "", transport=transport)
        try:
            run_id = client.submit_job_execution(
                job,
                run_config={"ops": {job: {"config": dict(config)}}},
                tags={CLASS_TAG: class_name} if class_name else None,
            )
        except DagsterGraphQLClientError as error:
            if error.__cause__ is not None:  # The client's own message repeats the query and its variables.
                raise DagsterError(
                    f"Dagster's webserver does not answer at {self.settings.dagster_url}: start `attendansee up`, "
                    "or set ATTENDANSEE_DAGSTER_URL."
                ) from error
            raise DagsterError(f"Dagster did not launch {job}: {' '.join(map(str, error.args))}") from error
        return RunStarted(run_id=run_id, url=self._url_of(run_id))

    def close(self) -> None:
        """Let go of Dagster's storage."""
        if self._opened is not None:
            self._opened.dispose()

    def _url_of(self, run_id: str) -> str:
        return f"{self.settings.dagster_url.rstrip('/')}/runs/{run_id}"

    def _instance(self) -> "dg.DagsterInstance | None":
        """The instance, opened once; None where no command has made its folder yet, so that there are no runs."""
        import dagster as dg

        home = self.settings.dagster_home.resolve()
        if not (home / "dagster.yaml").is_file():
            return None
        with self._lock:
            if self._opened is None:
                self._opened = dg.DagsterInstance.from_config(str(home))
            return self._opened
