"""The operations as jobs: what the launchpad shows, what a run answers, and what it says where it cannot."""

import re

import dagster as dg
import pytest

from pipelines.definitions import defs
from pipelines.jobs.operations import RESPONSE
from pipelines.partitions import CLASS_TAG
from pipelines.services.operations import OPERATIONS


def run(name: str, instance: dg.DagsterInstance, **config: object) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(name).execute_in_process(
        run_config={"ops": {name: {"config": config}}}, instance=instance, raise_on_error=False
    )


def sentence(result: dg.ExecuteInProcessResult) -> str:
    """What the run failed with, at its first try."""
    (failure,) = [e.step_failure_data.user_failure_data for e in result.all_events if e.is_step_failure]
    assert not [e for e in result.all_events if e.is_step_up_for_retry]
    return failure.description


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_the_launchpad_offers_the_parameters_with_defaults_and_descriptions(name):
    (op,) = defs.resolve_job_def(name).nodes
    offered = op.definition.config_schema.as_field().config_type.fields
    expected = OPERATIONS[name].parameters.model_fields
    assert set(offered) == set(expected)
    for parameter, field in expected.items():
        assert offered[parameter].description == field.description
        assert offered[parameter].is_required == field.is_required()
        if not field.is_required():
            assert offered[parameter].default_value == field.default


def test_the_answer_is_the_runs_response_and_the_run_names_its_class(embedded_class, database):
    embedded_class.enrol("Math101", "ann")
    made = embedded_class.session("Math101__1", [["ann"]])
    instance = dg.DagsterInstance.ephemeral()
    result = run("assign_crop", instance, crop_id=made[0, "ann"], embedding_model="dlib")
    (output,) = [event.step_output_data for event in result.all_node_events if event.is_successful_output]
    response = output.metadata[RESPONSE].value
    assert (response["status"], response["student_name"]) == ("assigned", "ann")
    record = instance.get_run_by_id(result.run_id)
    assert record.tags[CLASS_TAG] == "Math101"
    with database.connection() as connection:
        (run_id,) = connection.execute("SELECT run_id FROM assignments WHERE crop_id = %s", [made[0, "ann"]]).fetchone()
    assert run_id == result.run_id


def test_a_batch_names_the_class_of_its_crops_where_it_is_one(embedded_class):
    one, other = embedded_class.session("Math101__1", [["ann"]]), embedded_class.session("Art__1", [["ann"]])
    instance = dg.DagsterInstance.ephemeral()
    for crop_ids, class_name in (
        ([*one.values(), 999], "Math101"),
        ([*one.values(), *other.values()], None),
        ([999], None),
    ):
        result = run("generate_embeddings_batch", instance, face_crop_ids=crop_ids, model_name="dlib")
        assert result.success
        assert instance.get_run_by_id(result.run_id).tags.get(CLASS_TAG) == class_name


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("assign_crop", {"k": 21}, r"The parameter k .*\(allowed: 1 to 20\)\."),
        (
            "cluster_session_crops",
            {"similarity_threshold": 1.5},
            r"The parameter similarity_threshold .*allowed: 0 to 1",
        ),
        ("cluster_class_crops", {"max_clusters": 0}, r"The parameter max_clusters .*\(allowed: 1 to 200\)\."),
        ("generate_embedding", {"model_name": "vgg"}, "The parameter model_name .* choose one of facenet, "),
        ("assign_session_crops", {}, r"There is no session 1\."),
        ("assign_class_crops", {}, r"There is no class 1\."),
        ("generate_embedding", {}, r"There is no face crop 1\."),
        (
            "generate_embeddings_batch",
            {"face_crop_ids": []},
            "The parameter face_crop_ids cannot be used: .*at least 1",
        ),
        (
            "generate_embeddings_batch",
            {"face_crop_ids": [1, 0]},
            r"The parameter face_crop_ids\.1 cannot be used: .*\(allowed: 1 to 9223372036854775807\)\.",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence_and_not_tried_twice(database, name, config, expected):
    required = {field: 1 for field, info in OPERATIONS[name].parameters.model_fields.items() if info.is_required()}
    result = run(name, dg.DagsterInstance.ephemeral(), **{**required, **config})
    assert not result.success
    assert re.match(expected, sentence(result))


def test_a_row_that_postgresql_refuses_is_not_in_the_event_log(embedded_class, database):
    embedded_class.enrol("Math101", "ann")
    made = embedded_class.session("Math101__1", [["ann"]])
    with database.connection() as connection:
        connection.execute("ALTER TABLE assignments ADD CONSTRAINT none_at_all CHECK (crop_id < 0)")
    instance = dg.DagsterInstance.ephemeral()
    result = run("assign_crop", instance, crop_id=made[0, "ann"], embedding_model="dlib")
    assert not result.success
    log = "\n".join(entry.to_json() for entry in instance.all_logs(result.run_id))
    assert 'violates check constraint \\"none_at_all\\"' in log
    assert "Failing row" not in log
