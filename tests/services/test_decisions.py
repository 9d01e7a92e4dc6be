"""What people say about crops and students holds at once, in every lineage, and after every run of the pipeline."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import sleep

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipelines.database import catalog, clusters, crops, decisions, identities, students
from pipelines.errors import AttendanseeError, ClassBusyError, ConflictError, ParameterError, UnknownIdError
from pipelines.partitions import parse_session_key
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.attendance import AttendanceService
from pipelines.services.browse import BrowseService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decision_log import read_decisions
from pipelines.services.decisions import DecisionService, clean_name
from pipelines.services.session_assignment import AssignmentConfig, AssignmentReport, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.services.students import StudentService


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
    assert log(database)[-1] == ("assign", "a teacher", "glasses")
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


def test_what_a_run_finds_after_a_word_and_its_rejection_outlasts_other_undos(
    made_class, database, process, decide, identities_of, state_of
):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    made = made_class.session("m__1", [["ann"], ["bob"]])
    process("m__enrol", "m__1")
    decide.assign(made[0, "ann"], ids["bob"])
    decide.reject(made[0, "ann"], ids["bob"])
    assert state_of(made[0, "ann"]) == ("no_match", None, "knn")
    process("m__1")
    found = state_of(made[0, "ann"])
    assert found == ("assigned", "ann", "knn")
    decide.undo(decide.rename(ids["cem"], "Cem").decision_id)
    assert state_of(made[0, "ann"]) == found
    decide.undo(decide.merge(ids["cem"], ids["bob"]).decision_id)
    assert state_of(made[0, "ann"]) == found


def test_what_an_undo_confirms_anew_goes_when_that_undo_is_undone(made_class, database, process, decide, state_of):
    ids = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"], ["zed"]])
    process("m__enrol", "m__1")
    found = state_of(made[1, "zed"])
    split = decide.split([made[0, "ann"]], "new")
    said = decide.assign(made[1, "zed"], split.student_id)
    decide.reject(made[1, "zed"], ids["ann"])
    undone = decide.undo(split.decision_id)
    decide.undo(undone.decision_id)
    assert state_of(made[1, "zed"]) == ("assigned", "new", "person")
    decide.undo(said.decision_id)
    with database.connection() as connection:
        assert decisions.read_confirmed(connection, [made[1, "zed"]]) == {}
    assert state_of(made[1, "zed"]) == found


def test_a_new_student_who_was_undone_is_in_no_list_until_it_counts_again(made_class, database, process, decide):
    made = made_class.session("m__1", [["ann"]])
    made_class.enrol("m", "bob")
    process("m__enrol", "m__1")
    decide.unassign(made[0, "ann"])

    def listed() -> tuple[list[str], list[str], int]:
        browse = BrowseService(database)
        (of_class,) = browse.classes(10, 0).results
        page = browse.students(50, 0, class_id=of_class.id)
        table = StudentService("a teacher").list("m")
        return sorted(s.name for s in table.students), sorted(s.name for s in page.results), of_class.student_count

    before = listed()
    fay = decide.create_student([made[0, "ann"]], "Fay")
    there = listed()
    assert there == (sorted(["Fay", *before[0]]), sorted(["Fay", *before[1]]), before[2] + 1)
    undo = decide.undo(fay.decision_id)
    assert listed() == before
    decide.undo(undo.decision_id)
    assert listed() == there


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
        assert decisions.read_confirmed(connection, [confirmed]) == {confirmed: ids["ann"]}
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
    stored, follow = clusters._stored, decisions.follow_what_is_said

    def wait_with_the_session_held(connection, *args):
        found = stored(connection, *args)
        if not holds.is_set():
            holds.set()
            merged.wait(10)
            sleep(0.5)  # The merge goes on to the attendance meanwhile.
        return found

    def tell(*args, **how):
        follow(*args, **how)
        merged.set()

    monkeypatch.setattr(clusters, "_stored", wait_with_the_session_held)
    monkeypatch.setattr(decisions, "follow_what_is_said", tell)
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


# Undo


def snapshot(database, *, times: bool = True) -> dict[str, list[tuple]]:
    """All that decisions decide: students, assignments, what the views say, attendance. times: when, and in which run."""
    tables = {
        "students": "id, name, provisional, merged_into, hidden, student_number, email",
        "assignments": "crop_id, model, state, student_id, decided_by, cosine_similarity, similarity, runner_up_id, "
        "runner_up_cosine_similarity" + (", run_id, decided_at" if times else ""),
        "confirmed_crops": "crop_id, student_id, decision_id",
        "unassigned_crops": "crop_id",
        "not_faces": "crop_id",
        "rejected_students": "crop_id, student_id",
        "manual_attendance": "session_id, student_id, status, note, decision_id",
        "attendance": "session_id, model, student_id, status, crops, similarity, decision_id",
    }
    with database.connection() as connection:
        return {
            table: sorted(connection.execute(f"SELECT {columns} FROM {table}").fetchall(), key=repr)
            for table, columns in tables.items()
        }


def scramble(database) -> None:
    """Make nonsense of what follows from decisions: what students are, and whom a person has confirmed."""
    with database.connection() as connection:
        connection.execute(
            """UPDATE students SET name = 'nonsense ' || id, provisional = NOT provisional, hidden = NOT hidden,
                merged_into = NULL WHERE original_name IS NOT NULL"""
        )
        connection.execute(
            """UPDATE assignments SET state = 'no_match', student_id = NULL, decided_by = 'knn', similarity = NULL,
                cosine_similarity = NULL WHERE decided_by = 'person'"""
        )


@pytest.fixture
def restored(database):
    """Does something, undoes it, has it count again, and undoes it again: each time all is exactly as it was."""

    def run(call: Callable[[], object]) -> None:
        before = snapshot(database)
        call()
        with database.connection() as connection:
            (decision_id,) = connection.execute("SELECT max(id) FROM decisions WHERE part_of IS NULL").fetchone()
        after = snapshot(database)
        decide = DecisionService("somebody else")
        undo = decide.undo(decision_id)
        assert without_the_new(before) == before
        redo = decide.undo(undo.decision_id)
        assert snapshot(database) == after
        decide.undo(redo.decision_id)
        assert without_the_new(before) == before

    def without_the_new(before: dict) -> dict:
        """The state, but for a split's new student, who is the old one again."""
        left, known = snapshot(database), [row[0] for row in before["students"]]
        return {**left, "students": [row for row in left["students"] if row[0] in known or row[3] is None]}

    return run


