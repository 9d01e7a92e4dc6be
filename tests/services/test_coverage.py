"""What a lineage covers of a class: made vectors in a real database, and everything that may have changed since."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.database import catalog, crops
from pipelines.database.lineages import SessionState
from pipelines.partitions import parse_session_key
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.attendance import AttendanceService
from pipelines.services.coverage import Coverage, lack, read_coverage
from pipelines.services.decisions import DecisionService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.settings import get_settings


@pytest.fixture
def coverage(database):
    def read(model: str = "dlib") -> Coverage:
        version = EmbeddingModels.from_settings(get_settings()).version(model)
        with database.connection() as connection:
            return read_coverage(connection, catalog.find_class(connection, "m"), model, version)

    return read


@pytest.fixture
def run(database):
    """Executes a statement."""

    def execute(statement: str, *values: object) -> None:
        with database.connection() as connection:
            assert connection.execute(statement, values).rowcount

    return execute


@pytest.fixture
def made(embedded_class, process_class):
    """A class with portraits and two sessions that dlib has processed."""
    embedded_class.enrol("m", "ann", "bob")
    first = embedded_class.session("m__1", [["ann", "blur"], ["bob"]], unusable=frozenset({"blur"}))
    second = embedded_class.session("m__2", [["ann", "guest"]])
    process_class("dlib")
    return {**first, **{(2, person): crop_id for (_, person), crop_id in second.items()}}


def test_a_processed_class_lacks_nothing(made, coverage):
    assert coverage() == Coverage(sessions=2, covered=2, crops=7, embedded=7, lacking={})


def test_a_model_that_has_done_nothing_lacks_everything(made, coverage):
    found = coverage("facenet")
    assert (found.sessions, found.covered, found.crops, found.embedded) == (2, 0, 7, 0)
    assert found.lacking == {
        "1": "2 of 3 faces have no vector",
        "2": "2 of 2 faces have no vector",
        "enrol": "2 of 2 faces have no vector",
    }


def test_vectors_alone_are_no_attendance(made, coverage, facenet, embedded_class):
    facenet(embedded_class.everyone)
    assert coverage("facenet").lacking == dict.fromkeys("12", "it was never processed")


def test_assignments_alone_are_no_attendance(made, coverage, facenet, embedded_class, database, process_class):
    facenet(embedded_class.everyone)
    version = EmbeddingModels.from_settings(get_settings()).version("facenet")
    for key in map(parse_session_key, ("m__1", "m__2")):
        SessionAssignmentService(database, "facenet", version).assign_session(key, AssignmentConfig())
    assert coverage("facenet").lacking == dict.fromkeys("12", "its attendance was not registered")
    AttendanceService(database, "facenet").register_session(parse_session_key("m__1"))
    assert coverage("facenet").lacking == {"2": "its attendance was not registered"}


def test_vectors_of_an_older_version_do_not_count(made, coverage, run):
    run("UPDATE embeddings_dlib SET version = 'older' WHERE crop_id = %s", made[2, "ann"])
    assert coverage().lacking == {"2": "1 of 2 faces have no vector"}


def test_an_unusable_face_that_a_model_could_not_embed_counts_once_its_session_was_processed(
    made, coverage, run, embedded_class, process_class
):
    run("DELETE FROM embeddings_dlib WHERE crop_id = %s", made[0, "blur"])
    assert (coverage().lacking, coverage().embedded, coverage().crops) == ({}, 6, 7)
    embedded_class.session("m__3", [["blur"]], unusable=frozenset({"blur"}))
    run("DELETE FROM embeddings_dlib WHERE crop_id = (SELECT max(id) FROM face_crops)")
    assert coverage().lacking == {"3": "it was never processed"}
    process_class("dlib")
    assert coverage().lacking == {}


def test_a_photo_that_came_or_went_since_makes_its_session_lack(made, coverage, embedded_class, process_class, run):
    embedded_class.session("m__1", [["ann"], ["bob"], ["ann"], ["cem"]])
    assert coverage().lacking == {"1": "its photos have changed since it was processed"}
    process_class("dlib")
    assert coverage().lacking == {}
    run("UPDATE images SET removed_at = now() WHERE path = 'm/1/3.jpg'")
    assert coverage().lacking == {"1": "its photos have changed since it was processed"}
    process_class("dlib")
    assert coverage().lacking == {}


@pytest.mark.parametrize("column", ["removed_at = now()", "refused_reason = 'It cannot be read.'"])
def test_photos_that_are_gone_or_refused_need_no_vectors(made, coverage, run, database, column):
    run("DELETE FROM embeddings_dlib WHERE crop_id = %s", made[2, "ann"])
    run(f"UPDATE images SET {column} WHERE path = 'm/2/0.jpg'")
    # Else switching to this lineage would bring back an attendance of which nothing is to be seen.
    assert coverage().lacking.keys() == {"2"}
    AttendanceService(database, "dlib").register_session(parse_session_key("m__2"))
    found = coverage()
    assert (found.sessions, found.crops, found.lacking) == (1, 5, {})


def test_a_portrait_that_came_or_was_renamed_since_makes_every_session_lack(
    made, coverage, embedded_class, process_class, database
):
    portraits = dict.fromkeys("12", "the class's portraits have changed since it was processed")
    embedded_class.enrol("m", "cem")
    assert coverage().lacking == portraits
    process_class("dlib")
    assert coverage().lacking == {}
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        dan = catalog.ensure_named_student(connection, class_id, "dan")
        connection.execute("UPDATE images SET student_id = %s WHERE path = 'm/enrol/cem.jpg'", [dan])
        (session_id,) = connection.execute("SELECT id FROM sessions WHERE is_enrolment").fetchone()
        crops.confirm_portraits(connection, session_id, class_id)
    assert coverage().lacking == portraits
    process_class("dlib")
    assert coverage().lacking == {}


def test_what_people_decide_makes_nothing_lack(made, coverage, database):
    teacher = DecisionService("a teacher")
    with database.connection() as connection:
        ids = {name: i for i, name in connection.execute("SELECT id, name FROM students").fetchall()}
    (guest,) = ids.keys() - {"ann", "bob"}
    teacher.assign(made[1, "bob"], ids["ann"])
    teacher.reject(made[2, "ann"], ids["bob"])
    teacher.unassign(made[0, "ann"])
    teacher.rename(ids[guest], "Gus")
    teacher.merge(ids["bob"], ids["ann"])
    assert coverage().lacking == {}


def test_a_session_of_which_nobody_can_say_anything_lacks_nothing(embedded_class, coverage, process_class):
    embedded_class.session("m__1", [["ann"]])
    embedded_class.session("m__2", [["ann"]], unusable=frozenset({"ann"}), distance=0.9)
    process_class("dlib")
    # No name is known, so that a session without a known face has no attendance in any lineage.
    found = coverage()
    assert (found.sessions, found.lacking) == (2, {})


def test_a_photo_without_faces_lacks_nothing_where_the_active_model_has_not_looked_either(
    made, coverage, embedded_class, run
):
    embedded_class.session("m__3", [["ann"]])
    run("DELETE FROM face_crops WHERE image_id = (SELECT id FROM images WHERE path = 'm/3/0.jpg')")
    assert (coverage().sessions, coverage().lacking) == (2, {})


def test_single_operations_do_not_make_a_lineage_that_covers_a_class(made, coverage, facenet, embedded_class, database):
    facenet(embedded_class.everyone)
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
    # It begins with all that the active lineage says, which is no opinion of its own.
    assert FaceCropAssignmentService("facenet").assign_class_crops(class_id).status == "success"
    assert coverage("facenet").lacking == dict.fromkeys("12", "it was never processed")


NOW = datetime(2026, 9, 7)
TIMES = st.none() | st.integers(-3, 3).map(lambda hours: NOW + timedelta(hours=hours))


@given(
    st.builds(
        SessionState,
        id=st.just(1),
        name=st.just("1"),
        is_enrolment=st.booleans(),
        crops=st.integers(0, 2),
        embedded=st.integers(0, 2),
        bare=st.integers(0, 1),
        assigned_at=TIMES,
        changed_at=TIMES,
        registered=st.booleans(),
        counted=st.booleans(),
        contradicted=st.booleans(),
    ),
    TIMES,
    st.booleans(),
)
def test_processing_a_session_anew_leaves_nothing_to_lack_and_a_vector_is_always_needed(state, portraits_at, named):
    latest = max(filter(None, (state.changed_at, portraits_at, NOW)))
    done = replace(state, bare=0, assigned_at=latest, registered=True, contradicted=False)
    assert lack(done, portraits_at, named) is None
    assert lack(replace(done, bare=1), portraits_at, named)
    if not state.is_enrolment and state.crops:
        assert lack(replace(done, assigned_at=None), portraits_at, named)
        assert lack(replace(done, changed_at=latest + timedelta(seconds=1)), portraits_at, named)
