"""The jobs on decisions, launched as the UI launches them."""

import dagster as dg
import pytest

from pipelines.jobs.decisions import DECISION_JOBS
from pipelines.resources import build_resources
from pipelines.settings import get_settings


def test_faces_are_confirmed_split_and_given_back_over_jobs(made_class, launch, response, database, identities_of):
    ids = made_class.enrol("m", "ann", "bob")
    made = made_class.session("m__1", [["ann"], ["bob"]])
    crop_ids = list(made.values())
    with database.connection() as connection:
        connection.execute("UPDATE classes SET active_model = 'dlib'")
        (session_id,) = connection.execute("SELECT id FROM sessions WHERE name = '1'").fetchone()
    result = launch("confirm_crops", crop_ids=crop_ids, student_id=ids["ann"])
    assert response(result)["crop_ids"] == crop_ids
    with database.connection() as connection:
        said = connection.execute("SELECT DISTINCT decided_by FROM decisions WHERE run_id = %s", [result.run_id])
        assert said.fetchall() == [("dagster",)]
    split = response(launch("split_student", student_id=ids["ann"], crop_ids=crop_ids[1:], name="Twin"))
    assert list(identities_of(made).values()) == ["ann", "Twin"]
    undone = response(launch("undo_decision", decision_id=split["decision_id"], reason="no twin"))
    assert undone["undone"] == f"Face {crop_ids[1]} is not ann but somebody else: Twin."
    assert list(identities_of(made).values()) == ["ann", "ann"]
    response(launch("mark_not_a_face", crop_ids=crop_ids[1:]))
    assert list(identities_of(made).values()) == ["ann", None]
    created = response(launch("create_student", crop_ids=crop_ids[1:], name="Zoe", reason="a new one"))
    assert (created["student_name"], list(identities_of(made).values())) == ("Zoe", ["ann", "Zoe"])
    assert response(launch("hide_student", student_id=ids["bob"]))["student_name"] == "bob"
    marked = {"session_id": session_id, "student_id": ids["ann"]}
    excused = response(launch("mark_attendance", **marked, status="excused", note="ill"))
    assert (excused["attendance"], excused["manual"]) == ("excused", True)
    assert response(launch("mark_attendance", **marked, status="photos"))["attendance"] is None


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("undo_decision", {"decision_id": 99}, "There is no decision 99."),
        ("confirm_crops", {"crop_ids": [99], "student_id": 1}, "There is no face crop 99."),
        ("split_student", {"crop_ids": [], "student_id": 1}, "crop_ids cannot be used"),
        ("create_student", {"crop_ids": [99], "name": "Zoe"}, "There is no face crop 99."),
        ("mark_attendance", {"session_id": 9, "student_id": 1, "status": "absent"}, "There is no session 9."),
    ],
)
def test_a_mistake_fails_the_run_with_one_sentence(launch, failure, name, config, words):
    assert words in failure(launch(name, **config))


def test_the_jobs_load_together():
    dg.Definitions.validate_loadable(
        dg.Definitions(jobs=list(DECISION_JOBS.values()), resources=build_resources(get_settings()))
    )


@pytest.mark.parametrize("job", DECISION_JOBS.values(), ids=lambda job: job.name)
def test_every_job_says_what_it_is(job):
    assert job.description
    assert job.tags == {"domain": "attendance", "pii": "true"}
    (node,) = job.nodes
    fields = node.definition.config_schema.as_field().config_type.fields
    assert fields
    assert all(field.description for field in fields.values())