def test_each_kind_of_decision_is_undone_exactly_and_counts_again_exactly(
    made_class, database, process, decide, restored
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann", "bob", "cem"], ["ann", "poster", "dan"]])
    made_class.session("m__2", [["cem", "dan", "ann"]])
    process("m__enrol", "m__1", "m__2")
    cem, dan = student_of(database, made[0, "cem"]), student_of(database, made[1, "dan"])
    with database.connection() as connection:
        one = catalog.find_session(connection, parse_session_key("m__1")).id
    for call in (
        lambda: decide.assign(made[0, "ann"], ids["ann"]),
        lambda: decide.assign(made[1, "poster"], ids["ann"]),
        lambda: decide.assign_crops([made[0, "cem"], made[1, "dan"]], ids["bob"]),
        lambda: decide.unassign(made[0, "ann"]),
        lambda: decide.reject(made[0, "ann"], ids["ann"]),
        lambda: decide.not_a_face([made[1, "poster"], made[0, "cem"]]),
        lambda: decide.rename(cem, "Cem"),
        lambda: decide.rename(ids["ann"], "Ann Lee"),
        lambda: decide.merge(cem, dan),
        lambda: decide.merge(cem, ids["ann"]),
        lambda: decide.merge(ids["ann"], cem),
        lambda: decide.split([made[0, "ann"], made[1, "ann"]]),
        lambda: decide.split([made[0, "cem"]], "Zoe"),
        lambda: decide.hide(cem),
        lambda: decide.hide(ids["bob"]),
        lambda: decide.mark_attendance(one, ids["bob"], "excused", "ill"),
        lambda: decide.mark_attendance(one, cem, "present"),
    ):
        restored(call)


def test_a_decision_about_several_faces_is_one_that_one_undo_takes_back(made_class, database, process, decide):
    ids = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"], ["ann"], ["guest"]])
    process("m__enrol", "m__1")
    answer = decide.assign_crops(list(made.values()), ids["ann"], "seen")
    with database.connection() as connection:
        rows = connection.execute(
            "SELECT id, kind, crop_id, part_of FROM decisions WHERE decided_by = 'a teacher' ORDER BY id"
        ).fetchall()
        page = read_decisions(connection, catalog.find_class(connection, "m"))
    whole = answer.decision_id
    assert [row[1:] for row in rows] == [
        ("assign", None, None),
        ("confirm", made[0, "ann"], whole),
        ("confirm", made[1, "ann"], whole),
        ("assign", made[2, "guest"], whole),
    ]
    assert (page.total, page.results[0].sentence, page.results[0].crop_ids) == (2, "3 faces are ann.", [*made.values()])
    with pytest.raises(ConflictError, match=f"undo the whole, decision {whole}"):
        decide.undo(rows[1][0])
    assert decide.undo(whole).undone == "3 faces are ann."
    assert [confirmed_student(database, crop_id) for crop_id in made.values()] == [None] * 3


def test_a_split_makes_somebody_new_who_is_in_no_list_once_it_is_undone(
    made_class, database, process, decide, identities_of
):
    made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"], ["ann"], ["ann"]])
    process("m__enrol", "m__1")
    twin = decide.split([made[1, "ann"], made[2, "ann"]], "Twin", "her sister")
    assert (twin.student_name, twin.provisional, cells(database)["Twin", "1"]) == ("Twin", False, "present")
    assert list(identities_of(made).values()) == ["ann", "Twin", "Twin"]
    for _ in range(2):
        process("m__1")
        assert list(identities_of(made).values())[1:] == ["Twin", "Twin"]
    decide.undo(twin.decision_id)
    assert only_students(database) == {"ann"}
    assert list(identities_of(made).values())[1:] == ["ann", "ann"]
    # The name is free again.
    assert decide.split([made[2, "ann"]], "Twin").student_id != twin.student_id


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d, m, i: d.split([m[0, "ann"], m[0, "bob"]]), "split the faces of one student at a time"),
        (lambda d, m, i: d.split([m[0, "ann"]], "bob"), "merge the two"),
        (lambda d, m, i: d.split([m[0, "cem"]]), "shows nobody yet"),
        (lambda d, m, i: d.split([m[0, "ann"]], student_id=i["bob"]), "not bob"),
        (lambda d, m, i: d.split([]), "name 1 to 1000"),
        (lambda d, m, i: d.not_a_face([m[0, "ann"], 10**6]), "no face crop 1000000"),
        (lambda d, m, i: d.mark_attendance(10**6, i["ann"], "present"), "no session 1000000"),
        (lambda d, m, i: d.mark_attendance(i["enrol"], i["ann"], "present"), "holds portraits"),
        (lambda d, m, i: d.mark_attendance(i["1"], i["zoe"], "present"), "of the class other"),
        (lambda d, m, i: d.mark_attendance(i["1"], i["ann"], "late"), "'late' cannot be used"),
        (lambda d, m, i: d.assign_crops([m[0, "ann"], m["zoe"]], i["ann"]), "different classes"),
        (lambda d, m, i: d.undo(10**6), "no decision 1000000"),
    ],
)
def test_what_cannot_be_decided_about_several_is_refused_and_changes_nothing(
    made_class, database, process, decide, call, words
):
    zoe = made_class.enrol("other", "zoe")
    ids = {**zoe, **made_class.enrol("m", "ann", "bob")}
    made = made_class.session("m__1", [["ann", "bob", "cem"]])
    made["zoe"] = enrolled_crop(database, zoe["zoe"])
    process("m__enrol", "m__1")
    decide.unassign(made[0, "cem"])
    with database.connection() as connection:
        for name in ("enrol", "1"):
            ids[name] = catalog.find_session(connection, parse_session_key(f"m__{name}")).id
    before = log(database), snapshot(database)
    with pytest.raises(AttendanseeError, match=words):
        call(decide, made, ids)
    assert (log(database), snapshot(database)) == before


