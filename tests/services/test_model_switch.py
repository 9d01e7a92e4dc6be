"""Switching a class's model and back, what is refused, what leaks from one lineage into another: made vectors."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pipelines.database import browse, catalog, lineages
from pipelines.errors import AttendanseeError, ClassBusyError, ConflictError, ModelError, ParameterError, WeightsError
from pipelines.services.attendance import AttendanceService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.context import default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.model_switch import ModelSwitchService
from pipelines.services.students import StudentService


@pytest.fixture
def service(facenet) -> ModelSwitchService:
    return ModelSwitchService("ann", "run 1")


@pytest.fixture
def teacher(database) -> DecisionService:
    return DecisionService("a teacher")


@pytest.fixture
def rows(database):
    def query(statement: str, *values: object) -> list[tuple]:
        with database.connection() as connection:
            return connection.execute(statement, values).fetchall()

    return query


@pytest.fixture
def register(database):
    """The register that counts, as `attendansee attendance` prints it."""

    def read(model: str | None = None) -> tuple[str, str]:
        with database.connection() as connection:
            active = catalog.active_model(connection, "m")
        found = AttendanceService(database, model or active).register("m")
        return found.to_json(), found.to_csv()

    return read


@pytest.fixture
def made(embedded_class, process_class, facenet):
    """A class of two sessions with portraits, a student whom a teacher has named, and a visitor; both models have it.

    To facenet the visitor is two people, and ann is in no photo of the second session.
    """
    embedded_class.enrol("m", "ann", "bob")
    first = embedded_class.session("m__1", [["ann", "visitor"], ["bob", "visitor"]])
    second = embedded_class.session("m__2", [["ann", "bob"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    facenet({(0, "stranger"): first[1, "visitor"], (0, "other"): second[0, "ann"]})
    process_class("facenet")
    return {**first, **{(2, person): crop_id for (_, person), crop_id in second.items()}}


def test_a_switch_counts_from_now_on_and_says_who_and_why(made, service, register, rows):
    dlib, facenet = register(), register("facenet")
    assert dlib != facenet
    answer = service.switch("m", "facenet", " better with masks ")
    assert (answer.old_model, answer.new_model, answer.sessions, answer.crops_embedded) == ("dlib", "facenet", 2, 8)
    assert (answer.accepted_crops, answer.missing_sessions) == ([], {})
    assert register() == facenet
    assert rows("SELECT old_model, new_model, switched_by, reason, run_id, accepted_crops FROM model_switches") == [
        ("dlib", "facenet", "ann", "better with masks", "run 1", [])
    ]


def test_going_back_gives_the_register_that_there_was(made, service, register, rows):
    tables = ("assignments", "attendance", "clusters", "cluster_members", "students", "decisions", "embeddings_dlib")
    before = register(), [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]
    service.switch("m", "facenet", "to try it")
    service.switch("m", "dlib", "it was better")
    assert (register(), [rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in tables]) == before
    assert rows("SELECT old_model, new_model FROM model_switches ORDER BY id") == [
        ("dlib", "facenet"),
        ("facenet", "dlib"),
    ]


def test_trying_a_model_changes_nothing_that_counts(embedded_class, process_class, facenet, register, rows, database):
    embedded_class.enrol("m", "ann", "bob")
    first = embedded_class.session("m__1", [["ann", "visitor"], ["bob", "visitor"]])
    process_class("dlib")

    def seen() -> list[object]:
        with database.connection() as connection:
            class_id = catalog.find_class(connection, "m")
            return [
                register(),
                StudentService("ann").list("m"),
                browse.class_row(connection, class_id),
                browse.students(connection, 100, 0, class_id=class_id),
                rows("SELECT * FROM assignments WHERE model = 'dlib' ORDER BY crop_id"),
                rows("SELECT * FROM attendance WHERE model = 'dlib' ORDER BY 1, 2, 3"),
            ]

    before = seen()
    facenet(embedded_class.everyone)
    facenet({(0, "stranger"): first[1, "visitor"]})
    process_class("facenet")
    assert rows("SELECT count(*) FROM students") == [(4,)], "facenet knows a stranger"
    assert seen() == before
    # Nor when the class goes on with its own model.
    process_class("dlib")
    assert seen() == before


def test_the_unknown_people_of_the_model_that_counts_are_listed(made, service):
    def provisional() -> list[str]:
        return [student.name for student in StudentService("ann").list("m").students if student.provisional]

    assert provisional() == ["Class_m_Session_1_Cluster_1"]
    service.switch("m", "facenet", "to try it")
    # The visitor, the stranger, and whom facenet does not take for ann.
    assert len(provisional()) == 3
    service.switch("m", "dlib", "back")
    assert provisional() == ["Class_m_Session_1_Cluster_1"]


def test_sessions_and_faces_that_are_missing_refuse_the_switch(
    embedded_class, process_class, facenet, service, register
):
    embedded_class.enrol("m", "ann")
    first = embedded_class.session("m__1", [["ann"], ["bob"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    process_class("facenet")
    embedded_class.session("m__2", [["ann", "bob"]])
    before = register()
    with pytest.raises(ConflictError) as refusal:
        service.switch("m", "facenet", "why not")
    assert str(refusal.value) == (
        "facenet covers 1 of 2 sessions of m and 3 of 5 faces; lacking: m__2 (2 of 2 faces have no vector). Run "
        "`attendansee backfill --model facenet --class m`, or switch with --allow-missing-sessions and do without them."
    )
    assert register() == before
    facenet({place: crop for place, crop in embedded_class.everyone.items() if crop not in first.values()})
    with pytest.raises(ConflictError, match=r"m__2 \(it was never processed\)"):
        service.switch("m", "facenet", "why not")
    process_class("facenet")
    assert service.switch("m", "facenet", "now it can").sessions == 2


def test_a_school_can_go_back_at_once_and_is_told_what_is_missing(
    made, service, embedded_class, facenet, process_class, register, rows
):
    before = register()
    service.switch("m", "facenet", "to try it")
    embedded_class.model, dlib = "facenet", embedded_class.version
    embedded_class.version = "elsewhere"
    crops_before = set(embedded_class.everyone)
    embedded_class.session("m__3", [["ann", "bob"]])
    embedded_class.model, embedded_class.version = "dlib", dlib
    facenet({place: crop for place, crop in embedded_class.everyone.items() if place not in crops_before})
    process_class("facenet")
    with pytest.raises(ConflictError, match=r"dlib covers 2 of 3 sessions .*: m__3 \(2 of 2 faces have no vector\)"):
        service.switch("m", "dlib", "it was better")
    answer = service.switch("m", "dlib", "it was better", allow_missing_sessions=True)
    assert answer.missing_sessions == {"3": "2 of 2 faces have no vector"}
    assert register() == before
    assert rows("SELECT missing_sessions FROM model_switches ORDER BY id") == [([],), (["3"],)]


def test_going_back_to_a_lineage_that_single_operations_made(
    embedded_class, facenet, process_class, service, register, database
):
    embedded_class.session("m__1", [["ann", "bob"], ["ann"]])
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
    FaceCropClusteringService("dlib").cluster_class_crops(class_id)
    before = register()
    facenet(embedded_class.everyone)
    process_class("facenet")
    service.switch("m", "facenet", "to try it")
    assert service.switch("m", "dlib", "back").missing_sessions == {}
    assert register() == before


def test_a_contradicted_confirmation_refuses_the_switch_unless_it_is_named(made, service, teacher, register, rows):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    # facenet took this face for ann's too.
    teacher.assign(made[0, "visitor"], ids["bob"])
    teacher.assign(made[0, "ann"], ids["bob"])
    portrait = rows("SELECT crop_id FROM confirmed_crops WHERE student_id = %s", ids["ann"])[0][0]
    with pytest.raises(ConflictError) as refusal:
        service.switch("m", "facenet", "why not")
    # The portrait and the face are the same person to it, so that each contradicts what was said about the other.
    assert str(refusal.value) == (
        f"facenet contradicts 2 confirmed faces of m: face crop {portrait} is ann, for facenet bob; face crop "
        f"{made[0, 'ann']} is bob, for facenet ann. `attendansee compare m --model facenet` shows all. Correct the "
        f"confirmations that are wrong, or accept the others (--accept {portrait} --accept {made[0, 'ann']}): they stay "
        "confirmed."
    )
    with pytest.raises(ConflictError, match="contradicts 1 confirmed faces"):
        service.switch("m", "facenet", "why not", accept=[portrait])
    decisions = rows("SELECT * FROM decisions ORDER BY id")
    with pytest.raises(ConflictError) as refusal:
        service.switch("m", "facenet", "why not", accept=[portrait, made[0, "ann"], 10**6, made[2, "bob"]])
    assert str(refusal.value) == (
        f"The switch of m to facenet asks nothing about the face crops {made[2, 'bob']}, 1000000: accept those alone that "
        "its refusal names."
    )
    assert rows("SELECT 1 FROM model_switches") == []
    accepted = [portrait, made[0, "ann"]]
    assert service.switch("m", "facenet", "why not", accept=accepted).accepted_crops == accepted
    # The very same call again.
    with pytest.raises(ConflictError, match=r"^facenet is the active model of m: name another one"):
        service.switch("m", "facenet", "why not", accept=accepted)
    assert rows("SELECT accepted_crops FROM model_switches") == [([portrait, made[0, "ann"]],)]
    service.switch("m", "dlib", "back")
    assert service.switch("m", "facenet", "why not", accept=accepted).accepted_crops == [], "nothing is asked any more"
    assert rows("SELECT * FROM decisions ORDER BY id") == decisions
    confirmed = "SELECT student_id FROM assignments WHERE crop_id = %s AND model = 'facenet'"
    assert rows(confirmed, made[0, "ann"]) == [(ids["bob"],)]


def test_going_back_asks_about_what_was_confirmed_since_and_nothing_else(made, service, teacher, rows):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    teacher.assign(made[0, "ann"], ids["bob"])  # against both models
    (portrait,) = rows("SELECT crop_id FROM confirmed_crops WHERE student_id = %s", ids["ann"])[0]
    service.switch("m", "facenet", "to try it", accept=[portrait, made[0, "ann"]])
    # What was said while dlib counted is no reason not to go back to it.
    service.switch("m", "dlib", "back")
    service.switch("m", "facenet", "and forth")
    teacher.assign(made[1, "bob"], ids["ann"])
    with pytest.raises(ConflictError, match=f"contradicts 1 confirmed faces of m: face crop {made[1, 'bob']} is ann"):
        service.switch("m", "dlib", "back")
    service.switch("m", "dlib", "back", accept=[made[1, "bob"]])


def test_a_lineage_that_was_made_anew_is_asked_about_everything_again(made, service, teacher, rows):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    teacher.assign(made[0, "ann"], ids["bob"])
    (portrait,) = rows("SELECT crop_id FROM confirmed_crops WHERE student_id = %s", ids["ann"])[0]
    service.switch("m", "facenet", "to try it", accept=[portrait, made[0, "ann"]])
    service.switch("m", "dlib", "back")
    with service.context.database.connection() as connection:
        # As after `delete-lineage` and a backfill.
        connection.execute("UPDATE embeddings_facenet SET created_at = now()")
        connection.execute("UPDATE lineage_sessions SET assigned_at = now() WHERE model = 'facenet'")
    with pytest.raises(ConflictError, match="facenet contradicts 2 confirmed faces of m"):
        service.switch("m", "facenet", "and forth")


def test_a_face_that_the_model_knows_nobody_for_contradicts_nothing(made, service, teacher, rows):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    teacher.assign(made[2, "ann"], ids["ann"])  # facenet sees somebody else there
    assert service.switch("m", "facenet", "why not").accepted_crops == []


def test_what_people_decide_meanwhile_holds_after_going_back(made, service, teacher, register, rows, database):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    service.switch("m", "facenet", "to try it")
    teacher.reject(made[2, "bob"], ids["bob"], "his brother")
    teacher.rename(ids["Class_m_Session_1_Cluster_1"], "Vera")
    service.switch("m", "dlib", "back")
    cells = AttendanceService(database, "dlib").register("m").cells
    assert (cells["bob", "2"], cells["Vera", "1"], cells["Vera", "2"]) == ("absent", "present", "absent")


def test_a_session_that_only_the_other_model_had_is_taken_up_with_its_people(
    made, service, embedded_class, process_class, facenet, teacher, identities_of, rows
):
    service.switch("m", "facenet", "to try it")
    crops_before = set(embedded_class.everyone)
    third = embedded_class.session("m__3", [["newcomer"]])
    facenet({place: crop for place, crop in embedded_class.everyone.items() if place not in crops_before})
    process_class("facenet")
    (student_id,) = rows("SELECT student_id FROM assignments WHERE crop_id = %s", third[0, "newcomer"])[0]
    teacher.rename(student_id, "Nora")
    service.switch("m", "dlib", "back", allow_missing_sessions=True)
    process_class("dlib")
    assert identities_of(third) == {(0, "newcomer"): "Nora"}


@pytest.fixture
def bob(embedded_class, process_class, facenet, teacher, rows):
    """Bob was found by dlib and has no portrait; ann has one, and facenet takes her face in the second session for his."""
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["bob"], ["bob"]])
    process_class("dlib")
    teacher.rename(rows("SELECT student_id FROM assignments WHERE crop_id = %s", made[0, "bob"])[0][0], "Bob")
    return made


@pytest.mark.parametrize("retired", [False, True])
def test_what_a_person_has_said_against_a_face_is_not_answered_by_another_lineage(
    bob, embedded_class, process_class, facenet, identities_of, teacher, rows, service, retired
):
    other = embedded_class.session("m__2", [["ann"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    facenet({(0, "bob"): other[0, "ann"]})
    process_class("facenet")
    assert identities_of(other, "facenet") == {(0, "ann"): "Bob"}
    if retired:
        service.switch("m", "facenet", "to try it")
        service.switch("m", "dlib", "back")
    (ann,) = rows("SELECT id FROM students WHERE name = 'ann'")[0]
    teacher.reject(other[0, "ann"], ann)
    process_class("dlib")
    assert identities_of(other)[0, "ann"] not in {"ann", "Bob"}


def test_a_lineage_on_trial_names_nobody_for_the_one_that_counts(
    bob, embedded_class, process_class, facenet, identities_of
):
    facenet(embedded_class.everyone)
    process_class("facenet")
    guest = embedded_class.session("m__2", [["guest"]])
    # The model on trial sees the new session first.
    facenet({(0, "bob"): guest[0, "guest"]})
    process_class("facenet")
    assert identities_of(guest, "facenet") == {(0, "guest"): "Bob"}
    process_class("dlib")
    assert identities_of(guest) == {(0, "guest"): "Class_m_Session_2_Cluster_1"}


def test_a_student_whom_only_a_model_on_trial_has_seen_can_still_be_withdrawn(
    embedded_class, process_class, facenet, register, rows, database
):
    embedded_class.enrol("m", "ann", "dan")
    made = embedded_class.session("m__1", [["ann", "guest"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    facenet({(0, "dan"): made[0, "guest"]})
    process_class("facenet")
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path = 'm/enrol/dan.jpg'")
    process_class("dlib")
    assert "dan" not in AttendanceService(database, "dlib").register("m").students
    assert "dan" in AttendanceService(database, "facenet").register("m").students


def test_an_unknown_person_whom_another_lineages_attendance_names_is_not_deleted(
    made, process_class, register, rows, database
):
    before = register()
    with database.connection() as connection:
        # A newer detector finds the visitor's faces no more, and dlib has not looked since.
        visitor = [made[0, "visitor"], made[1, "visitor"]]
        assert connection.execute("DELETE FROM face_crops WHERE id = ANY(%s)", [visitor]).rowcount == 2
    process_class("facenet")
    assert register() == before
    process_class("dlib")
    assert register() != before
    assert rows("SELECT name FROM students WHERE provisional AND name LIKE '%%Session_1%%'") == []


def test_what_cannot_be_switched_is_refused(made, service, embedded_class, monkeypatch):
    embedded_class.session("n__1", [["ann"]])
    for arguments, error, words in (
        (("m", "dlib", "why"), ConflictError, "dlib is the active model of m"),
        (("n", "facenet", "why"), ConflictError, "No model has processed the class n yet"),
        (("nowhere", "facenet", "why"), AttendanseeError, "There is no class 'nowhere'"),
        (("m", "facenet", " "), ParameterError, "The reason is empty"),
        (("m", "facenet", "\x00"), ParameterError, "The reason holds characters"),
        (("m", "eigenfaces", "why"), ModelError, "eigenfaces"),
        (("m", "arcface", "why"), WeightsError, "models fetch arcface"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            service.switch(*arguments)


def test_a_class_that_is_being_decided_about_is_busy(made, service, database):
    hasty = replace(service, context=replace(default_context(), lock_patience_s=0))
    with database.connection() as connection:
        catalog.lock_class(connection, catalog.find_class(connection, "m"))
        for act in (
            lambda: hasty.switch("m", "facenet", "why"),
            lambda: hasty.delete_lineage("m", "facenet"),
            lambda: hasty.delete_model("facenet"),
        ):
            with pytest.raises(ClassBusyError):
                act()


def test_of_two_who_switch_at_once_one_does(made, service, rows):
    def switch(_: int) -> str:
        try:
            return service.switch("m", "facenet", "why").new_model
        except ConflictError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        said = sorted(pool.map(switch, range(4)))
    assert said == ["facenet", *["facenet is the active model of m: name another one."] * 3]
    assert rows("SELECT count(*) FROM model_switches") == [(1,)]


def test_the_first_model_of_a_class_stays_its_first(made, service, database):
    def first() -> dict[str, str]:
        with database.connection() as connection:
            return lineages.first_models(connection)

    assert first() == {"m": "dlib"}
    service.switch("m", "facenet", "to try it")
    service.switch("m", "dlib", "back")
    service.switch("m", "facenet", "and forth")
    assert first() == {"m": "dlib"}


# Deleting a lineage


def test_a_deleted_lineage_is_gone_and_the_other_one_and_other_classes_stay(
    made, service, embedded_class, process_class, facenet, register, rows, teacher
):
    facenet(embedded_class.session("n__1", [["ann"]]))
    process_class("facenet", "n")
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    teacher.assign(made[0, "ann"], ids["ann"])
    service.switch("m", "facenet", "better")
    before, decisions = register(), rows("SELECT * FROM decisions")
    of_dlib = {
        table: rows(f"SELECT count(*) FROM {table} WHERE model = 'dlib'")[0][0]
        for table in ("clusters", "assignments", "attendance")
    }
    answer = service.delete_lineage("m", "dlib")
    assert {table: getattr(answer, table) for table in of_dlib} == of_dlib
    assert (answer.vectors, answer.students) == (8, 0)
    assert all(of_dlib.values())
    assert "only after a new backfill" in answer.note
    for table in (*of_dlib, "lineage_sessions"):
        assert rows(f"SELECT 1 FROM {table} WHERE model = 'dlib'") == []
    assert rows("SELECT count(*) FROM embeddings_dlib") == [(1,)], "that of n"
    assert register() == before
    assert rows("SELECT * FROM decisions") == decisions
    assert rows("SELECT count(*) FROM attendance WHERE model = 'facenet'")[0][0] > 0
    with pytest.raises(ConflictError, match="dlib covers 0 of 2 sessions of m and 0 of 8 faces"):
        service.switch("m", "dlib", "back")
    again = service.delete_lineage("m", "dlib")
    assert (again.vectors, again.assignments, again.attendance, again.clusters, again.students) == (0, 0, 0, 0, 0)


def test_a_deleted_lineage_takes_the_people_with_it_whom_nobody_else_knows(made, service, register, rows):
    before = register()
    answer = service.delete_lineage("m", "facenet")
    assert answer.students == 2
    assert register() == before
    assert rows("SELECT count(*) FROM students WHERE provisional") == [(1,)]


def test_a_lineage_that_is_made_anew_has_what_people_confirmed(
    made, service, process_class, embedded_class, teacher, rows
):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    teacher.assign(made[2, "ann"], ids["bob"])
    service.delete_lineage("m", "facenet")
    with pytest.raises(ConflictError, match="covers 0 of 2"):
        service.switch("m", "facenet", "why")
    process_class("facenet")
    assert rows("SELECT 1 FROM assignments WHERE model = 'facenet' AND decided_by = 'knn'") == [], (
        "no vector, no answer"
    )
    assert rows("SELECT student_id FROM assignments WHERE model = 'facenet' AND crop_id = %s", made[2, "ann"]) == [
        (ids["bob"],)
    ]


def test_an_undo_brings_nothing_of_a_deleted_lineage_back(made, service, teacher, rows):
    ids = {name: i for i, name in rows("SELECT id, name FROM students")}
    rejected = teacher.reject(made[0, "ann"], ids["ann"])
    undo = teacher.undo(teacher.unassign(made[0, "ann"]).decision_id)
    of_dlib = "SELECT count(*) FROM displaced_assignments WHERE model = 'dlib'"
    before = rows(of_dlib)
    service.delete_lineage("m", "facenet")
    assert rows(of_dlib) == before
    for decision_id in (undo.decision_id, rejected.decision_id):
        teacher.undo(decision_id)
        assert rows("SELECT 1 FROM assignments WHERE model = 'facenet'") == []


def test_a_deleted_model_is_gone_from_every_class_where_it_is_active_in_none(
    made, service, embedded_class, process_class, facenet, register, rows
):
    before = register()
    facenet(embedded_class.session("n__1", [["ann"]]))
    process_class("facenet", "n")
    with pytest.raises(ConflictError, match=r"^facenet is the active model of n: give each class another one"):
        service.delete_model("facenet")
    assert rows("SELECT count(*) FROM embeddings_facenet") == [(9,)]
    process_class("dlib", "n")
    service.switch("n", "dlib", "back", allow_missing_sessions=True)
    service.delete_model("facenet")
    assert rows("SELECT to_regclass('embeddings_facenet')") == [(None,)]
    for table in ("clusters", "assignments", "attendance", "lineage_sessions"):
        assert rows(f"SELECT 1 FROM {table} WHERE model = 'facenet'") == []
    assert register() == before
    service.delete_model("facenet")


def test_the_active_lineage_is_never_deleted(made, service, rows):
    before = rows("SELECT count(*) FROM embeddings_dlib")
    with pytest.raises(ConflictError, match="dlib is the active model of m: switch to another one"):
        service.delete_lineage("m", "dlib")
    with pytest.raises(ModelError, match="eigenfaces"):
        service.delete_lineage("m", "eigenfaces")
    with pytest.raises(AttendanseeError, match="There is no class 'nowhere'"):
        service.delete_lineage("nowhere", "facenet")
    assert rows("SELECT count(*) FROM embeddings_dlib") == before
