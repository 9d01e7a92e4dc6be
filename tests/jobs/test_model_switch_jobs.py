"""Switching models and deleting lineages, launched as the UI launches them."""

from collections.abc import Callable

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from pipelines.backfill import Plan, launch_backfill
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


def test_a_class_is_switched_and_its_old_lineage_deleted(launch, failure, response, database):
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
def test_a_mistake_fails_the_run_with_one_sentence(launch, failure, name, config, words):
    result = launch(name, class_name="m", **config)
    assert words in failure(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)


@pytest.fixture
def under_way(instance) -> Callable[..., dg.DagsterRun]:
    """Makes a run that has not ended, of a job that processes classes with a model."""

    def make(model: str, tags: dict[str, str], status: str = "STARTED") -> dg.DagsterRun:
        job = defs.resolve_job_def(f"class_attendance_{model}")
        # A run that waits in the queue must say where its code lies.
        origin = RemoteJobOrigin(
            RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("pipelines"), "__repository__"), job.name
        )
        code = JobPythonOrigin(
            job.name, RepositoryPythonOrigin("python", ModuleCodePointer("pipelines.definitions", "defs"))
        )
        return instance.create_run_for_job(
            job,
            tags={MODEL_TAG: model} | tags,
            status=dg.DagsterRunStatus[status],
            remote_job_origin=origin,
            job_code_origin=code,
        )

    return make


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
def test_a_run_under_way_with_the_model_that_counts_keeps_the_class_from_switching(
    launch, failure, response, instance, under_way, status, tags_of
):
    under_way("facenet", tags_of("m"), status)
    under_way("dlib", tags_of("n"), status)
    run = under_way("dlib", tags_of("m"), status)
    switch = {"class_name": "m", "model_name": "facenet", "reason": "better"}
    assert f"The run {run.run_id} processes m with dlib: switch when it has ended" in failure(
        launch("switch_model", **switch)
    )
    instance.delete_run(run.run_id)
    assert response(launch("switch_model", **switch))["new_model"] == "facenet"


def test_what_a_run_or_a_backfill_is_making_is_not_deleted(launch, failure, response, instance, under_way, database):
    lineage = {"class_name": "m", "model_name": "facenet"}
    under_way("dlib", {CLASS_TAG: "m"})
    under_way("facenet", {CLASS_TAG: "n"})
    run = under_way("facenet", {CLASS_TAG: "m"})
    assert f"The run {run.run_id} processes m with facenet: delete what it makes when it has ended" in failure(
        launch("delete_lineage", **lineage)
    )
    instance.delete_run(run.run_id)
    # One whose first run is not requested yet.
    launch_backfill(instance, Plan(["m__1"], ["m"], 0, {}), "dlib")
    backfill_id = launch_backfill(instance, Plan(["m__1"], ["m"], 0, {}), "facenet")
    assert f"The backfill {backfill_id} of facenet has not ended: delete what it makes when it has" in failure(
        launch("delete_lineage", **lineage)
    )
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM embeddings_facenet").fetchone() == (2,)
    instance.update_backfill(instance.get_backfill(backfill_id).with_status(BulkActionStatus.CANCELED))
    assert response(launch("delete_lineage", **lineage))["vectors"] == 2
