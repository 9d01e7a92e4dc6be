"""The figures of `attendansee evaluate`: on made decisions that can be reckoned by hand, and on labelled photos."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.errors import AttendanseeError
from pipelines.partitions import parse_session_key
from pipelines.services.attendance import AttendanceService
from pipelines.services.evaluation import evaluate_class
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def label(file: str, place: int, identity: str, role: str = "student") -> dict[str, object]:
    return {"file": file, "x": place * 100, "y": 0, "w": 80, "h": 80, "identity": identity, "role": role}


@pytest.fixture
def processed(made_class, database):
    """Ann and bob are enrolled; in the one photo are ann, somebody who looks like bob, and a face of nobody."""
    made_class.enrol("m", "ann", "bob")
    made_class.session("m__s1", [["ann", "bob", "stranger"]])
    key = parse_session_key("m__s1")
    SessionClusteringService(database, "dlib", "v").cluster_session(key, ClusteringConfig())
    SessionAssignmentService(database, "dlib", "v").assign_session(key, AssignmentConfig())
    AttendanceService(database, "dlib").register_session(key)


def test_the_figures_are_those_reckoned_by_hand(processed, database, tmp_path):
    labels = write(
        tmp_path / "labels.csv",
        [
            label("s1/0.jpg", 0, "ann"),
            # Taken for bob, but labelled as a guest: accepted.
            label("s1/0.jpg", 1, "eve", "guest"),
            label("s1/0.jpg", 2, "fay", "guest"),
            # Never detected: a group of its own.
            label("s1/0.jpg", 5, "ann"),
        ],
    )
    attendance = write(
        tmp_path / "attendance.csv",
        [{"session": "s1", "identity": "ann", "present": 1}, {"session": "s1", "identity": "bob", "present": 0}],
    )
    result = evaluate_class(database, "m", "dlib", labels, attendance)
    assert (result.detection_recall, result.detection_precision) == (3 / 4, 1.0)
    # Ann's two faces are in two groups: precision 1, recall (1/2 + 1/2 + 1 + 1) / 4.
    assert (result.bcubed_precision, result.bcubed_recall) == (1.0, 0.75)
    assert result.bcubed_f1 == pytest.approx(2 * 0.75 / 1.75)
    assert result.rank1 == 1.0
    assert (result.guests_accepted, result.guests_total) == (1, 2)
    assert (result.attendance_precision, result.attendance_recall) == (0.5, 1.0)


def test_labels_of_a_photo_that_was_not_processed_are_named(processed, database, tmp_path):
    labels = write(tmp_path / "labels.csv", [label("s9/0.jpg", 0, "ann")])
    with pytest.raises(AttendanseeError, match=r"m/s9/0\.jpg is not registered"):
        evaluate_class(database, "m", "dlib", labels, None)


def test_a_missing_column_is_named(processed, database, tmp_path):
    (tmp_path / "labels.csv").write_text("file,x,y,w,h\na.jpg,1,1,1,1\n")
    with pytest.raises(AttendanseeError, match=r"lacks the column\(s\) identity"):
        evaluate_class(database, "m", "dlib", tmp_path / "labels.csv", None)


def figures(class_name: str, labels: Path, *more: object) -> dict[str, float]:
    arguments = ["evaluate", class_name, "--labels", labels, "--format", "json", *more]
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_labelled_class_with_portraits_is_right_about_everybody(database, shared_faces):
    folder = shared_faces / "sessions"
    assert CliRunner().invoke(main, ["run", str(folder), "--model", "dlib"], catch_exceptions=False).exit_code == 0
    data = folder / "caltech_class"
    result = figures("caltech_class", data / "labels.csv", "--attendance", data / "attendance.csv")
    assert result["detection_recall"] >= 0.98
    assert result["bcubed_f1"] >= 0.99
    assert (result["guests_accepted"], result["guests_total"]) == (0, 5)
    assert result["attendance_precision"] == 1.0
    assert result["attendance_recall"] == 1.0


@pytest.mark.slow
def test_a_labelled_class_without_portraits_is_grouped_into_its_people(database, shared_faces, tmp_path):
    data = shared_faces / "sessions" / "caltech_class"
    shutil.copytree(data, tmp_path / "Nameless", ignore=shutil.ignore_patterns("enrol"))
    assert CliRunner().invoke(main, ["run", str(tmp_path)], catch_exceptions=False).exit_code == 0
    result = figures("Nameless", data / "labels.csv")
    assert result["bcubed_f1"] >= 0.99
    assert result["rank1"] is None


@pytest.mark.slow
@pytest.mark.parametrize("sessions", ["one of all photos", "one a photo"])
def test_of_real_crews_nobody_is_taken_for_somebody_else(database, shared_faces, tmp_path, sessions):
    """74 portraits, 25 of people who are in no photo; and photos of up to ten people, years apart."""
    data = shared_faces / "nasa_crews"
    folder = tmp_path / "photos" / "Crews"
    shutil.copytree(data / "portraits", folder / "enrol")
    place = {
        photo.name: f"{photo.stem if sessions == 'one a photo' else 'all'}/{photo.name}"
        for photo in (data / "images").iterdir()
    }
    for name, path in place.items():
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(data / "images" / name, folder / path)
    with (data / "labels.csv").open(newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    labels = write(tmp_path / "labels.csv", [{**row, "file": place[row["file"]]} for row in rows])
    attendance = write(
        tmp_path / "attendance.csv",
        [{"session": place[row["file"]].split("/")[0], "identity": row["identity"], "present": 1} for row in rows],
    )
    assert CliRunner().invoke(main, ["run", str(folder.parent)], catch_exceptions=False).exit_code == 0
    result = figures("Crews", labels, "--attendance", attendance)
    assert result["detection_recall"] == 1.0
    # Every face is labelled, and who is said to be in a photo's session is there: no name is wrong.
    assert (result["attendance_precision"], result["guests_accepted"]) == (1.0, 0)
    assert result["rank1"] >= 0.7
