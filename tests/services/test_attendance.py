"""Attendance that a person has set, and that single operations change, is in the register whatever else happens."""

import pytest

from pipelines.database import catalog
from pipelines.partitions import parse_session_key
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.attendance import AttendanceService
from pipelines.services.decisions import DecisionService


@pytest.fixture
def rows(database):
    """Reads the stored attendance: (session, student, status)."""

    def read() -> list[tuple]:
        with database.connection() as connection:
            return connection.execute("SELECT session_id, student_id, status FROM attendance ORDER BY 1, 2").fetchall()

    return read


def test_what_was_set_by_hand_stays_in_the_register_when_the_portrait_goes(embedded_class, database, process_class):
    ids = embedded_class.enrol("m", "ann", "bob")
    embedded_class.session("m__1", [["bob"]])
    process_class("dlib")
    with database.connection() as connection:
        session_id = catalog.find_session(connection, parse_session_key("m__1")).id
    DecisionService("a teacher").mark_attendance(session_id, ids["ann"], "present", "sat behind bob")
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE student_id = %s", [ids["ann"]])
    process_class("dlib")
    register = AttendanceService(database, "dlib").register("m")
    assert register.cells == {("ann", "1"): "present", ("bob", "1"): "present"}
    assert register.marks["ann", "1"].note == "sat behind bob"


def test_an_operation_on_the_only_face_of_a_session_brings_its_attendance_back(
    embedded_class, database, process_class, rows
):
    first = embedded_class.session("m__1", [["ann"]])
    second = embedded_class.session("m__2", [["bob"]])
    process_class("dlib")
    with database.connection() as connection:
        student_of = dict(connection.execute("SELECT crop_id, student_id FROM assignments").fetchall())
        connection.execute(
            """UPDATE embeddings_dlib SET embedding = (SELECT embedding FROM embeddings_dlib WHERE crop_id = %s)
            WHERE crop_id = %s""",
            [first[0, "ann"], second[0, "bob"]],
        )
    ann = student_of[first[0, "ann"]]
    DecisionService("a teacher").reject(second[0, "bob"], student_of[second[0, "bob"]])
    assert len(rows()) == 1
    assert FaceCropAssignmentService("dlib").assign_crop(second[0, "bob"]).student_id == ann
    after = rows()
    assert [student_id for _, student_id, _ in after] == [ann, ann]
    DecisionService("a teacher").replay("m")
    assert rows() == after
