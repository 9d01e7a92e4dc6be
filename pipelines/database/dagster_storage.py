"""Dagster's storage in database `dagster` of our server, for dagster.yaml.

```yaml
storage:
  custom:
    module: pipelines.database.dagster_storage
    class: AttendanseeDagsterStorage
    config: {}
```
Any process that loads the instance starts or finds the server.
"""

import os
import weakref
from collections.abc import Mapping
from typing import Any

from dagster._config.config_schema import UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from sqlalchemy import URL, Engine, NullPool, QueuePool, create_engine, event, func, make_url, select
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin

from pipelines.database.server import dagster_url
from pipelines.settings import get_settings

_LOCK_KEY = 0x64616773  # any number, the same in every process that creates Dagster's tables


class AttendanseeDagsterStorage(DagsterPostgresStorage):
    """Runs, events and schedules in PostgreSQL, with no configuration: `dagster_url` knows the server."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        url = make_url(dagster_url(get_settings()))
        surviving = url.update_query_dict({"plugin": SurviveRestart.NAME}).render_as_string(hide_password=False)
        # Processes that make the tables of a fresh database at once trip over each other's; Dagster only retries.
        with create_engine(url, poolclass=NullPool).begin() as lock:
            lock.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
            super().__init__(surviving, inst_data=inst_data)
        # All that an instance calls when it is disposed of; Dagster's own leaves the engines' connections open.
        self._run_storage.dispose = self._close_connections  # type: ignore[method-assign]

    def _close_connections(self) -> None:
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine.dispose()

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "AttendanseeDagsterStorage":
        """What Dagster calls to read dagster.yaml."""
        del config_value
        return cls(inst_data)


class SurviveRestart(CreateEnginePlugin):
    """Lets daemon and webserver, which live long, outlive the server: SQLAlchemy plugin of every engine Dagster makes.

    A pooled connection is tried before use, and a failed connect starts the embedded server again.

    One connection of each engine stays open. Dagster would open a new one for each statement: 60 for each session of a
    backfill, which took longer than the statements.
    """

    NAME = "attendansee_survive_restart"

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        kwargs["pool_pre_ping"] = True
        if kwargs.get("poolclass") is NullPool:
            kwargs |= {"poolclass": QueuePool, "pool_size": 1, "max_overflow": -1}

    def update_url(self, url: URL) -> URL:
        """Nothing of the URL is ours; SQLAlchemy itself takes out the plugin's name."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Hook into the making of connections."""
        # A forked process must not talk through its parent's connections.
        made = weakref.ref(engine)
        os.register_at_fork(after_in_child=lambda: _forget_connections(made()))

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> Any:
            del record
            try:
                return dialect.connect(*args, **parameters)
            except dialect.loaded_dbapi.OperationalError:
                if get_settings().database_url:
                    raise
                # The socket's folder may be another one than before.
                _, fresh = dialect.create_connect_args(make_url(dagster_url(get_settings())))
                return dialect.connect(*args, **{**parameters, **fresh})


def _forget_connections(engine: Engine | None) -> None:
    if engine is not None:
        engine.dispose(close=False)


plugins.register(SurviveRestart.NAME, __name__, SurviveRestart.__name__)
