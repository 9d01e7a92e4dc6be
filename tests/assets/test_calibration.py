"""`<model>/calibration` through Dagster: what its partition's metadata says, and what it keeps to itself."""

import base64
import re
from collections.abc import Callable
from datetime import datetime

import dagster as dg
import pytest

from pipelines.definitions import defs
from pipelines.partitions import classes, sessions
from pipelines.services.calibration import adopt_calibration, calibrate_class, reset_calibration
from pipelines.services.context import default_context

KEY = dg.AssetKey(["dlib", "calibration"])


@pytest.fixture
def materialize(database) -> Callable[..., dg.ExecuteInProcessResult]:
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(classes.name, ["m", "gone"])

    def run(class_name: str = "m", **config: object) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [defs.resolve_assets_def(KEY)],
            instance=instance,
            partition_key=class_name,
            run_config={"ops": {"dlib__calibration": {"config": config}}},
            raise_on_error=False,
        )

    return run


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    assert result.success
    (event,) = [event for event in result.all_events if event.is_step_materialization]
    found = event.step_materialization_data.materialization.metadata
    return {name: getattr(value, "value", value) for name, value in found.items()}


def test_the_metadata_state_counts_rates_intervals_and_thresholds(confirmed_class, materialize):
    result = materialize(fpir=0.05)
    shown = metadata(result)
    assert shown["embedding_model"] == "dlib"
    assert shown["version"] == confirmed_class.version
    assert (shown["impostor_comparisons"], shown["genuine_comparisons"], shown["students"]) == (300, 300, 10)
    assert shown["fpir_asked"] == 0.05
    assert 0 < shown["fpir_low"] < shown["fpir"] <= 0.05 < shown["fpir_high"] < 0.1
    assert 0.98 < shown["tpir_low"] < shown["tpir"] == shown["tpir_high"] == 1
    assert 0.065 < shown["operating_distance"] < 1
    assert 0 < shown["verification_threshold"] < 1
    assert shown["slope"] > 0
    assert shown["in_use_operating_distance"] == 0.065
    assert shown["duration_seconds"] > 0
    with confirmed_class.database.connection() as connection:
        stored = connection.execute(
            "SELECT id, model, version, run_id, operating_distance FROM calibrations"
        ).fetchall()
    expected = (shown["calibration_id"], "dlib", shown["version"], result.run_id, shown["operating_distance"])
    assert stored == [expected]


def test_the_metadata_say_who_adopted_which_threshold_when_and_why(confirmed_class, materialize):
    first = metadata(materialize(fpir=0.05))
    assert not [name for name in first if name.startswith("last_adopted")]
    adopt_calibration(default_context(), first["calibration_id"], "a trial", adopted_by="ann")
    shown = metadata(materialize())
    assert shown["last_adopted_calibration_id"] == first["calibration_id"]
    assert shown["last_adopted_operating_distance"] == first["operating_distance"] == shown["in_use_operating_distance"]
    assert (shown["last_adopted_by"], shown["last_adopted_reason"]) == ("ann", "a trial")
    with confirmed_class.database.connection() as connection:
        (adopted_at,) = connection.execute("SELECT adopted_at FROM calibration_adoptions").fetchone()
    assert datetime.fromisoformat(shown["last_adopted_at"]) == adopted_at
    with confirmed_class.database.connection() as connection:
        # Of vectors that are in use no more: shown, and not in use.
        connection.execute("UPDATE calibrations SET version = 'old'")
    shown = metadata(materialize())
    assert shown["last_adopted_operating_distance"] == first["operating_distance"]
    assert shown["in_use_operating_distance"] == 0.065


def test_the_distributions_are_drawn_with_the_threshold(confirmed_class, materialize):
    shown = metadata(materialize())
    image = re.fullmatch(r"!\[.+\]\(data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)\)", shown["distributions"])
    drawing = base64.b64decode(image[1]).decode()
    assert "genuine (300)" in drawing
    assert "impostor (300)" in drawing
    assert f"threshold {1 - shown['operating_distance']:.4f}" in drawing
    assert len(shown["distributions"]) < 15_000


def test_too_few_confirmed_identities_are_said_and_drawn_without_a_threshold(embedded_class, materialize):
    embedded_class.enrol("m", "ann", "bob")
    embedded_class.confirm("m", embedded_class.session("m__1", [["ann", "bob"]] * 15))
    shown = metadata(materialize())
    assert shown["result"] == "not enough data: 32 impostor comparisons, 299 needed"
    assert (shown["impostor_comparisons"], shown["in_use_operating_distance"]) == (32, 0.065)
    assert not {"operating_distance", "slope", "calibration_id", "fpir"} & set(shown)
    assert b"threshold" not in base64.b64decode(shown["distributions"].partition("base64,")[2].rstrip(")"))


def test_a_class_without_confirmed_identities_has_nothing_to_draw(embedded_class, materialize):
    embedded_class.session("m__1", [["ann"]])
    shown = metadata(materialize())
    assert shown["result"].startswith("not enough data: 0 impostor comparisons, 299 needed")
    assert "distributions" not in shown


def failure(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data or event.step_failure_data.error)


def test_a_mistake_is_answered_in_one_sentence(confirmed_class, materialize):
    assert "There is no class 'gone'" in failure(materialize("gone"))
    assert "less than or equal to 0.5" in failure(materialize(fpir=0.6))


def test_no_vector_is_in_the_event_log(confirmed_class, materialize):
    text = "\n".join(str(event) for event in materialize().all_events)
    assert "impostor_comparisons" in text
    assert not re.search(r"(-?\d*\.\d+(e-?\d+)?[,\s\]]+){8}", text)


def test_a_sessions_run_states_the_thresholds_in_use(confirmed_class):
    confirmed_class.session("m__1", [["ann", "bob"]])
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(sessions.name, ["m__1"])
    asset = defs.resolve_assets_def(dg.AssetKey(["dlib", "student_assignments"]))

    def in_use() -> tuple[object, ...]:
        shown = metadata(dg.materialize([asset], instance=instance, partition_key="m__1"))
        return tuple(shown[name] for name in ("distance_threshold", "verification_threshold", "margin", "assigned"))

    assert in_use() == (0.065, 0.07, 0.01, 2)
    report, _ = calibrate_class(confirmed_class.database, "m", "dlib", confirmed_class.version, 0.01)
    adopt_calibration(default_context(), report.calibration_id, "a trial", adopted_by="ann")
    assert in_use() == (report.operating_distance, report.verification_threshold, 0.01, 2)
    reset_calibration(default_context(), "m", "dlib", adopted_by="ann")
    assert in_use() == (0.065, 0.07, 0.01, 2)
