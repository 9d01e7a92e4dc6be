"""`attendansee calibrate` as people type it."""

import getpass
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.database import catalog
from pipelines.services.thresholds import class_spec


def calibrate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)], catch_exceptions=False)


def in_use(world) -> float:
    with world.database.connection() as connection:
        return class_spec(connection, "dlib", catalog.find_class(connection, "m")).assignment_distance


def test_thresholds_are_printed_and_hold_only_once_they_are_adopted(confirmed_class):
    shown = calibrate("m")
    assert shown.exit_code == 0
    assert "2 of 300 faces searched for among all other students found somebody" in shown.stdout
    assert "last_adopted" not in shown.stdout
    for words in ("impostor_comparisons           300", "fpir_high                      0.0239", "slope "):
        assert words in shown.stdout
    assert in_use(confirmed_class) == 0.065

    adopted = json.loads(calibrate("m", "--fpir", 0.05, "--adopt", "--reason", "a trial", "--format", "json").stdout)
    assert adopted["fpir_asked"] == 0.05
    assert adopted["adopted"]["calibration_id"] == adopted["calibration_id"]
    assert in_use(confirmed_class) == adopted["adopted"]["assignment_distance"] == adopted["operating_distance"]
    with confirmed_class.database.connection() as connection:
        (row,) = connection.execute("SELECT adopted_by <> '', reason FROM calibration_adoptions").fetchall()
    assert row == (True, "a trial")

    # Who it was is shown from now on.
    later = json.loads(calibrate("m", "--format", "json").stdout)
    assert later["last_adopted_calibration_id"] == adopted["calibration_id"] != later["calibration_id"]
    assert later["last_adopted_operating_distance"] == adopted["operating_distance"]
    assert (later["last_adopted_by"], later["last_adopted_reason"]) == (getpass.getuser(), "a trial")
    assert datetime.now(UTC) - datetime.fromisoformat(later["last_adopted_at"]) < timedelta(minutes=10)
    table = calibrate("m").stdout
    assert re.search(r"^last_adopted_reason +a trial$", table, re.MULTILINE)
    assert re.search(rf"^last_adopted_at +{later['last_adopted_at']}$", table, re.MULTILINE)

    assert "assignment_distance            0.0650" in calibrate("m", "--reset").stdout
    assert in_use(confirmed_class) == 0.065
    reset = json.loads(calibrate("m", "--format", "json").stdout)
    assert reset["last_adopted_calibration_id"] is None
    assert (reset["last_adopted_by"], reset["last_adopted_reason"]) == (getpass.getuser(), None)
    assert reset["last_adopted_operating_distance"] == 0.065


def test_too_few_identities_are_said_in_numbers_and_nothing_is_adopted(embedded_class):
    embedded_class.enrol("m", "ann", "bob")
    shown = calibrate("m")
    words = "not enough data: 2 impostor comparisons, 299 needed; 0 genuine comparisons, 29 needed"
    assert shown.exit_code == 0
    assert words in shown.stdout
    assert json.loads(calibrate("m", "--format", "json").stdout)["result"] == words
    refused = calibrate("m", "--adopt", "--reason", "why not")
    assert refused.exit_code == 1
    assert f"nothing to adopt for m: {words}" in refused.stderr
    assert in_use(embedded_class) == 0.065


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 1, "There is no class 'nowhere'"),
        (["m", "--fpir", "0.7"], 1, "fpir cannot be used: Input should be less than or equal to 0.5"),
        (["m", "--fpir", "nan"], 1, "fpir cannot be used: Input should be a finite number (allowed: 0.0001 to 0.5).\n"),
        (["m", "--adopt"], 2, "--adopt needs --reason"),
        (["m", "--adopt", "--reset", "--reason", "both"], 2, "exclude each other"),
        (["m", "--model", "magic"], 2, "magic"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(embedded_class, arguments, code, words):
    embedded_class.enrol("m", "ann")
    result = calibrate(*arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
