"""What people say about crops and students holds at once, in every lineage, and after every run of the pipeline."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.database import catalog, clusters, crops, decisions, students
from pipelines.errors import AttendanseeError, ClassBusyError, ConflictError, ParameterError, UnknownIdError
from pipelines.partitions import parse_session_key
from pipelines.services.attendance import AttendanceService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decisions import DecisionService, clean_name
from pipelines.services.session_assignment import AssignmentConfig, AssignmentReport, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService


@pytest.fixture
def process(database):
    """Cluster, assign and register sessions, as the assets do; returns the last report."""

    def run(*keys: str, model: str = "dlib") -> AssignmentReport:
        for key in keys:
            parsed = parse_session_key(key)
            SessionClusteringService(database, model, "v").cluster_session(parsed, ClusteringConfig())
            report = SessionAssignmentService(database, model, "v").assign_session(parsed, AssignmentConfig())
            AttendanceService(database, model).register_session(parsed)
        return report

    return run


@pytest.fixture
def decide(database) -> DecisionService:
    return DecisionService("a teacher")


@pytest.fixture
def state_of(database):
    """Reads (state, student's name, decided_by) of a crop."""

    def read(crop_id: int, model: str = "dlib") -> tuple | None:
        with database.connection() as connection:
            return connection.execute(
                """SELECT a.state, st.name, a.decided_by FROM assignments a LEFT JOIN students st ON st.id = a.student_id
                WHERE a.crop_id = %s AND a.model = %s""",
                [crop_id, model],
            ).fetchone()

    return read


def cells(database, model: str = "dlib") -> dict[tuple[str, str], str]:
    return AttendanceService(database, model).register("m").cells


def statuses(database, model: str = "dlib") -> dict[tuple[str, str], str]:
    """The stored attendance rows, without what the register fills in."""
    with database.connection() as connection:
        rows = connection.execute(
            """SELECT st.name, s.name, t.status FROM attendance t JOIN students st ON st.id = t.student_id
            JOIN sessions s ON s.id = t.session_id WHERE t.model = %s""",
            [model],
        ).fetchall()
    return {(student, session): status for student, session, status in rows}


def log(database) -> list[tuple]:
    with database.connection() as connection:
        return connection.execute("SELECT kind, decided_by, reason FROM decisions ORDER BY id").fetchall()


def student_of(database, crop_id: int) -> int:
    with database.connection() as connection:
        row = connection.execute("SELECT student_id FROM assignments WHERE crop_id = %s", [crop_id]).fetchone()
    return row[0]


def only_students(database) -> set[str]:
    with database.connection() as connection:
        rows = connection.execute("SELECT name FROM students WHERE merged_into IS NULL").fetchall()
    return {name for (name,) in rows}


def test_an_assigned_crop_keeps_its_student_in_every_lineage_and_run(
    made_class, database, process, decide, identities_of, state_of
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"], ["bob"]])
    process("m__enrol", "m__1")
    made_class.embed_again("arcface", made)
    answer = decide.assign(made[0, "ann"], ids["bob"], "glasses")
    assert (answer.student_id, answer.student_name) == (ids["bob"], "bob")
    assert log(database)[-1] == ("confirm", "a teacher", "glasses")
    assert cells(database) == {("ann", "1"): "absent", ("bob", "1"): "present"}
    process("m__1")
    process("m__1", model="arcface")
    for model in ("dlib", "arcface"):
        assert identities_of(made, model)[0, "ann"] == "bob"
        assert state_of(made[0, "ann"], model)[2] == "person"


def test_the_active_lineage_gets_a_row_even_where_no_run_has_written_one(made_class, database, process, decide):
    ids = made_class.enrol("m", "ann")
    made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    later = made_class.session("m__2", [["ann"]])
    decide.assign(later[0, "ann"], ids["ann"])
    assert student_of(database, later[0, "ann"]) == ids["ann"]


def test_attendance_follows_in_every_model_that_has_it(made_class, database, process, decide):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"], ["cem"]])
    with database.connection() as connection:
        portraits = dict(
            connection.execute(
                "SELECT s.name, c.crop_id FROM confirmed_crops c JOIN students s ON s.id = c.student_id"
            ).fetchall()
        )
    made_class.embed_again("arcface", made | {(9, name): crop_id for name, crop_id in portraits.items()})
    for model in ("dlib", "arcface"):
        process("m__enrol", "m__1", model=model)
    decide.assign(made[1, "cem"], ids["bob"])
    for model in ("dlib", "arcface"):
        assert statuses(database, model)["bob", "1"] == "present"
    decide.unassign(made[0, "ann"])
    for model in ("dlib", "arcface"):
        assert statuses(database, model)["ann", "1"] == "absent"


def test_two_crops_of_a_photo_may_be_one_student_where_a_person_says_so(
    made_class, database, process, decide, identities_of, state_of
):
    ids = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann", "poster"]])
    process("m__enrol", "m__1")
    decide.assign(made[0, "poster"], ids["ann"])
    # Only the poster's was said by a person: the other one is in doubt until it is said too.
    assert state_of(made[0, "ann"]) == ("needs_review", "ann", "knn")
    assert process("m__1").changed == 0
    decide.assign(made[0, "ann"], ids["ann"])
    process("m__1")
    assert set(identities_of(made).values()) == {"ann"}


def test_an_unassigned_crop_is_left_alone_until_a_person_assigns_it(
    made_class, database, process, decide, identities_of, state_of
):
    ids = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann", "bob"], ["ann", "bob"]])
    process("m__enrol", "m__1")
    for person in ("ann", "bob"):
        answer = decide.unassign(made[0, person])
        assert (answer.student_id, answer.student_name) == (None, None)
    before = identities_of(made)
    for _ in range(2):
        process("m__1")
        for person in ("ann", "bob"):
            assert state_of(made[0, person]) == ("no_match", None, "person")
        assert identities_of(made) == before
    made_class.session("m__2", [["ann", "bob"]])
    process("m__2", "m__1")
    assert state_of(made[0, "ann"]) == ("no_match", None, "person")
    decide.assign(made[0, "ann"], ids["ann"])
    process("m__1")
    assert state_of(made[0, "ann"]) == ("assigned", "ann", "person")


def test_an_unassigned_crop_is_no_evidence_for_others(made_class, database, process, decide):
    made = made_class.session("m__1", [["ann"]])
    process("m__1")
    decide.unassign(made[0, "ann"])
    made_class.session("m__2", [["ann"]])
    assert process("m__2").gallery == 0


def test_a_rejected_student_never_comes_back_but_another_one_may(
    made_class, database, process, decide, identities_of, state_of
):
    ids = made_class.enrol("m", "ann", "twin")
    made = made_class.session("m__1", [["ann"], ["ann"]])
    with database.connection() as connection:
        # The twin is hardly less like the face than ann is.
        connection.execute(
            """UPDATE embeddings_dlib SET embedding = (SELECT embedding FROM embeddings_dlib WHERE crop_id = %s)
            WHERE crop_id = (SELECT crop_id FROM confirmed_crops WHERE student_id = %s)""",
            [made[1, "ann"], ids["twin"]],
        )
    process("m__enrol", "m__1")
    decide.assign(made[0, "ann"], ids["ann"])
    answer = decide.reject(made[0, "ann"], ids["ann"])
    assert answer.student_id is None
    assert state_of(made[0, "ann"]) == ("no_match", None, "knn")
    for _ in range(2):
        process("m__1")
        assert identities_of(made)[0, "ann"] == "twin"
    decide.reject(made[0, "ann"], ids["twin"])
    process("m__1")
    assert identities_of(made)[0, "ann"] not in {"ann", "twin"}
    decide.assign(made[0, "ann"], ids["ann"])
    process("m__1")
    assert identities_of(made)[0, "ann"] == "ann"
    with database.connection() as connection:
        assert decisions.read_rejected(connection, [made[0, "ann"]]) == [(made[0, "ann"], ids["twin"])]


def test_rejecting_one_student_leaves_another_one_in_place(made_class, database, process, decide, identities_of):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    assert decide.reject(made[0, "ann"], ids["bob"]).student_name == "ann"
    assert process("m__1").changed == 0
    assert identities_of(made)[0, "ann"] == "ann"


def test_a_crop_rejected_for_its_clusters_student_becomes_somebody_of_its_own(
    made_class, database, process, decide, identities_of
):
    made = made_class.session("m__1", [["ann"], ["ann"], ["ann"]])
    process("m__1")
    before = identities_of(made)
    decide.reject(made[2, "ann"], student_of(database, made[2, "ann"]))
    for _ in range(3):
        process("m__1")
        after = identities_of(made)
        assert (after[0, "ann"], after[1, "ann"]) == (before[0, "ann"], before[1, "ann"])
        assert after[2, "ann"] not in {None, before[2, "ann"]}
    assert process("m__1").changed == 0


def test_a_clusters_face_does_not_join_a_student_it_was_rejected_for(made_class, database, decide, identities_of):
    ids = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"], ["ann"], ["guest"]])
    with database.connection() as connection:
        session = catalog.find_session(connection, parse_session_key("m__1"))
        clusters.write_clusters(
            connection, clusters.Scope(session.class_id, session.id), "dlib", dict.fromkeys(made.values(), 0)
        )
    service = SessionAssignmentService(database, "dlib", "v")
    service.assign_session(session_key := parse_session_key("m__1"), AssignmentConfig())
    assert identities_of(made)[2, "guest"] == "ann"
    decide.reject(made[2, "guest"], ids["ann"])
    service.assign_session(session_key, AssignmentConfig())
    assert identities_of(made)[2, "guest"] not in {None, "ann"}


def test_renaming_makes_a_student_of_a_provisional_one_whom_the_register_then_misses(
    made_class, database, process, decide, identities_of
):
    made = made_class.session("m__1", [["ann", "bob"]])
    made_class.session("m__2", [["bob"]])
    process("m__1", "m__2")
    answer = decide.rename(student_of(database, made[0, "ann"]), "  Ann ")
    assert (answer.old_name[:8], answer.student_name) == ("Class_m_", "Ann")
    assert statuses(database)["Ann", "2"] == "absent"
    for key in ("m__1", "m__2", "m__1"):
        process(key)
        assert identities_of(made)[0, "ann"] == "Ann"


def test_a_renamed_student_keeps_crops_that_no_other_session_shows(
    made_class, database, process, decide, identities_of
):
    made = made_class.session("m__1", [["ann"], ["ann"], ["ann"]])
    process("m__1")
    ann = student_of(database, made[0, "ann"])
    # In the other session she looks quite different, and is Ann because a person says so.
    made_class.session("m__2", [["ann with a mask"]])
    process("m__2")
    decide.rename(ann, "Ann")
    other = made_class.session("m__3", [["ann with a beard"]])
    decide.assign(other[0, "ann with a beard"], ann)
    process("m__1", "m__3", "m__1")
    assert set(identities_of(made).values()) == {"Ann"}


@pytest.mark.parametrize("kept_is_named", [True, False])
def test_the_name_that_a_person_gave_survives_a_merge(
    made_class, database, process, decide, identities_of, kept_is_named
):
    made = made_class.session("m__1", [["ann", "bob"]])
    late = made_class.session("m__2", [["ann with a mask", "bob"]])
    process("m__1", "m__2")
    ann, mask = student_of(database, made[0, "ann"]), student_of(database, late[0, "ann with a mask"])
    decide.rename(ann, "Ann")
    kept, merged = (ann, mask) if kept_is_named else (mask, ann)
    answer = decide.merge(merged, kept)
    assert (answer.student_id, answer.merged_student_id) == (kept, merged)
    assert (answer.student_name, answer.provisional) == ("Ann", False)
    for step in (None, "m__1", "m__2", "m__1"):
        if step:
            process(step)
        assert identities_of(made)[0, "ann"] == identities_of(late)[0, "ann with a mask"] == "Ann"
        assert {key: status for key, status in cells(database).items() if key[0] == "Ann"} == {
            ("Ann", "1"): "present",
            ("Ann", "2"): "present",
        }
    assert len(only_students(database)) == 2
    # The names of the merged one are free, and its id stands for the one that was kept.
    assert decide.rename(merged, "Ann Lee").student_id == kept


def test_a_merge_of_two_clusters_of_one_session_survives_a_run_and_shows_nobody_twice_in_a_photo(
    made_class, database, process, decide, identities_of, state_of
):
    made = made_class.session("m__1", [["ann", "mask"], ["ann"], ["mask"]])
    process("m__1")
    decide.merge(student_of(database, made[1, "ann"]), student_of(database, made[2, "mask"]))
    kept = identities_of(made)[2, "mask"]
    for _ in range(3):
        assert identities_of(made)[1, "ann"] == identities_of(made)[2, "mask"] == kept
        in_photo = sorted(state_of(made[0, person])[:2] for person in ("ann", "mask"))
        assert in_photo == [("assigned", kept), ("needs_review", kept)]
        process("m__1")
    assert only_students(database) == {kept}


def test_merging_again_moves_along_whoever_was_merged_before(made_class, database, process, decide, identities_of):
    made = made_class.session("m__1", [["a"], ["b"], ["c"]])
    process("m__1")
    a, b, c = (student_of(database, crop_id) for crop_id in made.values())
    decide.merge(a, b)
    decide.merge(b, c)
    with database.connection() as connection:
        assert {students.find_student(connection, s).id for s in (a, b, c)} == {c}
        assert connection.execute("SELECT count(*) FROM students WHERE merged_into = %s", [c]).fetchone() == (2,)
    process("m__1")
    assert len(set(identities_of(made).values())) == 1
    assert len(only_students(database)) == 1


def test_what_was_confirmed_and_rejected_counts_after_a_merge(
    made_class, database, process, decide, identities_of, state_of
):
    ids = made_class.enrol("m", "ann", "anne")
    made = made_class.session("m__1", [["ann"], ["anne"], ["anne"], ["ann"]])
    process("m__enrol", "m__1")
    confirmed, rejected, unsaid = made[0, "ann"], made[1, "anne"], made[2, "anne"]
    decide.reject(confirmed, ids["anne"])
    decide.assign(confirmed, ids["ann"])
    decide.reject(confirmed, ids["anne"])
    # Anne's by the automatic process, and said not to be ann's.
    decide.reject(rejected, ids["ann"])
    assert state_of(rejected)[1] == "anne"
    decide.merge(ids["anne"], ids["ann"])
    for _ in range(2):
        assert state_of(confirmed) == ("assigned", "ann", "person")
        assert state_of(rejected)[1] != "ann"
        assert state_of(unsaid)[:2] == ("assigned", "ann")
        process("m__enrol", "m__1")
    with database.connection() as connection:
        session = catalog.find_session(connection, parse_session_key("m__enrol"))
        assert set(decisions.confirmed_as(connection, [ids["ann"]])) >= {confirmed}
        before = connection.execute("SELECT count(*) FROM decisions").fetchone()
        crops.confirm_portraits(connection, session.id, session.class_id)
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == before


def test_a_provisional_student_that_others_were_merged_into_is_not_deleted(made_class, database, process, decide):
    made = made_class.session("m__1", [["a"], ["b"]])
    process("m__1")
    a, b = (student_of(database, crop_id) for crop_id in made.values())
    decide.merge(a, b)
    with database.connection() as connection:
        connection.execute("DELETE FROM assignments")
        connection.execute("DELETE FROM decisions")
        assert catalog.delete_empty_provisional_students(connection, catalog.find_class(connection, "m"), "dlib") == 1
        assert connection.execute("SELECT id FROM students").fetchall() == [(b,)]


def enrolled_crop(database, student_id: int) -> int:
    with database.connection() as connection:
        return connection.execute(
            "SELECT f.id FROM face_crops f JOIN images i ON i.id = f.image_id WHERE i.student_id = %s", [student_id]
        ).fetchone()[0]


def name_portrait_after(database, crop_id: int, student_id: int) -> None:
    """What intake and detection do where a portrait's file has this student's name."""
    with database.connection() as connection:
        connection.execute(
            "UPDATE images SET student_id = %s WHERE id = (SELECT image_id FROM face_crops WHERE id = %s)",
            [student_id, crop_id],
        )
        session = catalog.find_session(connection, parse_session_key("m__enrol"))
        crops.confirm_portraits(connection, session.id, session.class_id)


def confirmed_student(database, crop_id: int) -> int | None:
    with database.connection() as connection:
        row = connection.execute("SELECT student_id FROM confirmed_crops WHERE crop_id = %s", [crop_id]).fetchone()
    return row[0] if row else None


def test_a_portraits_file_that_is_renamed_back_and_forth_is_followed(made_class, database):
    ids = made_class.enrol("m", "ann", "bob")
    crop_id = enrolled_crop(database, ids["ann"])
    for name in ("ann", "bob", "bob", "ann", "ann", "bob"):
        name_portrait_after(database, crop_id, ids[name])
        assert confirmed_student(database, crop_id) == ids[name]


@pytest.mark.parametrize("said", ["unassign", "reject", "assign"])
def test_a_portrait_is_not_confirmed_again_against_a_person_until_its_file_is_renamed(
    made_class, database, process, decide, said
):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    crop_id = enrolled_crop(database, ids["ann"])
    expected = None
    if said == "assign":
        decide.assign(crop_id, expected := ids["bob"])
    elif said == "reject":
        decide.reject(crop_id, ids["ann"])
    else:
        decide.unassign(crop_id)
    for _ in range(2):
        name_portrait_after(database, crop_id, ids["ann"])
        process("m__enrol")
        assert confirmed_student(database, crop_id) == expected
    # Nobody became a provisional student because a portrait was doubted.
    assert only_students(database) == {"ann", "bob", "cem"}
    name_portrait_after(database, crop_id, ids["cem"])
    assert confirmed_student(database, crop_id) == ids["cem"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda d, m, x: d.assign(10**6, m["ann"]), UnknownIdError, "There is no face crop 1000000."),
        (lambda d, m, x: d.assign(10**30, m["ann"]), UnknownIdError, "There is no face crop"),
        (lambda d, m, x: d.assign(m["crop"], 10**6), UnknownIdError, "There is no student 1000000."),
        (lambda d, m, x: d.unassign(10**6), UnknownIdError, "There is no face crop 1000000."),
        (lambda d, m, x: d.reject(m["crop"], 10**6), UnknownIdError, "There is no student 1000000."),
        (lambda d, m, x: d.rename(10**6, "Ann"), UnknownIdError, "There is no student 1000000."),
        (lambda d, m, x: d.merge(m["ann"], 10**6), UnknownIdError, "There is no student 1000000."),
        (lambda d, m, x: d.merge(10**6, m["ann"]), UnknownIdError, "There is no student 1000000."),
        (lambda d, m, x: d.assign(m["crop"], x["zoe"]), ConflictError, "of the class other"),
        (lambda d, m, x: d.reject(m["crop"], x["zoe"]), ConflictError, "of the class other"),
        (lambda d, m, x: d.merge(m["ann"], x["zoe"]), ConflictError, "different classes"),
        (lambda d, m, x: d.merge(m["ann"], m["ann"]), ConflictError, "itself"),
        (lambda d, m, x: d.rename(m["ann"], "bob"), ConflictError, "merge the two"),
        (lambda d, m, x: d.rename(m["ann"], " \n "), ParameterError, "empty"),
        (lambda d, m, x: d.rename(m["ann"], "x" * 201), ParameterError, "at most 200"),
        (lambda d, m, x: d.rename(m["ann"], "a\0b"), ParameterError, "cannot be shown"),
        (lambda d, m, x: d.rename(m["ann"], "\u200bAnn"), ParameterError, "cannot be shown"),
        (lambda d, m, x: d.rename(m["ann"], "An\u202en"), ParameterError, "cannot be shown"),
        (lambda d, m, x: d.rename(m["ann"], "Ann\u200d"), ParameterError, "cannot be shown"),
        (lambda d, m, x: d.rename(m["ann"], "\u200c\u200d"), ParameterError, "cannot be shown"),
        (lambda d, m, x: d.rename(m["ann"], "-."), ParameterError, "letter or digit"),
        (lambda d, m, x: d.rename(m["ann"], "\u3164"), ParameterError, "letter or digit"),
        (lambda d, m, x: d.unassign(m["crop"], "a\0b"), ParameterError, "reason"),
        (lambda d, m, x: d.unassign(m["crop"], "x" * 3000), ParameterError, "at most 2000"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_and_changes_nothing(
    made_class, database, process, decide, call, error, words
):
    other = made_class.enrol("other", "zoe")
    mine = made_class.enrol("m", "ann", "bob")
    mine["crop"] = made_class.session("m__1", [["ann"]])[0, "ann"]
    process("m__enrol", "m__1")
    before = log(database), statuses(database)
    with pytest.raises(error, match=words):
        call(decide, mine, other)
    assert (log(database), statuses(database)) == before


def test_a_student_is_merged_once(made_class, database, decide):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    decide.merge(ids["ann"], ids["bob"])
    with pytest.raises(ConflictError, match="already"):
        decide.merge(ids["ann"], ids["cem"])
    for pair in ((ids["bob"], ids["ann"]), (ids["ann"], ids["bob"])):
        with pytest.raises(ConflictError, match=f"one already: bob .student {ids['bob']}"):
            decide.merge(*pair)
    with pytest.raises(ConflictError, match="itself"):
        decide.merge(ids["ann"], ids["ann"])


@pytest.mark.parametrize("name", ["علی\u200cرضا", "क्\u200dष", "李", "O’Neil-Smith 3rd", "Ç"])
def test_names_of_any_script_are_kept_as_they_are(name):
    assert clean_name(f" {name} ") == name


@pytest.mark.parametrize("gone", ["removed_at = now()", "refused_reason = 'broken'"])
def test_nothing_is_decided_about_a_crop_whose_photo_is_gone(made_class, database, process, decide, gone):
    ids = made_class.enrol("m", "ann")
    crop_id = made_class.session("m__1", [["ann"]])[0, "ann"]
    process("m__enrol", "m__1")
    with database.connection() as connection:
        connection.execute(f"UPDATE images SET {gone} WHERE path = 'm/1/0.jpg'")
    before = log(database)
    for call in (
        lambda: decide.assign(crop_id, ids["ann"]),
        lambda: decide.unassign(crop_id),
        lambda: decide.reject(crop_id, ids["ann"]),
    ):
        with pytest.raises(UnknownIdError, match=f"no face crop {crop_id} any more: its photo"):
            call()
    assert log(database) == before


def give(
    database, crop_id: int, student: int, cosine: float, runner_up: int | None = None, model: str = "dlib"
) -> None:
    """An automatic assignment."""
    with database.connection() as connection:
        connection.execute(
            """INSERT INTO assignments (crop_id, model, state, student_id, decided_by, cosine_similarity, runner_up_id,
                runner_up_cosine_similarity) VALUES (%s, %s, 'assigned', %s, 'knn', %s, %s, %s)""",
            [crop_id, model, student, cosine, runner_up, None if runner_up is None else 0.5],
        )


def runner_up(database, crop_id: int) -> tuple:
    with database.connection() as connection:
        return connection.execute(
            "SELECT student_id, runner_up_id, runner_up_cosine_similarity FROM assignments WHERE crop_id = %s",
            [crop_id],
        ).fetchone()


def test_a_rejected_student_is_no_runner_up_any_more(made_class, database, decide):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    made = made_class.session("m__1", [["ann"], ["cem"]])
    give(database, made[0, "ann"], ids["ann"], 0.9, runner_up=ids["bob"])
    give(database, made[1, "cem"], ids["cem"], 0.9, runner_up=ids["bob"])
    decide.reject(made[0, "ann"], ids["bob"])
    assert runner_up(database, made[0, "ann"]) == (ids["ann"], None, None)
    assert runner_up(database, made[1, "cem"]) == (ids["cem"], ids["bob"], 0.5)


def test_nobody_is_their_own_runner_up_after_a_merge(made_class, database, decide):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    made = made_class.session("m__1", [["ann"], ["bob"], ["cem"]])
    give(database, made[0, "ann"], ids["ann"], 0.9, runner_up=ids["bob"])
    give(database, made[1, "bob"], ids["bob"], 0.9, runner_up=ids["ann"])
    give(database, made[2, "cem"], ids["cem"], 0.9, runner_up=ids["bob"])
    decide.merge(ids["bob"], ids["ann"])
    assert runner_up(database, made[0, "ann"]) == runner_up(database, made[1, "bob"]) == (ids["ann"], None, None)
    assert runner_up(database, made[2, "cem"]) == (ids["cem"], ids["ann"], 0.5)


def test_of_two_faces_in_a_photo_the_more_similar_one_stays_in_each_lineage(made_class, database, decide, state_of):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["x", "y"], ["z"]])
    x, y = made[0, "x"], made[0, "y"]
    give(database, x, ids["ann"], 0.7)
    give(database, y, ids["bob"], 0.9)
    give(database, x, ids["ann"], 0.8, model="facenet")
    give(database, y, ids["bob"], 0.6, model="facenet")
    give(database, made[1, "z"], ids["ann"], 0.1)
    decide.merge(ids["bob"], ids["ann"])
    assert [state_of(crop_id)[0] for crop_id in (x, y)] == ["needs_review", "assigned"]
    assert [state_of(crop_id, "facenet")[0] for crop_id in (x, y)] == ["assigned", "needs_review"]
    assert state_of(made[1, "z"])[0] == "assigned"


def test_a_merge_while_a_run_clusters_one_of_their_sessions_waits_for_nobody_who_waits_for_it(
    embedded_class, database, decide, monkeypatch
):
    key = parse_session_key("m__1")
    made = embedded_class.session("m__1", [["ann", "cem"], ["ann"]])
    other = embedded_class.session("m__2", [["dan"]])
    with database.connection() as connection:
        one, two = (catalog.find_session(connection, parse_session_key(f"m__{n}")) for n in (1, 2))
    service = FaceCropClusteringService("dlib")
    service.cluster_session_crops(two.id)
    service.cluster_session_crops(one.id, assign_crops=False)
    with database.connection() as connection:
        remembered = clusters.read_remembered(connection, clusters.Scope(one.class_id, one.id), "dlib")
    cem = remembered[made[0, "cem"]]
    give(database, made[0, "cem"], cem, 0.9)
    AttendanceService(database, "dlib").register_session(key)
    holds, merged = Event(), Event()
    stored, merge_assignments = clusters._stored, decisions.merge_assignments

    def wait_with_the_session_held(connection, *args):
        found = stored(connection, *args)
        if not holds.is_set():
            holds.set()
            merged.wait(10)
            sleep(0.5)  # The merge goes on to the attendance meanwhile.
        return found

    def tell(connection, *args):
        merge_assignments(connection, *args)
        merged.set()

    monkeypatch.setattr(clusters, "_stored", wait_with_the_session_held)
    monkeypatch.setattr(decisions, "merge_assignments", tell)
    run = SessionClusteringService(database, "dlib", embedded_class.version)
    with ThreadPoolExecutor(2) as pool:
        clustering = pool.submit(run.cluster_session, key, ClusteringConfig(distance_threshold=0.0001))
        assert holds.wait(10)
        merging = pool.submit(decide.merge, cem, student_of(database, other[0, "dan"]))
        assert merging.result(30).merged_student_id == cem
        assert clustering.result(30).changed


def test_no_patience_means_at_once(made_class, database):
    made_class.enrol("m", "ann")
    with database.connection() as holder:
        class_id = catalog.find_class(holder, "m")
        catalog.lock_class(holder, class_id)
        with database.connection() as other:
            other.execute("SET statement_timeout = '5s'")
            with pytest.raises(ClassBusyError):
                catalog.lock_class(other, class_id, 0)


def test_a_class_that_is_being_processed_is_busy_after_the_patience(made_class, database):
    ids = made_class.enrol("m", "ann")
    full = default_context()
    context = ServiceContext(full.database, full.store, full.models, full.settings, lock_patience_s=0.2)
    with database.connection() as connection:
        catalog.lock_class(connection, catalog.find_class(connection, "m"))
        with pytest.raises(ClassBusyError):
            DecisionService("somebody", context=context).rename(ids["ann"], "Ann")


def test_decisions_made_at_once_leave_one_consistent_state(made_class, database, process):
    made = made_class.session("m__1", [["a"], ["b"], ["c"], ["d"]])
    process("m__1")
    a, b, c, d = (student_of(database, crop_id) for crop_id in made.values())
    crop_ids = list(made.values())

    def attempt(call) -> str:
        try:
            call(DecisionService("somebody"))
        except ConflictError:
            return "conflict"
        return "done"

    calls = [
        lambda service: service.merge(a, b),
        lambda service: service.merge(b, a),
        lambda service: service.assign(crop_ids[2], a),
        lambda service: service.assign(crop_ids[3], b),
        lambda service: service.merge(c, d),
        lambda service: process("m__1"),
        lambda service: service.rename(d, "Dan"),
        lambda service: service.assign(crop_ids[0], c),
    ]
    with ThreadPoolExecutor(len(calls)) as pool:
        outcomes = list(pool.map(attempt, calls))
    assert sorted(outcomes[:2]) == ["conflict", "done"]
    assert set(outcomes[2:]) == {"done"}
    kept = b if outcomes[0] == "done" else a
    for _ in range(2):
        assert [student_of(database, crop_id) for crop_id in crop_ids] == [d, kept, kept, kept]
        assert statuses(database).keys() == {("Dan", "1")} | {(name, "1") for name in only_students(database) - {"Dan"}}
        process("m__1")


PEOPLE = ("ann", "bob", "cem")


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["assign", "unassign", "reject", "merge", "rename", "process"]),
            st.integers(0, 11),
            st.integers(0, 11),
        ),
        max_size=12,
    )
)
def test_whatever_is_decided_in_whatever_order_no_run_contradicts_it(made_class, database, process, decide, steps):
    with database.connection() as connection:
        connection.execute("TRUNCATE classes CASCADE")
    made_class.rng = np.random.default_rng(7)
    made_class.enrol("m", "ann")
    made = {
        **{("1", *place): c for place, c in made_class.session("m__1", [["ann", "bob"], ["bob", "cem"]]).items()},
        **{("2", *place): c for place, c in made_class.session("m__2", [["ann", "cem"]]).items()},
    }
    process("m__enrol", "m__1", "m__2")
    crop_ids = list(made.values())
    shown: dict[int, int | None] = {}
    rejected: set[tuple[int, int]] = set()
    for kind, first, second in steps:
        with database.connection() as connection:
            all_students = [s for (s,) in connection.execute("SELECT id FROM students ORDER BY id")]
        crop_id, student = crop_ids[first % len(crop_ids)], all_students[second % len(all_students)]
        try:
            if kind == "assign":
                decide.assign(crop_id, student)
                shown[crop_id] = student
            elif kind == "unassign":
                decide.unassign(crop_id)
                shown[crop_id] = None
            elif kind == "reject":
                decide.reject(crop_id, student)
                with database.connection() as connection:
                    rejected = set(decisions.read_rejected(connection, crop_ids))
                    if shown.get(crop_id) is not None and confirmed_student(database, crop_id) is None:
                        del shown[crop_id]
            elif kind == "merge":
                decide.merge(all_students[first % len(all_students)], student)
            elif kind == "rename":
                decide.rename(student, f"Name {first}")
            else:
                process(f"m__{1 + first % 2}")
        except AttendanseeError:
            pass
        with database.connection() as connection:
            rows = connection.execute(
                """SELECT a.crop_id, a.state, a.student_id, s.merged_into FROM assignments a
                LEFT JOIN students s ON s.id = a.student_id"""
            ).fetchall()
            rejected = set(decisions.read_rejected(connection, crop_ids))
            current = {crop: students.find_student(connection, s).id for crop, s in shown.items() if s is not None}
            twice = connection.execute(
                """SELECT count(*) FROM assignments a JOIN face_crops f ON f.id = a.crop_id
                WHERE a.state = 'assigned' AND a.decided_by <> 'person'
                GROUP BY f.image_id, a.model, a.student_id HAVING count(*) > 1"""
            ).fetchall()
        assert not [row for row in rows if row[3] is not None], "nobody is assigned to a student who was merged"
        assert not [row for row in rows if (row[0], row[2]) in rejected]
        assert not twice
        assigned = {row[0]: row[2] for row in rows if row[1] == "assigned"}
        for crop, student in shown.items():
            assert assigned.get(crop) == (None if student is None else current[crop])


@given(st.text(max_size=250))
def test_a_clean_name_stays_as_it_is_and_can_be_stored(text):
    try:
        name = clean_name(text)
    except ParameterError:
        return
    assert clean_name(name) == name
    assert name.encode()
    assert 0 < len(name) <= 200
    assert name.strip() == name
