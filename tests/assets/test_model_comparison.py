"""The comparison of two lineages as an asset of a class."""

import dagster as dg
import pytest

from pipelines.assets import ALL_ASSETS, model_comparison
from pipelines.partitions import classes
from pipelines.resources import build_resources
from pipelines.settings import get_settings


@pytest.fixture
def materialize(database, facenet):
    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions(classes.name, ["m"])

    def run(model: str) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            ALL_ASSETS,
            selection=[dg.AssetKey([model, "model_comparison"])],
            instance=instance,
            partition_key="m",
            resources=build_resources(get_settings()),
            raise_on_error=False,
        )

    return run


@pytest.fixture
def compared(embedded_class, facenet, process_class):
    """dlib knows ann in both photos; facenet takes the second face for somebody new."""
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"], ["ann"]])
    process_class("dlib")
    facenet(embedded_class.everyone)
    facenet({(0, "stranger"): made[1, "ann"]})
    process_class("facenet")
    return made


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, object]:
    (event,) = result.get_asset_materialization_events()
    assert event.partition == "m"
    values = event.materialization.metadata.items()
    return {name: getattr(value, "records", None) or value.value for name, value in values}


def test_both_lineages_are_side_by_side_in_the_metadata(compared, materialize):
    result = materialize("facenet")
    assert result.success
    found = metadata(result)
    counted = {name: value for name, value in found.items() if isinstance(value, int)}
    assert counted == {
        "sessions": 1,
        "sessions_covered": 1,
        "crops": 3,
        "crops_embedded": 3,
        "crops_compared": 3,
        "crops_agreed": 2,
        "disagreements": 1,
        "contradicted_confirmations": 0,
        "attendance_cells": 2,
        "attendance_changes": 1,
        "rows_left_out": 0,
    }
    assert (found["active_model"], found["compared_model"]) == ("dlib", "facenet")
    assert found["lineages"]["new"]["thresholds"]["assignment_distance"] == 0.4
    face, cell = (record.data for record in found["differences"])
    assert (face["what"], face["face_crop_id"], face["old_student"]) == ("face", str(compared[1, "ann"]), "ann")
    assert (cell["what"], cell["old_answer"], cell["new_answer"]) == ("attendance", "", "unknown")


def test_a_long_list_is_cut_and_the_counts_are_not(compared, materialize, monkeypatch):
    monkeypatch.setattr(model_comparison, "ROWS_SHOWN", 1)
    found = metadata(materialize("facenet"))
    assert (len(found["differences"]), found["rows_left_out"]) == (1, 1)
    assert (found["disagreements"], found["attendance_changes"]) == (1, 1)


def test_the_active_model_is_compared_with_nothing(compared, materialize):
    result = materialize("dlib")
    assert result.success
    assert metadata(result)["result"] == "nothing to compare: no other model is active in m"