def test_what_cannot_be_undone_says_what_to_do_instead(made_class, database, process, decide):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    with database.connection() as connection:
        (portrait,) = connection.execute("SELECT min(id) FROM decisions").fetchone()
    with pytest.raises(ConflictError, match="unassign its face, or move the portrait"):
        decide.undo(portrait)
    first = decide.merge(ids["ann"], ids["bob"])
    second = decide.merge(ids["bob"], ids["cem"])
    with pytest.raises(ConflictError, match=f"undo decision {second.decision_id} first"):
        decide.undo(first.decision_id)
    undo = decide.undo(second.decision_id)
    with pytest.raises(ConflictError, match=f"undone already: .* undo decision {undo.decision_id}"):
        decide.undo(second.decision_id)
    decide.undo(first.decision_id)
    assert only_students(database) == {"ann", "bob", "cem"}
    renamed = decide.rename(ids["ann"], "Ann Lee")
    decide.rename(ids["bob"], "ann")
    before = snapshot(database)
    with pytest.raises(ConflictError, match="Two students would be called 'ann'"):
        decide.undo(renamed.decision_id)
    assert snapshot(database) == before


def test_an_undone_merge_gives_back_names_numbers_and_addresses(made_class, database, decide):
    roster = "first_name,last_name,student_id,email\nAda,Lee,1,ada@school.org\nBen,Bold,2,\n"
    ada, ben = (row.student_id for row in StudentService("a teacher").import_csv("m", roster, create_class=True).added)
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        unknown = catalog.create_provisional_student(connection, class_id, "m")
    before = snapshot(database)["students"]
    for merged, kept in ((ada, unknown), (ada, ben), (ben, ada), (unknown, ada)):
        decide.undo(decide.merge(merged, kept).decision_id)
        assert snapshot(database)["students"] == before
    # A merged student's former name is not theirs once they are two.
    assert StudentService("a teacher").import_csv("m", roster).unchanged == 2


