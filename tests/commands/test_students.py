"""`attendansee students ...` as people type it."""

import json

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main

ROSTER = "first_name;last_name;student_id;email\nAda;Lovelace;1;ada@school.org\nBen;Bold [x];2;\n"


def students(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["students", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"})


@pytest.fixture
def roster(database, tmp_path):
    path = tmp_path / "roster.csv"
    path.write_text(ROSTER)
    return path


def test_a_roster_becomes_a_list_that_can_be_corrected(database, roster):
    result = students("import", "m", roster, "--create-class")
    assert (result.exit_code, result.stdout) == (0, "2 added, 0 updated, 0 unchanged, 0 refused.\n")
    shown = students("list", "m").stdout
    for words in ("Ada Lovelace", "Ben Bold [x]", "ada@school.org"):
        assert words in shown
    rows = json.loads(students("list", "m", "--json").stdout)["students"]
    ada, ben = (row["id"] for row in rows)
    assert students("rename", "m", "Ada Lovelace", "Ada King").stdout == "Ada Lovelace is Ada King now.\n"
    assert json.loads(students("rename", "m", ada, "Ada K", "--json").stdout)["old_name"] == "Ada King"
    assert f"student {ada}" in students("merge", "m", ben, "Ada K").stdout
    assert [row["name"] for row in json.loads(students("list", "m", "--json").stdout)["students"]] == ["Ada K"]
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM decisions WHERE decided_by = ''").fetchone() == (0,)


def test_refused_rows_are_named_and_make_the_status_1(roster):
    roster.write_text(ROSTER + "Cem;Calm;1;\n")
    result = students("import", "m", roster, "--create-class")
    assert result.exit_code == 1
    assert "2 added" in result.stdout
    assert "line 4: The student_id '1' is that of line 2 too" in result.stdout
    assert json.loads(students("import", "m", roster, "--json").stdout)["unchanged"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "nowhere"], "There is no class 'nowhere'"),
        (["rename", "m", "Nobody", "Ann"], "has no student 'Nobody'"),
        (["rename", "m", "Ada Lovelace", "Ben Bold [x]"], "merge the two"),
        (["merge", "m", "Ada Lovelace", "Ada Lovelace"], "itself"),
        (["import", "m", "none.csv"], "none.csv cannot be read"),
        (
            ["import", "M", "roster.csv"],
            "There is no class 'M': name m, or make it with create_class (--create-class).",
        ),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(roster, arguments, words):
    students("import", "m", roster, "--create-class")
    result = students(*(roster if argument == "roster.csv" else argument for argument in arguments))
    assert result.exit_code == 1
    assert words in result.stderr
