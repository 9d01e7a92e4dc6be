"""Switching models and deleting lineages, launched as the UI launches them."""

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from pipelines.database import catalog
from pipelines.definitions import defs
from pipelines.jobs.model_switch import MODEL_SWITCH_JOBS
from pipelines.partitions import CLASS_TAG, MODEL_TAG
from pipelines.resources import build_resources
from pipelines.settings import get_settings


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def launch(database, facenet, embedded_class, process_class, instance):
    """Launches a job on a class whose only photo shows ann, by both models."""
    embedded_class.enrol("m", "ann")
    embedded_class.session("m__1", [["ann"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    process_class("facenet")

    def run(name: str, /, **config: object) -> dg.ExecuteInProcessResult:
        # The definitions of the code location have the weights folder of the process's own settings.
        definitions = dg.Definitions(jobs=MODEL_SWITCH_JOBS.values(), resources=build_resources(get_settings()))
        return definitions.resolve_job_def(name).execute_in_process(
            instance=instance, run_config={"ops": {name: {"config": config}}}, raise_on_error=False
        )

    return run


def response(result: dg.ExecuteInProcessResult) -> dict:
    assert result.success
    (output,) = [event.step_output_data for event in result.all_node_events if event.is_successful_output]
    return output.metadata["response"].value


def failure(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_node_events if event.is_step_failure]
    return str(event.event_specific_data.error)


def test_a_class_is_switched_and_its_old_lineage_deleted(launch, database):
    result = launch("switch_model", class_name="m", model_name="facenet", reason="better")
    answer = response(result)
    assert (answer["old_model"], answer["new_model"], answer["missing_sessions"]) == ("dlib", "facenet", {})
    with database.connection() as connection:
        assert catalog.active_model(connection, "m") == "facenet"
        assert connection.execute("SELECT switched_by, run_id FROM model_switches").fetchall() == [
            ("dagster", result.run_id)
        ]
    assert "facenet is the active model" in failure(launch("delete_lineage", class_name="m", model_name="facenet"))
    deleted = response(launch("delete_lineage", class_name="m", model_name="dlib"))
    assert (deleted["vectors"], deleted["attendance"]) == (2, 1)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("switch_model", {"model_name": "eigenfaces", "reason": "why"}, "model_name cannot be used"),
        ("switch_model", {"model_name": "dlib", "reason": "why"}, "dlib is the active model of m"),
        ("switch_model", {"model_name": "facenet", "reason": "why", "accept": [0]}, "accept"),
        ("delete_lineage", {"model_name": "dlib"}, "dlib is the active model of m"),
        ("delete_lineage", {"model_name": "eigenfaces"}, "model_name cannot be used"),
    ],
)
def test_a_mistake_fails_the_run_with_one_sentence(launch, name, config, words):
    result = launch(name, class_name="m", **config)
    assert words in failure(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)


@pytest.mark.parametrize(
    ("status", "tags_of"),
    [
        ("QUEUED", lambda name: {CLASS_TAG: name}),
        ("STARTING", lambda name: {"dagster/partition": f"{name}__1"}),
        ("STARTED", lambda name: {"dagster/partition": name}),
        ("CANCELING", lambda name: {CLASS_TAG: name, "dagster/partition": name}),
    ],
    ids=["by the sensor", "of one session in the UI", "of a class in the UI", "that ends"],
)
def test_a_run_under_way_with_the_model_that_counts_keeps_the_class_from_switching(launch, instance, status, tags_of):
    job = defs.resolve_job_def("class_attendance_dlib")
    # A run that waits in the queue must say where its code lies.
    origin = RemoteJobOrigin(
        RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("pipelines"), "__repository__"), job.name
    )
    code = JobPythonOrigin(
        job.name, RepositoryPythonOrigin("python", ModuleCodePointer("pipelines.definitions", "defs"))
    )

    def under_way(class_name: str, model: str) -> dg.DagsterRun:
        tags = {MODEL_TAG: model} | tags_of(class_name)
        return instance.create_run_for_job(
            job, tags=tags, status=dg.DagsterRunStatus[status], remote_job_origin=origin, job_code_origin=code
        )

    under_way("m", "facenet")
    under_way("n", "dlib")
    run = under_way("m", "dlib")
    switch = {"class_name": "m", "model_name": "facenet", "reason": "better"}
    assert f"The run {run.run_id} processes m with dlib: switch when it has ended" in failure(
        launch("switch_model", **switch)
    )
    instance.delete_run(run.run_id)
    assert response(launch("switch_model", **switch))["new_model"] == "facenet"