def test_what_a_run_has_changed_since_a_decision_stays_when_that_is_undone(
    made_class, database, process, decide, state_of
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    rejected = decide.reject(made[0, "ann"], ids["ann"])
    process("m__1")
    somebody = state_of(made[0, "ann"])
    assert somebody[1] not in {None, "ann"}
    decide.undo(rejected.decision_id)
    assert state_of(made[0, "ann"]) == somebody
    process("m__1")
    assert state_of(made[0, "ann"])[1] == "ann"


def test_undoing_an_earlier_decision_leaves_the_later_one_and_what_was_before_both_comes_back(
    made_class, database, process, decide, state_of
):
    ids = made_class.enrol("m", "ann", "bob", "cem")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    before = snapshot(database)
    first = decide.assign(made[0, "ann"], ids["bob"])
    second = decide.assign(made[0, "ann"], ids["cem"])
    undo = decide.undo(first.decision_id)
    assert state_of(made[0, "ann"]) == ("assigned", "cem", "person")
    decide.undo(second.decision_id)
    assert snapshot(database) == before
    # And with the first one back, it is bob's again.
    decide.undo(undo.decision_id)
    assert state_of(made[0, "ann"]) == ("assigned", "bob", "person")


SAME = {
    "assign": lambda decide, crop_id, student_id: decide.assign(crop_id, student_id),
    "unassign": lambda decide, crop_id, student_id: decide.unassign(crop_id),
    "no face": lambda decide, crop_id, student_id: decide.not_a_face([crop_id]),
}


@pytest.mark.parametrize("kinds", [("assign", "assign"), ("unassign", "no face"), ("no face", "unassign")])
def test_of_two_decisions_that_say_the_same_each_may_be_undone_first_and_count_again(
    made_class, database, process, decide, kinds
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    crop_id = made[0, "ann"]
    before = snapshot(database)["assignments"]
    for first_undone in (0, 1):
        said = [SAME[kind](decide, crop_id, ids["bob"]).decision_id for kind in kinds]
        both = snapshot(database, times=False)["assignments"]
        undos = [decide.undo(said[first_undone]).decision_id]
        assert snapshot(database, times=False)["assignments"] == both
        undos.append(decide.undo(said[1 - first_undone]).decision_id)
        assert snapshot(database)["assignments"] == before
        # Both count again, and go again, the later one as the undo of an undo and as itself.
        for undo in undos:
            decide.undo(undo)
            assert snapshot(database, times=False)["assignments"] == both
        decide.undo(said[1 - first_undone])
        assert snapshot(database, times=False)["assignments"] == both
        decide.undo(said[first_undone])
        assert snapshot(database)["assignments"] == before


@pytest.mark.parametrize("taken_off", ["unassign", "no face"])
@pytest.mark.parametrize("first_undone", [0, 1])
def test_a_face_taken_off_a_student_and_rejected_for_them_is_theirs_again_in_whatever_order_both_are_undone(
    made_class, database, process, decide, state_of, taken_off, first_undone
):
    ids = made_class.enrol("m", "ann")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    before = snapshot(database)
    crop_id = made[0, "ann"]
    said = [
        SAME[taken_off](decide, crop_id, ids["ann"]).decision_id,
        decide.reject(crop_id, ids["ann"]).decision_id,
    ]
    decide.undo(said[first_undone])
    assert state_of(crop_id) == ("no_match", None, ("knn", "person")[first_undone])
    decide.undo(said[1 - first_undone])
    assert snapshot(database) == before


def test_whether_a_decision_counts_after_a_thousand_undos_of_undos_is_known_at_once(made_class, database, decide):
    ids = made_class.enrol("m", "ann")
    last = first = decide.rename(ids["ann"], "Ann").decision_id
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        # An undo is undone, or, every third time, the decision once more.
        for number in range(1, 1000):
            in_force = decisions.still_in_force(connection, [first]) == {first}
            assert in_force == (number % 2 == 1)
            about = first if in_force and number % 3 == 0 else last
            last = decisions.append_decision(
                connection, "undo", class_id=class_id, decided_by="a teacher", run_id=None, undoes=about
            )
        # A recursion from every undo in it took 0.9 s for 150.
        connection.execute("SET LOCAL statement_timeout = '5s'")
        assert decisions.find_decision(connection, first).undone_by == last
        assert [d.in_force for d in decisions.read_student_decisions(connection, class_id)] == [False]


def test_a_face_that_a_run_has_left_without_an_answer_has_none_after_an_undo(
    made_class, database, process, decide, state_of
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann", "bob"]])
    process("m__enrol", "m__1")
    rejected = decide.reject(made[0, "ann"], ids["ann"])
    assigned = decide.assign(made[0, "bob"], ids["ann"])
    undo = decide.undo(assigned.decision_id)
    with database.connection() as connection:
        # Their vectors are gone.
        session_id = catalog.find_session(connection, parse_session_key("m__1")).id
        assert identities.forget_assignments(connection, "dlib", session_id, []) == 2
    decide.undo(rejected.decision_id)
    assert state_of(made[0, "ann"]) is None
    # What a person says needs no vector.
    again = decide.undo(undo.decision_id)
    assert state_of(made[0, "bob"]) == ("assigned", "ann", "person")
    decide.undo(again.decision_id)
    assert state_of(made[0, "bob"]) is None


def test_after_an_undo_no_photo_shows_anybody_twice_unless_a_person_said_so(
    made_class, database, process, decide, state_of
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann", "poster"]])
    process("m__enrol", "m__1")
    unassigned = decide.unassign(made[0, "ann"])
    decide.assign(made[0, "poster"], ids["ann"])
    decide.undo(unassigned.decision_id)
    assert state_of(made[0, "ann"]) == ("needs_review", "ann", "knn")
    assert state_of(made[0, "poster"]) == ("assigned", "ann", "person")
    taken = decide.assign(made[0, "ann"], ids["bob"])
    decide.reject(made[0, "ann"], ids["ann"])
    decide.undo(taken.decision_id)
    assert state_of(made[0, "ann"]) == ("no_match", None, "knn")


def test_what_counts_again_after_others_were_said_loses_no_confirmation(
    made_class, database, process, decide, state_of
):
    ids = made_class.enrol("m", "ann", "anne")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    merged = decide.merge(ids["anne"], ids["ann"])
    undo = decide.undo(merged.decision_id)
    decide.assign(made[0, "ann"], ids["ann"])
    decide.reject(made[0, "ann"], ids["anne"])
    again = decide.undo(undo.decision_id)
    assert state_of(made[0, "ann"]) == ("assigned", "ann", "person")
    assert confirmed_student(database, made[0, "ann"]) == ids["ann"]
    decide.undo(again.decision_id)
    with database.connection() as connection:
        assert decisions.read_rejected(connection, [made[0, "ann"]]) == [(made[0, "ann"], ids["anne"])]
    assert confirmed_student(database, made[0, "ann"]) == ids["ann"]


def test_what_is_no_face_takes_part_in_nothing_until_a_person_assigns_it(
    embedded_class, database, process, decide, state_of
):
    ids = embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann", "mural"], ["mural"], ["mural"]])
    murals = [crop_id for (_, person), crop_id in made.items() if person == "mural"]
    key, version = parse_session_key("m__1"), embedded_class.version
    with database.connection() as connection:
        session = catalog.find_session(connection, key)

    def run() -> None:
        SessionClusteringService(database, "dlib", version).cluster_session(key, ClusteringConfig())
        SessionAssignmentService(database, "dlib", version).assign_session(key, AssignmentConfig())
        AttendanceService(database, "dlib").register_session(key)

    run()
    before = AttendanceService(database, "dlib").register_session(key)
    assert (before.faces, before.unknown_faces) == (4, 3)
    said = decide.not_a_face(murals)
    service = FaceCropClusteringService("dlib")
    for again in (
        run,
        lambda: service.cluster_session_crops(session.id),
        lambda: service.cluster_class_crops(session.class_id, include_identified=True),
        lambda: FaceCropAssignmentService("dlib").assign_class_crops(session.class_id),
    ):
        again()
        assert [state_of(crop_id) for crop_id in murals] == [("no_match", None, "person")] * 3
        with database.connection() as connection:
            assert (
                not set(murals)
                & clusters.read_clusters(connection, clusters.Scope(session.class_id, session.id), "dlib").keys()
            )
    counts = AttendanceService(database, "dlib").register_session(key)
    assert (counts.faces, counts.unknown_faces, counts.unmatched_faces, counts.photos_without_faces) == (1, 0, 0, 2)
    similar = FaceCropAssignmentService("dlib").similar_crops(made[0, "ann"])
    assert not set(murals) & {crop.crop_id for crop in similar.unidentified}
    with pytest.raises(ConflictError, match="shows no face"):
        FaceCropAssignmentService("dlib").assign_crop(murals[0])
    decide.assign(murals[0], ids["ann"])
    assert state_of(murals[0]) == ("assigned", "ann", "person")
    decide.undo(said.decision_id)
    run()
    assert [state_of(crop_id)[0] for crop_id in murals] == ["assigned"] * 3


def test_a_visitor_is_in_no_register_and_keeps_their_face(made_class, database, process, decide, identities_of):
    made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann", "guest"]])
    process("m__enrol", "m__1")
    guest = student_of(database, made[0, "guest"])
    hidden = decide.hide(guest)
    with pytest.raises(ConflictError, match="a visitor already"):
        decide.hide(guest)
    counts = AttendanceService(database, "dlib").register_session(parse_session_key("m__1"))
    assert (counts.known_faces, counts.unknown_faces, counts.visitor_faces) == (1, 0, 1)
    later = made_class.session("m__2", [["ann", "guest"]])
    made_class.session("m__3", [["ann"]])
    process("m__2", "m__3")
    assert identities_of(later)[0, "guest"] == identities_of(made)[0, "guest"] == hidden.student_name
    rows = statuses(database)
    assert [(hidden.student_name, session) in rows for session in "123"] == [True, True, False]
    # A named visitor is missed by no register either.
    decide.rename(guest, "The inspector")
    assert ("The inspector", "3") not in statuses(database)
    # Whoever is merged into them was the visitor too, and a visitor merged into a student is that student.
    with database.connection() as connection:
        assert "The inspector" not in catalog.named_students(connection, catalog.find_class(connection, "m"), "dlib")


def test_who_is_in_the_class_by_a_portrait_alone_leaves_every_session_with_it_and_comes_back(
    made_class, database, process, decide
):
    made_class.enrol("m", "ann", "eve")
    made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    before = statuses(database)
    assert set(before.values()) == {"present", "absent"}
    portrait = made_class.everyone[2, "eve"]
    said = decide.not_a_face([portrait])
    assert set(statuses(database).values()) == {"present"}
    decide.undo(said.decision_id)
    assert statuses(database) == before


@pytest.mark.parametrize("status", ["present", "absent", "excused"])
def test_attendance_marked_by_hand_counts_whatever_runs_and_decisions_come(
    made_class, database, process, decide, status
):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    with database.connection() as connection:
        session_id = catalog.find_session(connection, parse_session_key("m__1")).id
    for name in ("ann", "bob"):
        answer = decide.mark_attendance(session_id, ids[name], status, "the bus")
        assert (answer.attendance, answer.manual) == (status, True)
    for step in (
        lambda: process("m__1"),
        lambda: decide.unassign(made[0, "ann"]),
        lambda: decide.assign(made[0, "ann"], ids["bob"]),
        lambda: process("m__enrol", "m__1"),
    ):
        step()
        assert statuses(database) == {("ann", "1"): status, ("bob", "1"): status}
    # Of a student who is merged, the mark counts for the one who is kept; one of their own counts only if later.
    decide.mark_attendance(session_id, ids["ann"], None)
    assert statuses(database) == {("ann", "1"): "absent", ("bob", "1"): status}
    decide.merge(ids["bob"], ids["ann"])
    assert statuses(database) == {("ann", "1"): "present"}


def test_a_visitors_attendance_is_marked_once_they_are_none(made_class, database, process, decide):
    made = made_class.session("m__1", [["guest"]])
    process("m__1")
    guest = student_of(database, made[0, "guest"])
    with database.connection() as connection:
        session_id = catalog.find_session(connection, parse_session_key("m__1")).id
    hidden = decide.hide(guest)
    before = log(database), snapshot(database)
    with pytest.raises(ConflictError, match=f"is a visitor, .*: undo decision {hidden.decision_id}, which says so"):
        decide.mark_attendance(session_id, guest, "present")
    assert (log(database), snapshot(database)) == before
    decide.undo(hidden.decision_id)
    assert decide.mark_attendance(session_id, guest, "excused").attendance == "excused"
    # A mark from before can be taken back.
    decide.hide(guest)
    assert not decide.mark_attendance(session_id, guest, None).manual


def test_a_session_in_which_only_visitors_were_has_its_attendance_back_after_an_undo(
    made_class, database, process, decide
):
    made = made_class.session("m__1", [["guest"]])
    process("m__1")
    (before,) = statuses(database).items()
    decision = decide.not_a_face([made[0, "guest"]])
    assert statuses(database) == {}
    decide.undo(decision.decision_id)
    assert statuses(database) == dict([before])


def test_a_mark_shows_before_any_run_and_says_nothing_of_others(made_class, database, process, decide):
    ids = made_class.enrol("m", "ann", "bob")
    made_class.session("m__1", [["ann"]])
    process("m__enrol", "m__1")
    made_class.session("m__2", [["ann"]])
    with database.connection() as connection:
        two = catalog.find_session(connection, parse_session_key("m__2")).id
    marked = decide.mark_attendance(two, ids["bob"], "excused")
    assert {key: s for key, s in statuses(database).items() if key[1] == "2"} == {("bob", "2"): "excused"}
    # Nor does what is decided afterwards: nobody has looked yet.
    decide.rename(ids["ann"], "Ann")
    assert ("Ann", "2") not in statuses(database)
    undo = decide.undo(marked.decision_id)
    assert ("bob", "2") not in statuses(database)
    decide.undo(undo.decision_id)
    process("m__2")
    assert {key: s for key, s in statuses(database).items() if key[1] == "2"} == {
        ("Ann", "2"): "present",
        ("bob", "2"): "excused",
    }


def test_a_crop_rejected_for_a_student_is_in_no_cluster_with_their_confirmed_ones(embedded_class, database, decide):
    ids = embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"], ["ann"], ["ann"], ["ann"]])
    confirmed, rejected = [made[0, "ann"], made[1, "ann"]], made[2, "ann"]
    decide.assign_crops(confirmed, ids["ann"])
    decide.reject(rejected, ids["ann"])
    key = parse_session_key("m__1")
    with database.connection() as connection:
        session = catalog.find_session(connection, key)
    for cluster, scope in (
        (
            lambda: SessionClusteringService(database, "dlib", embedded_class.version).cluster_session(
                key, ClusteringConfig()
            ),
            clusters.Scope(session.class_id, session.id),
        ),
        (
            lambda: FaceCropClusteringService("dlib").cluster_class_crops(session.class_id, include_identified=True),
            clusters.Scope(session.class_id),
        ),
    ):
        cluster()
        with database.connection() as connection:
            labels = clusters.read_clusters(connection, scope, "dlib")
        assert labels[confirmed[0]] == labels[confirmed[1]] != labels[rejected]


def test_a_roster_that_names_a_provisional_student_as_they_are_called_is_a_decision(made_class, database, decide):
    made_class.session("m__1", [["ann"]])
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        student_id = catalog.create_provisional_student(connection, class_id, "m")
    answer = StudentService("a teacher").import_csv("m", "first_name,last_name\nClass_m_Cluster_1,\n")
    assert [row.student_id for row in answer.updated] == [student_id]
    assert log(database)[-1] == ("rename", "a teacher", "roster")
    before = snapshot(database)
    decide.replay("m")
    assert snapshot(database) == before


def test_a_portrait_with_a_provisional_students_name_names_them_for_good(made_class, database, decide):
    made_class.session("m__1", [["ann"]])
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        student_id = catalog.create_provisional_student(connection, class_id, "m")
    undo = decide.undo(decide.rename(student_id, "Ann").decision_id)
    with database.connection() as connection:
        assert catalog.ensure_named_student(connection, class_id, "Class_m_Cluster_1") == student_id
    decide.replay("m")
    with database.connection() as connection:
        student = students.find_student(connection, student_id)
    assert (student.name, student.provisional) == ("Class_m_Cluster_1", False)
    decide.undo(undo.decision_id)
    with database.connection() as connection:
        assert students.find_student(connection, student_id).name == "Ann"


def made_call(decide, process, crop_ids, people, logged, session_id, kind, first, second) -> Callable[[], object]:
    """What a step stands for, in a class with these crops, students and decisions."""
    crop_id, other = crop_ids[first % len(crop_ids)], crop_ids[second % len(crop_ids)]
    student = people[second % len(people)]
    status = ("present", "absent", "excused", None)[first % 4]
    return {
        "assign": lambda: decide.assign(crop_id, student),
        "assign two": lambda: decide.assign_crops([crop_id, other], student),
        "unassign": lambda: decide.unassign(crop_id),
        "reject": lambda: decide.reject(crop_id, student),
        "no face": lambda: decide.not_a_face([crop_id, other]),
        "rename": lambda: decide.rename(student, f"Name {first}"),
        "merge": lambda: decide.merge(people[first % len(people)], student),
        "split": lambda: decide.split([crop_id, other], f"Twin {second}" if first % 2 else None),
        "hide": lambda: decide.hide(student),
        "mark": lambda: decide.mark_attendance(session_id, student, status),
        "undo": lambda: decide.undo(logged[first % len(logged)]),
        "process": lambda: process(f"m__{1 + first % 2}"),
    }[kind]


STEPS = ("assign", "assign two", "unassign", "reject", "no face", "rename", "merge", "split", "hide", "mark", "undo")


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([*STEPS, *STEPS, "process"]), st.integers(0, 11), st.integers(0, 11)), max_size=10
    )
)
def test_any_decision_is_undone_exactly_and_replaying_all_of_them_gives_the_same_state(
    made_class, database, process, decide, steps
):
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
    with database.connection() as connection:
        (one,) = connection.execute("SELECT id FROM sessions WHERE name = '1'").fetchone()
    for kind, first, second in steps:
        with database.connection() as connection:
            people = [s for (s,) in connection.execute("SELECT id FROM students ORDER BY id")]
            logged = [
                d for (d,) in connection.execute("SELECT id FROM decisions WHERE part_of IS NULL ORDER BY id DESC")
            ]
        call = made_call(decide, process, crop_ids, people, logged, one, kind, first, second)
        before, length = snapshot(database), len(logged)
        try:
            call()
        except AttendanseeError:
            assert snapshot(database) == before
            continue
        after = snapshot(database)
        with database.connection() as connection:
            logged = [
                d for (d,) in connection.execute("SELECT id FROM decisions WHERE part_of IS NULL ORDER BY id DESC")
            ]
            twice = connection.execute(
                """SELECT count(*) FROM assignments a JOIN face_crops f ON f.id = a.crop_id
                WHERE a.state = 'assigned' AND a.decided_by <> 'person'
                GROUP BY f.image_id, a.model, a.student_id HAVING count(*) > 1"""
            ).fetchall()
        assert not twice
        assert not {row[:1] + row[3:4] for row in after["assignments"]} & set(after["rejected_students"])
        if len(logged) > length:
            undo = decide.undo(logged[0])
            left = snapshot(database)
            if kind == "split":
                # The new student stays, as one who is the old one.
                assert len(left["students"]) == len(before["students"]) + 1
                left["students"] = [row for row in left["students"] if row[0] in people]
            assert left == before
            decide.undo(undo.decision_id)
            assert snapshot(database) == after
    expected = snapshot(database, times=False)
    scramble(database)
    decide.replay("m")
    assert snapshot(database, times=False) == expected


@pytest.mark.slow
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([s for s in STEPS if s != "undo"]), st.integers(0, 5), st.integers(0, 5)),
        min_size=2,
        max_size=5,
    ),
    data=st.data(),
)
def test_undone_in_any_order_decisions_leave_what_there_is_where_they_were_never_made(
    made_class, database, process, decide, steps, data
):
    """Each history is made three times: undone in a random order, in reverse order, and without what is undone."""
    undone = data.draw(st.permutations(range(len(steps)))).copy()
    del undone[data.draw(st.integers(1, len(undone))) :]
    # Some count again, and are undone again.
    again = data.draw(st.lists(st.sampled_from(undone), max_size=2))
    states = []
    for order in (undone, sorted(undone, reverse=True), None):
        with database.connection() as connection:
            connection.execute("TRUNCATE classes RESTART IDENTITY CASCADE")
        made_class.rng = np.random.default_rng(7)
        made_class.enrol("m", "ann")
        made = [*made_class.session("m__1", [["ann", "bob"], ["bob"]]).values()]
        process("m__enrol", "m__1")
        with database.connection() as connection:
            (one,) = connection.execute("SELECT id FROM sessions WHERE name = '1'").fetchone()
            people = [s for (s,) in connection.execute("SELECT id FROM students ORDER BY id")]
        decided: dict[int, int] = {}
        refused = False
        for number, (kind, first, second) in enumerate(steps):
            never = order is None and number in undone
            if never and kind != "split":
                continue
            with database.connection() as connection:
                # Whoever names a student who was merged means the one who was kept, and goes on meaning them.
                refused |= bool(people) and connection.execute(
                    "SELECT bool_or(merged_into IS NOT NULL) FROM students WHERE id = ANY(%s)",
                    [[people[first % len(people)], people[second % len(people)]]],
                ).fetchone() == (True,)
            try:
                decided[number] = made_call(decide, process, made, people, [], one, kind, first, second)().decision_id
                if never:
                    # So that later splits make students of the same ids.
                    decide.undo(decided[number])
            except AttendanseeError:
                refused = True
        for number in order or ():
            try:
                undo = decide.undo(decided[number]).decision_id
                if order is undone and number in again:
                    decide.undo(undo)
                    decide.undo(decided[number])
            except (AttendanseeError, KeyError):
                refused = True
        # What is said of what others have said may be refused without it, and a name may be taken meanwhile.
        assume(not refused)
        states.append(as_named(snapshot(database, times=False)))
        expected = snapshot(database, times=False)
        scramble(database)
        decide.replay("m")
        assert snapshot(database, times=False) == expected
    assert states[0] == states[1] == states[2]


def as_named(state: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    """Without the ids of decisions, and without the students whom splits have made and who are nobody's own any more."""
    drop = {"confirmed_crops": 2, "manual_attendance": 4, "attendance": 6}
    return {
        "students": [row for row in state["students"] if row[3] is None],
        **{
            table: [row[: drop[table]] if table in drop else row for row in rows]
            for table, rows in state.items()
            if table != "students"
        },
    }


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
