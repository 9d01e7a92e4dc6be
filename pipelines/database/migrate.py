"""Bring a database's tables to the newest revision, and give every embedding model its table."""

from pathlib import Path

import psycopg

from pipelines.database.embedding_tables import ensure_embedding_tables
from pipelines.errors import DatabaseError
from pipelines.resources.embedding.registry import REGISTRY

MIGRATIONS = Path(__file__).parent / "migrations"
# Any constant will do: it only has to be the same in every process that migrates.
_MIGRATION_LOCK = 0x_A77E_2026


def migrate(url: str) -> str:
    """Upgrade the database at `url` (libpq form) to the newest revision, one process at a time; returns the revision.

    Models that people have added get their tables, which are in no revision. Raises DatabaseError for a database that a
    newer version of this software has migrated, and where the role may not make the extension or the tables.
    """
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    assert head is not None, "the migrations folder holds at least one revision"
    current = current_revision(url)
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise DatabaseError(
            f"The database is at revision {current} of a newer version: install that version or change DATABASE_URL."
        )
    if current != head:
        with psycopg.connect(url, autocommit=True) as lock:
            lock.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
            engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
            try:
                with engine.begin() as connection:
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
            except sqlalchemy.exc.ProgrammingError as error:
                if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
                    raise
                raise _may_not(error.orig) from None
            finally:
                engine.dispose()
    try:
        with psycopg.connect(url) as tables:
            ensure_embedding_tables(tables, {spec.name: spec.dimension for spec in REGISTRY.values()})
    except psycopg.errors.InsufficientPrivilege as error:
        raise _may_not(error) from None
    return head


def _may_not(error: psycopg.Error) -> DatabaseError:
    return DatabaseError(
        f"The database's tables cannot be made ({str(error).splitlines()[0]}): have the role of DATABASE_URL own the "
        "database, and a superuser run CREATE EXTENSION vector in it."
    )


def current_revision(url: str) -> str | None:
    """The revision that the database at `url` has, None for an empty database."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
        if row is None or row[0] is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return row[0] if row else None
