"""`attendansee report` and the register's table, as a teacher uses them."""

import json

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.database import catalog
from pipelines.partitions import SessionKey
from pipelines.services.decisions import DecisionService


def attendansee(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "200"})


@pytest.fixture
def school(embedded_class, process_class) -> dict[str, int]:
    """The class "m" with Ada and Bob in one session, and Eve; the students' ids."""
    students = embedded_class.enrol("m", "Ada", "Bob")
    embedded_class.session("m__s1", [["Ada", "Eve"]])
    process_class("dlib")
    return students


def session_id(database) -> int:
    with database.connection() as connection:
        return catalog.find_session(connection, SessionKey("m", "s1")).id


@pytest.mark.parametrize(
    ("style", "begins"), [("html", b"<!DOCTYPE html>"), ("csv", b"\xef\xbb\xbfclass,"), ("xlsx", b"PK"), ("json", b"{")]
)
def test_each_format_is_one_file_for_its_owner_alone(school, tmp_path, style, begins):
    path = tmp_path / f"report.{style}"
    path.write_text("an older one")
    result = attendansee("report", "m", "--format", style, "--output", path)
    assert result.exit_code == 0, result.output
    assert "1 questions left" in result.stdout
    assert path.read_bytes().lstrip().startswith(begins)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_a_name_the_file_is_named_after_class_and_session(school, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attendansee("report", "m").exit_code == 0
    assert attendansee("report", "m", "--session", "s1", "--format", "csv").exit_code == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.html", "m__s1.csv"]


def test_a_dash_is_standard_output(school):
    answer = json.loads(attendansee("report", "m", "--format", "json", "--output", "-").stdout)
    assert [cell["status"] for cell in answer["cells"]] == ["present", "absent", "unknown"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "There is no class 'nobody'"),
        (["m", "--session", "s9"], "is not registered"),
        (["m", "--output", "a_file/report.html"], "a_file/report.html cannot be written"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(school, arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    result = attendansee("report", *arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_the_table_shows_what_was_set_by_hand_with_the_note(school, database):
    DecisionService("ann").mark_attendance(session_id(database), school["Bob"], "excused", "ill [really]")
    output = attendansee("attendance", "m").stdout
    (row,) = [line for line in output.splitlines() if line.startswith("│ Bob")]
    assert "E excused *" in row
    assert "* Bob, s1: excused, set by ann: ill [really]" in output
    (ada,) = [line for line in output.splitlines() if line.startswith("│ Ada")]
    assert "*" not in ada
    answer = json.loads(attendansee("attendance", "m", "--format", "json").stdout)
    assert answer["sessions"][0]["by_hand"] == {"Bob": {"by": "ann", "note": "ill [really]"}}
    assert answer["sessions"][0]["counts"]["excused"] == 1


def test_a_name_in_the_registers_csv_is_no_formula(embedded_class, process_class):
    embedded_class.enrol("m", "=1+1")
    embedded_class.session("m__s1", [["=1+1"]])
    process_class("dlib")
    assert attendansee("attendance", "m", "--format", "csv").stdout.splitlines()[1] == "m,s1,,'=1+1,present,,"
