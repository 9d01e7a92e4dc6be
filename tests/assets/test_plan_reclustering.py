"""The plan of clustering a class anew as an asset, applied by a job and from a terminal; the check that guards names."""

import json

import dagster as dg
import pytest
from click.testing import CliRunner

from pipelines.assets import ALL_ASSETS, plan_reclustering
from pipelines.assets.common import model_asset
from pipelines.checks import ALL_CHECKS
from pipelines.cli import main
from pipelines.definitions import defs
from pipelines.partitions import SessionKey, classes, sessions
from pipelines.resources import build_resources
from pipelines.resources.embedding.registry import get_spec
from pipelines.services.attendance import AttendanceService
from pipelines.services.decisions import DecisionService
from pipelines.settings import get_settings


@pytest.fixture
def mistaken(database, embedded_class, process_class) -> dict[str, int]:
    """The class m; in its last photo ann was taken for bob. The faces of that photo by name."""
    embedded_class.session("m__1", [["ann", "bob"], ["ann", "bob"]])
    made = embedded_class.session("m__2", [["ann"]])
    process_class("dlib")
    with database.connection() as connection:
        (bob,) = connection.execute(
            "SELECT student_id FROM assignments WHERE crop_id = %s", [embedded_class.everyone[2, "bob"]]
        ).fetchone()
        connection.execute("UPDATE assignments SET student_id = %s WHERE crop_id = %s", [bob, made[0, "ann"]])
    AttendanceService(database, "dlib").register_session(SessionKey("m", "2"))
    return {"ann": made[0, "ann"], "bob": bob}


def materialize() -> dict[str, object]:
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(classes.name, ["m"])
    result = dg.materialize(
        ALL_ASSETS,
        selection=[dg.AssetKey(["dlib", "plan_reclustering"])],
        instance=instance,
        partition_key="m",
        resources=build_resources(get_settings()),
    )
    (event,) = result.get_asset_materialization_events()
    values = event.materialization.metadata.items()
    return {name: getattr(value, "records", None) or value.value for name, value in values}


def student(database, crop_id: int) -> int:
    with database.connection() as connection:
        return connection.execute("SELECT student_id FROM assignments WHERE crop_id = %s", [crop_id]).fetchone()[0]


def test_the_asset_shows_the_plan_and_the_job_applies_it(mistaken, database, monkeypatch):
    found = materialize()
    counted = {name: value for name, value in found.items() if isinstance(value, int) and name != "plan_id"}
    assert counted == {
        "crops": 5,
        "clusters_found": 2,
        "max_clusters_reached": False,
        "crops_moved": 1,
        "students_created": 0,
        "students_merged": 0,
        "students_emptied": 0,
        "attendance_changes": 2,
        "rows_left_out": 0,
        "max_clusters": 200,
    }
    *cells, moved = (record.data for record in found["changes"])
    assert {(cell["change"], cell["old"], cell["new"]) for cell in cells} == {
        ("attendance", "", "present"),
        ("attendance", "present", ""),
    }
    assert (moved["change"], moved["about"]) == ("face moved", f"crop {mistaken['ann']} in m/2/0.jpg")
    assert student(database, mistaken["ann"]) == mistaken["bob"]
    monkeypatch.setattr(plan_reclustering, "ROWS_SHOWN", 1)
    shown = materialize()
    assert (len(shown["changes"]), shown["rows_left_out"]) == (1, 2)

    job = defs.resolve_job_def("apply_reclustering")
    config = {"ops": {"apply_reclustering": {"config": {"plan_id": found["plan_id"], "reason": "ann is ann"}}}}
    assert job.execute_in_process(run_config=config).success
    assert student(database, mistaken["ann"]) != mistaken["bob"]
    with database.connection() as connection:
        applied = connection.execute(
            "SELECT id, applied_by, reason FROM reclustering_plans WHERE applied_at IS NOT NULL"
        )
        assert applied.fetchall() == [(found["plan_id"], "dagster", "ann is ann")]
    # The second plan was made from what is no more.
    config["ops"]["apply_reclustering"]["config"] = {"plan_id": shown["plan_id"]}
    refused = job.execute_in_process(run_config=config, raise_on_error=False)
    (failure,) = [event for event in refused.all_node_events if event.is_step_failure]
    assert f"Reclustering plan {shown['plan_id']} is out of date" in str(failure.event_specific_data.error)


def test_a_plan_is_made_and_applied_from_a_terminal(mistaken, database):
    def call(*arguments: object):
        return CliRunner().invoke(main, [*map(str, arguments)])

    shown = call("plan-reclustering", "m")
    assert shown.exit_code == 0
    assert "2 people in 5 faces. 1 faces move" in shown.stdout
    plan = json.loads(call("plan-reclustering", "m", "--json").stdout)
    assert (len(plan["changes"]["moved"]), plan["applied_at"]) == (1, None)
    assert student(database, mistaken["ann"]) == mistaken["bob"]
    done = call("apply-reclustering", plan["plan_id"], "--reason", "so")
    assert done.exit_code == 0
    assert f"Done: plan {plan['plan_id']} is applied." in done.stdout
    assert student(database, mistaken["ann"]) != mistaken["bob"]
    again = call("apply-reclustering", plan["plan_id"])
    assert (again.exit_code, again.stderr.startswith("Error: Reclustering plan")) == (1, True)
    wrong = call("plan-reclustering", "m", "--max-clusters", 0)
    assert "allowed: 1 to 200" in wrong.stderr


def test_a_confirmed_identity_that_is_lost_fails_the_run_before_its_attendance(mistaken, database):
    DecisionService("a teacher").assign(mistaken["ann"], mistaken["bob"])
    spec = get_spec("dlib")
    key = model_asset(spec, "student_assignments")

    @dg.asset(key=key, partitions_def=sessions)
    def broken() -> None:
        """A run with the mistake that the check is for; the program's own refuses to write one."""
        with database.connection() as connection:
            connection.execute(
                "UPDATE assignments SET state = 'no_match', student_id = NULL WHERE crop_id = %s", [mistaken["ann"]]
            )

    reached = []

    @dg.asset(deps=[key], partitions_def=sessions)
    def next_stage() -> None:
        reached.append(1)

    checks = [check for check in ALL_CHECKS if {spec.asset_key for spec in check.check_specs} == {key}]
    assert [spec.blocking for check in checks for spec in check.check_specs] == [True]
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(sessions.name, ["m__1", "m__2"])
    resources = build_resources(get_settings())
    run = {"instance": instance, "resources": resources, "raise_on_error": False}
    result = dg.materialize([broken, next_stage, *checks], partition_key="m__2", **run)
    assert not result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert (evaluation.passed, evaluation.check_name) == (False, "no_confirmed_identity_is_lost")
    assert evaluation.description.startswith(f"crop {mistaken['ann']} is confirmed as Class_m")
    assert not reached
    assert dg.materialize([broken, next_stage, *checks], partition_key="m__1", **run).success
    assert reached
