"""Tables of models that no migration knows."""

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config

from pipelines.database.embedding_tables import embedding_dimensions, ensure_embedding_tables
from pipelines.database.migrate import MIGRATIONS, migrate
from pipelines.resources.database import Database
from pipelines.settings import get_settings


def test_a_model_gets_its_table_once(database: Database) -> None:
    for _ in range(2):
        with database.connection() as connection:
            ensure_embedding_tables(connection, {"dlib": 128, "own": 256})
            assert embedding_dimensions(connection) == {
                "facenet": 128,
                "arcface": 512,
                "facenet512": 512,
                "dlib": 128,
                "own": 256,
            }


def test_a_table_that_does_not_fit_stops_nothing(database: Database, made_class, caplog) -> None:
    made_class.session("m__1", [["ann"]])
    with database.connection() as connection:
        ensure_embedding_tables(connection, {"dlib": 64, "own": 256})
        assert embedding_dimensions(connection)["dlib"] == 128
        assert embedding_dimensions(connection)["own"] == 256
        assert connection.execute("SELECT count(*) FROM embeddings_dlib").fetchone() == (1,)
    assert "vectors of 128 numbers of a model 'dlib'" in caplog.text


def test_the_way_down_takes_tables_that_no_revision_made(database: Database) -> None:
    url = get_settings().database_url
    with database.connection() as connection:
        ensure_embedding_tables(connection, {"own": 256})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    engine.dispose()
    with psycopg.connect(url) as connection:
        assert embedding_dimensions(connection) == {}
    migrate(url)
    with database.connection() as connection:
        assert "dlib" in embedding_dimensions(connection)
