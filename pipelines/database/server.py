"""Which PostgreSQL server everything talks to: DATABASE_URL, else the embedded one; and the URLs of its databases."""

import re

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from pipelines.database import embedded
from pipelines.errors import DatabaseError
from pipelines.settings import Settings

DAGSTER_DATABASE = "dagster"
MAIN_DATABASE = "attendansee"
MIN_PGVECTOR = (0, 8)  # iterative index scans, without which a filtered search misses rows

_LOCK_KEY = 0x61747465  # any number, the same in every process that creates a database
_CONNECT_TIMEOUT_S = 10


def database_url(settings: Settings, dbname: str = MAIN_DATABASE) -> str:
    """The psycopg URL of our database: DATABASE_URL itself, or database `dbname` of the embedded server.

    The embedded server is started and the database created if need be. Raises DatabaseError.
    """
    if settings.database_url:
        return _psycopg_url(settings.database_url)
    return _embedded_url(settings, dbname)


def dagster_url(settings: Settings) -> str:
    """The SQLAlchemy URL (psycopg2) of database `dagster` in the same server, created if absent.

    Raises DatabaseError, also if the role of DATABASE_URL may not create it.
    """
    if settings.database_url:
        url = _psycopg_url(settings.database_url)
        _create_database(url, DAGSTER_DATABASE)
    else:
        url = _embedded_url(settings, DAGSTER_DATABASE)
    # psycopg2 by name: psycopg 3 binds on the server's side, which Dagster's NOTIFY with a parameter does not survive.
    options = {name: str(value) for name, value in conninfo_to_dict(url).items() if name != "dbname"}
    username, password = options.pop("user", None), options.pop("password", None)
    dagster = URL.create(
        "postgresql+psycopg2", username=username, password=password, database=DAGSTER_DATABASE, query=options
    )
    return dagster.render_as_string(hide_password=False)


def check_server(url: str) -> None:
    """Raise DatabaseError unless the server answers and its pgvector is, or can be made, at least MIN_PGVECTOR."""
    least = ".".join(map(str, MIN_PGVECTOR))
    with _connect(url) as connection:
        found = connection.execute(
            "SELECT e.extversion, a.default_version, r.rolsuper "
            "FROM pg_roles AS r "
            "LEFT JOIN pg_extension AS e ON e.extname = 'vector' "
            "LEFT JOIN pg_available_extensions AS a ON a.name = 'vector' "
            "WHERE r.rolname = current_user"
        ).fetchone()
    installed, available, superuser = found or (None, None, False)
    if installed is None and available is None:
        raise DatabaseError(
            f"The PostgreSQL server {_name(url)} has no pgvector: install version {least} or later there "
            "(package postgresql-<version>-pgvector, or the image pgvector/pgvector)."
        )
    if _version(installed or available) >= MIN_PGVECTOR:
        return
    if installed is not None and available is not None and _version(available) >= MIN_PGVECTOR:
        raise DatabaseError(
            f"The database {_name(url)} uses pgvector {installed}, and {least} is needed: "
            f"run ALTER EXTENSION vector UPDATE there{'' if superuser else ' as a superuser'}."
        )
    raise DatabaseError(
        f"The PostgreSQL server {_name(url)} has pgvector {installed or available}, and {least} is needed: update it there."
    )


def _psycopg_url(url: str) -> str:
    """Any usual spelling of a PostgreSQL URL as psycopg 3 reads it: `postgresql://...`."""
    normal, count = re.subn(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url.strip())
    try:
        if count:
            conninfo_to_dict(normal)
            return normal
    except psycopg.ProgrammingError:
        pass  # not shown, for it quotes the URL and the password in it
    raise DatabaseError("DATABASE_URL is not a PostgreSQL URL: write postgresql://USER:PASSWORD@HOST:5432/DATABASE.")


def _embedded_url(settings: Settings, dbname: str) -> str:
    server = embedded.ensure(settings.home / "postgres")
    _create_database(server.url("postgres"), dbname)
    return server.url(dbname)


def _create_database(url: str, dbname: str) -> None:
    """Create a database in the server that `url` leads to, unless it exists."""
    with _connect(url) as connection:
        exists = "SELECT true FROM pg_database WHERE datname = %s"
        if connection.execute(exists, [dbname]).fetchone():
            return
        connection.execute("SELECT pg_advisory_lock(%s)", [_LOCK_KEY])  # until this connection ends
        if connection.execute(exists, [dbname]).fetchone():
            return
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(dbname)))
        except psycopg.errors.InsufficientPrivilege:
            role = connection.info.user
            raise DatabaseError(
                f"The role {role} may not create the database {dbname} in the server {_name(url)}: "
                f'let an administrator run CREATE DATABASE {dbname} OWNER "{role}".'
            ) from None


def _connect(url: str) -> psycopg.Connection:
    try:
        return psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT_S)
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise DatabaseError(
            f"The PostgreSQL server {_name(url)} cannot be used (is DATABASE_URL right, and the server up?): {reason}"
        ) from error


def _name(url: str) -> str:
    """Host and database of a URL for messages: never its password."""
    options = conninfo_to_dict(url)
    return f"{options.get('host', 'localhost')}/{options.get('dbname', '')}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
