"""The database as a resource: the server found or started, its tables up to date, a connection per use."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import dagster as dg
import psycopg

from pipelines.settings import get_settings


class Database(dg.ConfigurableResource):
    """PostgreSQL with pgvector: `DATABASE_URL`, or the embedded server where it is unset.

    It has no configuration of its own, so that no password appears in a launchpad or an event log.
    """

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """A connection with vectors registered; its transaction is committed at the end, rolled back on an error."""
        with _connect() as connection:
            yield connection


def read_one_state(connection: psycopg.Connection) -> None:
    """Let the transaction that begins now see the database as it is at its first query, whatever others commit."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _connect() -> psycopg.Connection:
    try:
        return _connect_to(_ready_url())
    except psycopg.OperationalError:
        # The server went away under a long-living process (killed, restarted): find or start it again, once.
        _ready_url.cache_clear()
        return _connect_to(_ready_url())


def _connect_to(url: str) -> psycopg.Connection:
    return psycopg.connect(url, context=_knows_vectors(url))


@lru_cache(maxsize=1)
def _knows_vectors(url: str) -> psycopg.Connection:
    """A closed connection, from which others learn about vectors.

    To register them with each connection takes four queries and makes classes that are never freed: 24 kB a connection,
    with which a process that lives for long grew without end.
    """
    from pgvector.psycopg import register_vector

    with psycopg.connect(url) as connection:
        register_vector(connection)
    return connection


@lru_cache(maxsize=1)
def _ready_url() -> str:
    from pipelines.database.migrate import migrate
    from pipelines.database.server import check_server, database_url

    url = database_url(get_settings())
    check_server(url)
    migrate(url)
    _knows_vectors.cache_clear()  # the types of another server may have other numbers
    return url
