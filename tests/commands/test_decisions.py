"""`attendansee undo`, `decisions`, `mark` and `students split|create|hide` as people type them."""

import json

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.services.attendance import AttendanceService
from pipelines.services.decisions import DecisionService


def attendansee(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"})


@pytest.fixture
def crops(made_class, process_class, database) -> list[int]:
    """Two faces of ann, confirmed, in the session s of the class m, which bob is of too."""
    made_class.version = "v"
    ids = made_class.enrol("m", "ann", "bob")
    crop_ids = list(made_class.session("m__s", [["ann"], ["ann"]]).values())
    DecisionService("a teacher").assign_crops(crop_ids, ids["ann"], "seen [both]")
    process_class("dlib")
    return crop_ids


def newest() -> dict:
    return json.loads(attendansee("decisions", "m", "--json").stdout)["results"][0]


def test_what_was_decided_is_shown_and_undone(crops):
    shown = attendansee("decisions", "m").stdout
    for words in ("a teacher", "2 faces are ann.", "seen [both]", "yes", "enrolment"):
        assert words in shown
    decision = newest()
    assert decision["crop_ids"] == crops
    undone = attendansee("undo", decision["id"], "--reason", "two people")
    undo = newest()
    assert undone.stdout == f"Undone: 2 faces are ann.\nTo take this back: attendansee undo {undo['id']}\n"
    assert (undo["undoes"], undo["reason"]) == (decision["id"], "two people")
    assert f"no, see {undo['id']}" in attendansee("decisions", "m").stdout
    assert json.loads(attendansee("undo", undo["id"], "--json").stdout)["undone_decision_id"] == undo["id"]
    assert "--offset 2 shows older ones" in attendansee("decisions", "m", "--limit", "2").stdout


def test_a_name_that_was_changed_behind_the_log_comes_back(crops, database):
    attendansee("students", "rename", "m", "ann", "Ann")
    with database.connection() as connection:
        connection.execute("UPDATE students SET name = 'nobody' WHERE name = 'Ann'")
    assert attendansee("replay-decisions", "m").stdout == "m is what its decisions make of it.\n"
    with database.connection() as connection:
        assert {"Ann", "bob"} == {name for (name,) in connection.execute("SELECT name FROM students")}


def test_attendance_is_marked_and_left_to_the_photos_again(crops, database):
    marked = attendansee("mark", "m", "s", "bob", "excused", "--note", "ill")
    assert marked.stdout == f"bob in s: excused (as marked). To take this back: attendansee undo {newest()['id']}\n"
    register = AttendanceService(database, "dlib").register("m")
    assert register.cells["bob", "s"] == "excused"
    assert "bob in s: absent (by the photos)." in attendansee("mark", "m", "s", "bob", "photos").stdout
    assert json.loads(attendansee("mark", "m", "s", "ann", "absent", "--json").stdout)["attendance"] == "absent"


def test_a_student_is_split_and_hidden(crops):
    split = attendansee("students", "split", "m", "ann", crops[1], "--name", "Twin", "--reason", "a twin")
    assert "1 face(s) of ann are Twin (student" in split.stdout
    assert newest()["reason"] == "a twin"
    assert "bob is a visitor." in attendansee("students", "hide", "m", "bob").stdout
    assert "bob (visitor)" in attendansee("students", "list", "m").stdout


def test_faces_that_show_nobody_are_a_new_student(crops):
    attendansee("undo", newest()["id"])
    DecisionService("a teacher").not_a_face(crops)
    created = attendansee("students", "create", *crops, "--name", "Zoe", "--reason", "came today")
    decision = newest()
    assert created.stdout == (
        f"2 face(s) are Zoe (student {decision['student_id']}), who is new. "
        f"To take this back: attendansee undo {decision['id']}\n"
    )
    assert (decision["sentence"], decision["reason"]) == ("2 faces are somebody new: Zoe.", "came today")
    renamed = attendansee("students", "rename", "m", "Zoe", "Zoë", "--reason", "a typo")
    assert (renamed.stdout, newest()["reason"]) == ("Zoe is Zoë now.\n", "a typo")
    attendansee("students", "merge", "m", "Zoë", "bob", "--reason", "known")
    assert newest()["reason"] == "known"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["undo", "99999"], "There is no decision 99999."),
        (["decisions", "nowhere"], "There is no class 'nowhere'"),
        (["mark", "m", "s", "nobody", "present"], "has no student 'nobody'"),
        (["mark", "m", "never", "bob", "present"], "m__never is not registered"),
        (["students", "split", "m", "bob", "99999"], "There is no face crop 99999."),
        (["students", "create", "99999"], "There is no face crop 99999."),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(crops, arguments, words):
    result = attendansee(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
