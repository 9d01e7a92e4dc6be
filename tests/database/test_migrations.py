"""The migrations forwards and backwards, with data in the tables."""

import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config

from pipelines.database import catalog
from pipelines.database.migrate import MIGRATIONS, current_revision
from pipelines.resources.database import Database
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.coverage import read_coverage
from pipelines.services.decisions import DecisionService
from pipelines.settings import get_settings


@pytest.fixture
def go(database):
    """Brings the test's database to a revision."""

    def run(revision: str) -> None:
        url = get_settings().database_url
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            move = command.downgrade if revision < current_revision(url) else command.upgrade
            move(config, revision)
        engine.dispose()

    return run


def schema(database: Database) -> list[tuple]:
    with database.connection() as connection:
        return connection.execute(
            """SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns
            WHERE table_schema = 'public'
            UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', '' FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
            UNION ALL SELECT tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT viewname, '', definition, '', '' FROM pg_views WHERE schemaname = 'public'
            ORDER BY 1, 2, 3"""
        ).fetchall()


def confirmed(database: Database) -> list[tuple[int, str]]:
    with database.connection() as connection:
        return connection.execute(
            "SELECT c.crop_id, s.name FROM confirmed_crops c JOIN students s ON s.id = c.student_id ORDER BY 1"
        ).fetchall()


def assigned(database: Database) -> list[tuple]:
    with database.connection() as connection:
        return connection.execute(
            "SELECT crop_id, model, state, student_id, decided_by, similarity, decided_at FROM assignments ORDER BY 1, 2"
        ).fetchall()


def test_down_and_up_again_gives_the_same_tables(database, go):
    newest = schema(database)
    go("0001")
    oldest = schema(database)
    go("head")
    assert schema(database) == newest
    go("0001")
    assert schema(database) == oldest
    go("base")
    go("head")
    assert schema(database) == newest


def test_what_people_have_said_that_an_older_version_can_tell_survives_the_way_down(made_class, database, go):
    ids = made_class.enrol("m", "ann", "bob", "cem", "dan")
    made = made_class.session("m__1", [["ann"], ["bob"]])
    decide = DecisionService("a teacher")
    decide.assign(made[0, "ann"], ids["ann"])
    decide.assign(made[1, "bob"], ids["bob"])
    decide.unassign(made[1, "bob"])
    with database.connection() as connection:
        provisional = catalog.ensure_named_student(connection, catalog.find_class(connection, "m"), "Cluster")
        connection.execute("UPDATE students SET provisional = true WHERE id = %s", [provisional])
    # The name moves to the one who is kept: for a while two rows have it.
    decide.merge(ids["ann"], provisional)
    decide.rename(ids["cem"], "Cem")
    with database.connection() as connection:
        (portrait,) = connection.execute(
            "SELECT crop_id FROM confirmed_crops WHERE student_id = %s", [ids["dan"]]
        ).fetchone()
    decide.reject(portrait, ids["dan"])
    before = confirmed(database)
    assert [name for _, name in before] == ["ann", "bob", "Cem", "ann"]
    go("0001")
    assert confirmed(database) == before
    with database.connection() as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM students")}
    assert names == {"ann", "bob", "Cem", "dan"}
    go("head")
    assert confirmed(database) == before


def test_what_a_run_found_before_people_spoke_survives_the_way_down_and_up(made_class, database, go, process_class):
    made_class.version = EmbeddingModels.from_settings(get_settings()).version("dlib")
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"], ["bob"]])
    process_class("dlib")
    before = assigned(database)
    decide = DecisionService("a teacher")
    said = [
        decide.unassign(made[0, "ann"]).decision_id,
        decide.reject(made[0, "ann"], ids["ann"]).decision_id,
        decide.assign(made[1, "bob"], ids["ann"]).decision_id,
    ]
    after = assigned(database)
    go("0007")
    assert assigned(database) == after
    go("head")
    assert assigned(database) == after
    for decision_id in said:
        decide.undo(decision_id)
    assert assigned(database) == before


def test_sessions_that_had_attendance_before_switches_were_recorded_count_as_processed(
    embedded_class, database, go, process_class
):
    embedded_class.enrol("m", "ann")
    embedded_class.session("m__1", [["ann"]])
    process_class("dlib")
    embedded_class.session("m__2", [["ann"]])
    go("0002")
    go("head")
    with database.connection() as connection:
        found = read_coverage(connection, catalog.find_class(connection, "m"), "dlib", embedded_class.version)
    assert (found.sessions, found.lacking) == (2, {"2": "it was never processed"})
