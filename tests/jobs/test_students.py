"""The jobs on students, launched as the UI launches them."""

import dagster as dg
import pytest

from pipelines.jobs.students import STUDENT_JOBS
from pipelines.resources import build_resources
from pipelines.settings import get_settings

ROSTER = "first_name,last_name,student_id,email\nAda,Lovelace,1,ada@school.org\nBen,Bold,2,\n,,3,\n"


def test_a_roster_is_imported_listed_corrected_and_merged(launch, response, database, tmp_path):
    path = tmp_path / "roster.csv"
    path.write_text(ROSTER)
    imported = response(launch("import_students", class_name="m", path=str(path), create_class=True))
    assert (imported["status"], len(imported["added"]), imported["refused"][0]["line"]) == ("partial", 2, 4)
    ada, ben = (row["student_id"] for row in imported["added"])
    result = launch("rename_student", student_id=ada, name="Ada King", reason="married")
    assert response(result)["student_name"] == "Ada King"
    with database.connection() as connection:
        assert connection.execute("SELECT decided_by, run_id, reason FROM decisions").fetchall() == [
            ("dagster", result.run_id, "married")
        ]
    merged = launch("merge_students", student_id=ben, into_student_id=ada, reason="twice on the list")
    assert response(merged)["student_id"] == ada
    with database.connection() as connection:
        said = connection.execute("SELECT reason FROM decisions WHERE run_id = %s", [merged.run_id]).fetchall()
    assert ("twice on the list",) in said
    (student,) = response(launch("list_students", class_name="m"))["students"]
    assert student == {
        "id": ada,
        "name": "Ada King",
        "provisional": False,
        "hidden": False,
        "student_number": "1",
        "email": "ada@school.org",
        "crops": 0,
        "sessions_present": 0,
    }


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("rename_student", {"student_id": 99, "name": "Ann"}, "There is no student 99."),
        ("merge_students", {"student_id": 98, "into_student_id": 99}, "There is no student 99."),
        ("list_students", {"class_name": "nowhere"}, "There is no class 'nowhere'"),
        ("import_students", {"class_name": "m", "path": "none.csv"}, "none.csv cannot be read"),
    ],
)
def test_a_mistake_fails_the_run_with_one_sentence(launch, failure, name, config, words):
    assert words in failure(launch(name, **config))


def test_a_number_out_of_range_is_refused_with_the_range(launch, failure):
    assert "student_id cannot be used: Input should be greater than or equal to 1" in failure(
        launch("rename_student", student_id=0, name="Ann")
    )


def test_the_jobs_load_together():
    # Unlike resolving one job, this refuses definitions that share a name.
    dg.Definitions.validate_loadable(
        dg.Definitions(jobs=list(STUDENT_JOBS.values()), resources=build_resources(get_settings()))
    )


@pytest.mark.parametrize("job", STUDENT_JOBS.values(), ids=lambda job: job.name)
def test_every_job_says_what_it_is(job):
    assert job.description
    assert job.tags == {"domain": "attendance", "pii": "true"}
    (node,) = job.nodes
    assert node.name == job.name
    fields = node.definition.config_schema.as_field().config_type.fields
    assert fields
    assert all(field.description for field in fields.values())
