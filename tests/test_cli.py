"""The commands as people use them: real database, real Dagster instance, real detector and model."""

import csv
import io
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import click
import dagster as dg
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipelines.cli import main
from pipelines.commands.common import plain_errors
from pipelines.database import embedded
from pipelines.database.migrate import MIGRATIONS
from pipelines.demo_photos import make_demo_photos
from pipelines.instance import prepare_dagster_home
from pipelines.settings import Settings, get_settings


def attendansee(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "200"})


def counts(database) -> dict[str, int]:
    with database.connection() as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("images", "face_crops", "embeddings_dlib", "students", "assignments", "attendance")
        }


def connection_row(database, query: str) -> tuple:
    with database.connection() as connection:
        return connection.execute(query).fetchone()


@pytest.fixture(scope="module")
def demo_photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "photos"
    make_demo_photos(folder)
    return folder


def test_a_photo_folder_becomes_an_attendance_table_and_a_second_run_adds_nothing(database, demo_photos):
    begin = datetime.now(UTC)
    result = attendansee("run", demo_photos)
    assert result.exit_code == 0, result.output
    for status in ("present", "absent", "unknown"):
        assert status in result.stdout
    before = counts(database)
    again = attendansee("run", demo_photos)
    assert "0 of 4 sessions processed" in again.stderr
    forced = attendansee("run", demo_photos, "--force")
    assert (again.exit_code, forced.exit_code) == (0, 0)
    assert counts(database) == before
    assert forced.stdout == again.stdout == result.stdout

    rows = list(csv.DictReader(io.StringIO(attendansee("attendance", "Demo101", "--format", "csv").stdout)))
    statuses = {row["status"] for row in rows}
    assert {"present", "absent", "unknown"} <= statuses
    assert {row["date"][:4] for row in rows} == {"2026"}
    table = json.loads(attendansee("attendance", "Demo101", "--format", "json").stdout)
    assert sum(s["counts"]["present"] for s in table["sessions"]) == [r["status"] for r in rows].count("present")

    # The UI shows what the command did: a run for each session, one more that assigns again what was decided before the
    # last session was known, and the register of the class.
    prepare_dagster_home(get_settings())
    with dg.DagsterInstance.get() as instance:
        assigned = {"dlib/student_assignments", "dlib/session_attendance"}
        everything = {"session_images", "face_crops", "dlib/face_embeddings", "dlib/face_clusters", *assigned}
        first, second, last = (f"Demo101__{session['session']}" for session in table["sessions"])
        each_time = [
            (first, everything),
            (second, everything),
            (last, everything),
            (first, assigned),
            (second, assigned),
        ]
        records = instance.get_run_records(  # others share the records
            dg.RunsFilter(tags={"dagster/partition": [first, second, last]}, created_after=begin), ascending=True
        )
        assert {record.dagster_run.status for record in records} == {dg.DagsterRunStatus.SUCCESS}
        assert [
            (
                record.dagster_run.tags["dagster/partition"],
                {
                    made.get_dagster_event().asset_key.to_user_string()
                    for made in instance.all_logs(record.dagster_run.run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
                },
            )
            for record in records
        ] == 2 * each_time
        event = instance.get_latest_materialization_event(dg.AssetKey(["dlib", "class_attendance"]))
        assert event.asset_materialization.metadata["students"].value == 6


def test_no_face_and_no_vector_is_in_dagsters_event_log(database, demo_photos):
    attendansee("run", demo_photos, "--force", "--session", "2026-09-07")
    with dg.DagsterInstance.get() as instance:
        (run, *_) = instance.get_runs(dg.RunsFilter(tags={"dagster/partition": "Demo101__2026-09-07"}), limit=1)
        events = instance.all_logs(run.run_id)
        (vector,) = connection_row(database, "SELECT embedding FROM embeddings_dlib LIMIT 1")
    text = "\n".join(str(event) for event in events)
    assert "session_attendance" in text
    # A vector in any of its spellings is many decimal numbers in a row; a picture is base64, bytes or an array.
    many_numbers = re.compile(r"(-?\d*\.\d+(e-?\d+)?[,\s\]]+){8}")
    assert many_numbers.search(str(vector.to_numpy().tolist()))
    for leak in (many_numbers.search(text), re.search(r"array\(|base64|\\xff\\xd8", text)):
        assert leak is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere/at/all"], "does not exist"),
        (["attendance", "NoSuchClass"], "There is no class 'NoSuchClass'"),
        (["evaluate", "NoSuchClass", "--labels", "none.csv", "--model", "dlib"], "cannot be read"),
        (["models", "add", "facenet", "nothing.h5"], "nothing.h5"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(database, arguments, words):
    result = attendansee(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.output


def test_a_database_that_goes_away_is_told_in_one_sentence(database):
    @click.command()
    @plain_errors
    def lose() -> None:
        with database.connection() as connection:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    result = CliRunner().invoke(lose)
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: The connection to the database was lost (terminating connection due to administrator command): nothing "
        "that was stored is lost. Run the same command again once the server is back.\n"
    )


def test_what_could_not_be_used_is_told_by_every_run(database, demo_photos, tmp_path):
    photos = tmp_path / "photos"
    session = next(iter(sorted((demo_photos / "Demo101").glob("20*"))))
    shutil.copytree(session, photos / "Demo101/s1")
    (photos / "Demo101/s1/IMG_1.HEIC").touch()
    (photos / "Demo101/s1/session.yaml").write_text("day: 2026-09-01")
    told = ("'IMG_1.HEIC'", "Demo101/s1/session.yaml does not give a date")
    for summary in ("1 of 1 sessions processed.", "0 of 1 sessions processed, 1 had not changed."):
        result = attendansee("run", photos)
        assert result.exit_code == 0
        assert all(words in result.stderr for words in (*told, summary))


def test_missing_weights_are_named_with_place_and_command_before_any_work(database, demo_photos):
    result = attendansee("run", demo_photos, "--model", "facenet")
    assert result.exit_code == 1
    assert str(get_settings().weights_folder) in result.stderr.replace("\n", "")
    assert "attendansee models fetch facenet" in result.stderr
    assert counts(database)["images"] == 0


def test_a_wrong_class_or_session_names_what_there_is(database, demo_photos):
    result = attendansee("run", demo_photos, "--session", "never")
    assert result.exit_code == 1
    assert "Demo101__2026-09-07" in result.stderr


def test_models_lists_each_model_with_what_is_known_of_its_weights():
    output = attendansee("models").stdout
    for words in ("facenet512", "arcface", "512", "missing", "verified", "CC0"):
        assert words in output


def test_migrate_says_the_revision(database):
    newest = max(path.name for path in (MIGRATIONS / "versions").glob("*.py")).partition("_")[0]
    assert f"revision {newest}" in attendansee("migrate").stdout


def test_the_readme_states_every_setting_with_its_default():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"ATTENDANSEE_{name.upper()}"
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| `{variable}`")]
        if field.default_factory is None and field.default is not None:
            shown = str(int(field.default)) if isinstance(field.default, bool) else f"{field.default}"
            assert f"| `{shown.removesuffix('.0')}` |" in line, line


def test_a_photo_root_may_be_any_fsspec_url(database, tmp_path):
    import fsspec
    from skimage import data

    memory = fsspec.filesystem("memory")
    with memory.open("/school/Remote1/s1/a.jpg", "wb") as file:
        Image.fromarray(data.astronaut()).save(file, "JPEG")
    try:
        result = attendansee("run", "memory://school")
    finally:
        memory.rm("/school", recursive=True)
    assert result.exit_code == 0, result.stderr
    assert "Class_Remote1_Session_s1_Cluster_1" in result.stdout


def test_erase_leaves_nothing_of_the_home_and_nothing_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTENDANSEE_HOME", str(tmp_path / "home"))
    get_settings.cache_clear()
    try:
        assert attendansee("migrate").exit_code == 0
        server = embedded.ensure(tmp_path / "home" / "postgres")
        assert server.data_dir.is_dir()
        assert attendansee("erase").exit_code == 1  # Nobody said yes.
        assert server.data_dir.is_dir()
        assert attendansee("erase", "--yes").exit_code == 0
        assert not server.data_dir.exists()
        assert not (tmp_path / "home").exists()
    finally:
        get_settings.cache_clear()


def test_a_setting_that_cannot_be_used_is_named_with_the_reason(monkeypatch):
    monkeypatch.setenv("ATTENDANSEE_ENGINE", "foo")
    get_settings.cache_clear()
    try:
        result = attendansee("models")
    finally:
        get_settings.cache_clear()
    assert result.exit_code == 1
    assert "ATTENDANSEE_ENGINE='foo'" in result.stderr
    assert "onnx" in result.stderr


def test_a_session_whose_last_photo_is_removed_has_nobody_in_it(database, tmp_path):
    from skimage import data

    photo = tmp_path / "Emptied1" / "s1" / "a.jpg"
    for folder in (photo.parent, tmp_path / "Emptied1" / "never"):
        folder.mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(photo)
    assert "present" in attendansee("run", tmp_path).stdout
    photo.unlink()
    result = attendansee("run", tmp_path)
    assert result.exit_code == 0
    assert "1 of 1 sessions processed" in result.stderr
    assert "present" not in result.stdout
