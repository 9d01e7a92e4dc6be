"""One table of vectors for each embedding model: those of the built-in models come with the first revision.

A vector of the wrong dimension is a type error then. The tables of models that people add are in no revision, for every
installation has others.
"""

import logging
from collections.abc import Mapping

from psycopg import Connection, sql

from pipelines.database.crops import embeddings_table
from pipelines.errors import ConflictError

_log = logging.getLogger(__name__)
# Any constant will do: it only has to be the same in every process that creates such a table.
_TABLES_LOCK = 0x_E4BE_DD
# As in revision 0001, where the reasons are.
_TABLE = sql.SQL(
    """CREATE TABLE {table} (
        crop_id bigint NOT NULL REFERENCES face_crops ON DELETE CASCADE,
        version text NOT NULL,
        embedding vector({dimension}) NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (crop_id, version)
    );
    ALTER TABLE {table} ALTER COLUMN embedding SET STORAGE PLAIN"""
)


def embedding_dimensions(connection: Connection) -> dict[str, int]:
    """The models that have a table, with the length of the vectors that fit into it."""
    rows = connection.execute(
        """SELECT substr(c.relname, length('embeddings_') + 1), a.atttypmod FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'embedding'
        WHERE c.relkind = 'r' AND starts_with(c.relname, 'embeddings_') AND c.relnamespace = current_schema()::regnamespace"""
    )
    return dict(rows.fetchall())


def ensure_embedding_tables(connection: Connection, dimensions: Mapping[str, int]) -> None:
    """Create the table of every model that has none; one that does not fit is told in a warning, and left alone."""
    if embedding_dimensions(connection).items() >= dimensions.items():
        return
    for model, dimension in dimensions.items():
        try:
            ensure_embedding_table(connection, model, dimension)
        except ConflictError as error:
            _log.warning(str(error))


def ensure_embedding_table(connection: Connection, model: str, dimension: int) -> None:
    """Create the model's table unless there is one; an empty one of another dimension is replaced.

    Raises ConflictError where it holds vectors of another dimension.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", [_TABLES_LOCK])
    table, there = embeddings_table(model), embedding_dimensions(connection).get(model)
    if there == dimension:
        return
    if there is not None:
        if connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(table)).fetchone():
            raise ConflictError(
                f"The database holds vectors of {there} numbers of a model {model!r}, not {dimension}: "
                f"correct the dimension in the model's definition, or take another name."
            )
        connection.execute(sql.SQL("DROP TABLE {}").format(table))
    connection.execute(_TABLE.format(table=table, dimension=dimension))


def delete_embeddings(connection: Connection, crop_id: int) -> None:
    """Forget a crop's vectors in every lineage, for its box has changed; of models that this process lacks too."""
    for model in embedding_dimensions(connection):
        connection.execute(sql.SQL("DELETE FROM {} WHERE crop_id = %s").format(embeddings_table(model)), [crop_id])


def drop_embedding_table(connection: Connection, model: str) -> None:
    """Delete the model's table with all vectors in it, if there is one."""
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(embeddings_table(model)))
