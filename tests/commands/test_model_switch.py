"""`attendansee compare`, `switch-model` and `delete-lineage` as people type them."""

import csv
import getpass
import io
import json
import re

import dagster as dg
import pytest
from click.testing import CliRunner, Result
from dagster._core.execution.backfill import BulkActionStatus

from pipelines.backfill import Plan, launch_backfill
from pipelines.cli import main
from pipelines.services.decisions import DecisionService


def attendansee(*arguments: object, answer: str = "") -> Result:
    return CliRunner().invoke(
        main, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "60"}, input=answer
    )


@pytest.fixture
def made(embedded_class, facenet, process_class):
    """Two lineages of a class; facenet takes bob's second face for a new person's."""
    embedded_class.enrol("m", "ann", "bob [x]")
    made = embedded_class.session("m__1", [["ann", "bob [x]"], ["bob [x]"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    facenet({(0, "stranger"): made[1, "bob [x]"]})
    process_class("facenet")
    return made


def test_a_comparison_is_printed_in_three_formats(made):
    shown = attendansee("compare", "m", "--model", "facenet")
    assert shown.exit_code == 0
    for words in (
        "1 of 1",
        "5 of 5",
        "0.065",
        "They agree about 4 of 5 faces (80.0%)",
        "bob [x] 0.",
        "Cluster_1",
        "unknown",
    ):
        assert words in shown.stdout
    rows = list(
        csv.DictReader(io.StringIO(attendansee("compare", "m", "--model", "facenet", "--format", "csv").stdout))
    )
    assert [(row["what"], row["old_student"] or row["old_answer"]) for row in rows] == [
        ("face", "bob [x]"),
        ("attendance", ""),
    ]
    found = json.loads(attendansee("compare", "m", "--model", "facenet", "--format", "json").stdout)
    assert (found["crops_compared"], found["crops_agreed"]) == (5, 4)
    assert found["disagreements"][0]["face_crop_id"] == made[1, "bob [x]"]


def test_there_and_back_again_and_the_end_of_a_lineage(made, database):
    before = attendansee("attendance", "m", "--format", "json").stdout
    other = attendansee("attendance", "m", "--format", "json", "--model", "facenet").stdout
    there = attendansee("switch-model", "m", "facenet", "--reason", "better with masks")
    assert there.stdout == (
        "facenet counts for m now, in place of dlib.\nBack: attendansee switch-model m dlib --reason ...\n"
    )
    assert attendansee("attendance", "m", "--format", "json").stdout == other != before
    back = json.loads(attendansee("switch-model", "m", "dlib", "--reason", "worse", "--json").stdout)
    assert (back["old_model"], back["new_model"]) == ("facenet", "dlib")
    assert attendansee("attendance", "m", "--format", "json").stdout == before
    with database.connection() as connection:
        assert connection.execute("SELECT DISTINCT switched_by FROM model_switches").fetchall() == [
            (getpass.getuser(),)
        ]

    latest, first = attendansee("model-history", "m").stdout.splitlines()
    assert latest.endswith(f" facenet -> dlib by {getpass.getuser()}: worse")
    assert first.endswith(f" dlib -> facenet by {getpass.getuser()}: better with masks")
    (_, switch) = json.loads(attendansee("model-history", "m", "--json").stdout)
    assert (switch["new_model"], switch["accepted_crops"], switch["missing_sessions"]) == ("facenet", [], [])

    with dg.DagsterInstance.get() as instance:
        backfill_id = launch_backfill(instance, Plan(["m__1"], [], 0, {}), "facenet")
        refused = attendansee("delete-lineage", "m", "facenet", "--yes")
        instance.update_backfill(instance.get_backfill(backfill_id).with_status(BulkActionStatus.CANCELED))
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"Error: The backfill {backfill_id} of facenet has not ended")

    declined = attendansee("delete-lineage", "m", "facenet", answer="n\n")
    assert declined.exit_code == 1
    assert "There is no way back but a new backfill." in declined.stdout
    deleted = attendansee("delete-lineage", "m", "facenet", "--yes")
    assert re.match(
        r"Deleted of facenet in m: 5 vectors, \d clusters, 5 assignments, \d attendance cells, 1 ", deleted.stdout
    )
    assert json.loads(attendansee("delete-lineage", "m", "facenet", "--yes", "--json").stdout)["vectors"] == 0


def test_what_is_missing_or_contradicted_can_be_accepted_by_name(made, database, embedded_class):
    with database.connection() as connection:
        (ann,) = connection.execute("SELECT id FROM students WHERE name = 'ann'").fetchone()
    DecisionService("a teacher").assign(made[0, "bob [x]"], ann)
    embedded_class.session("m__2", [["ann"]])
    switch = ["switch-model", "m", "facenet", "--reason", "why not"]
    assert "m__2 (1 of 1 faces have no vector)" in attendansee(*switch).stderr
    refused = attendansee(*switch, "--allow-missing-sessions").stderr
    assert f"--accept {made[0, 'bob [x]']}" in refused
    accepted = [word for word in refused.partition("(--accept")[2].partition(")")[0].split() if word.isdecimal()]
    result = attendansee(*switch, "--allow-missing-sessions", *(f"--accept={crop}" for crop in accepted))
    assert result.exit_code == 0, result.output
    assert "Lacking: 2 (1 of 1 faces have no vector)." in result.stdout
    assert f"contradicts the confirmed faces {', '.join(accepted)}." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "nowhere", "--model", "facenet"], "There is no class 'nowhere'"),
        (["compare", "m", "--model", "dlib"], "dlib is the active model of m"),
        (["compare", "m"], "Missing option '--model'"),
        (["switch-model", "m", "facenet"], "Missing option '--reason'"),
        (["switch-model", "m", "facenet", "--reason", ""], "The reason is empty"),
        (["switch-model", "m", "facenet", "--reason", "why", "--accept", "0"], "accept"),
        (["switch-model", "m", "dlib", "--reason", "why"], "dlib is the active model of m"),
        (["delete-lineage", "m", "dlib", "--yes"], "dlib is the active model of m"),
        (["delete-lineage", "m", "eigenfaces", "--yes"], "eigenfaces"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(made, arguments, words):
    result = attendansee(*arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert "Traceback" not in result.output
