"""Adopting thresholds and going back, launched as the UI launches them."""

import pytest

from pipelines.database import catalog
from pipelines.jobs.calibration import CALIBRATION_JOBS
from pipelines.resources.embedding.registry import get_spec
from pipelines.services.calibration import calibrate_class
from pipelines.services.thresholds import class_spec


def test_thresholds_are_adopted_by_the_id_that_their_metadata_give_and_reset(launch, response, confirmed_class):
    database = confirmed_class.database
    report, _ = calibrate_class(database, "m", "dlib", confirmed_class.version, 0.01)
    adopted = launch("adopt_calibration", calibration_id=report.calibration_id, reason="fewer misses")
    answer = response(adopted)
    assert (answer["class_name"], answer["embedding_model"]) == ("m", "dlib")
    assert answer["assignment_distance"] == report.operating_distance
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
        spec = class_spec(connection, "dlib", class_id)
        assert (spec.assignment_distance, spec.similarity_slope) == (report.operating_distance, report.slope)
    reset = launch("reset_calibration", class_name="m", embedding_model="dlib")
    assert response(reset)["calibration_id"] is None
    with database.connection() as connection:
        assert class_spec(connection, "dlib", class_id) == get_spec("dlib")
        rows = connection.execute("SELECT adopted_by, reason, run_id FROM calibration_adoptions ORDER BY id").fetchall()
    assert rows == [("dagster", "fewer misses", adopted.run_id), ("dagster", None, reset.run_id)]


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("adopt_calibration", {"calibration_id": 99, "reason": "so"}, "There is no calibration 99."),
        ("adopt_calibration", {"calibration_id": 0, "reason": "so"}, "calibration_id cannot be used"),
        ("reset_calibration", {"class_name": "nowhere", "embedding_model": "dlib"}, "There is no class 'nowhere'"),
        ("reset_calibration", {"class_name": "m", "embedding_model": "magic"}, "choose one of"),
    ],
)
def test_a_mistake_fails_the_run_with_one_sentence(launch, failure, database, name, config, words):
    assert words in failure(launch(name, **config))


@pytest.mark.parametrize("job", CALIBRATION_JOBS.values(), ids=lambda job: job.name)
def test_every_job_says_what_it_is(job):
    assert job.description
    assert job.tags == {"domain": "attendance", "pii": "true"}
    (node,) = job.nodes
    assert node.name == job.name
    fields = node.definition.config_schema.as_field().config_type.fields
    assert all(field.description for field in fields.values())
