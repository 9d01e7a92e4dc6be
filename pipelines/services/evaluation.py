"""Compare what the pipeline decided about a class with labels that people made."""

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.database import catalog, evaluation
from pipelines.errors import AttendanseeError
from pipelines.faces import metrics
from pipelines.resources.database import Database
from pipelines.services.attendance import AttendanceService

LABEL_COLUMNS = ("file", "x", "y", "w", "h", "identity")
ATTENDANCE_COLUMNS = ("session", "identity", "present")


@dataclass(frozen=True)
class Evaluation:
    """The figures of one class; None where the labels given cannot tell (no guests, no names, no attendance file).

    detection_recall, detection_precision: labelled faces found, and found faces that are labelled.
    bcubed_*: crops grouped by student against labelled identities, an undetected or unassigned face a group of its own.
    rank1: share of the detected, labelled students' faces whose first answer is the right name.
    guests_accepted of guests_total: guests' faces given the name of a known student.
    attendance_*: over (session, student) pairs, positive = present.
    """

    detection_recall: float
    detection_precision: float
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f1: float
    rank1: float | None
    guests_accepted: int
    guests_total: int
    attendance_precision: float | None
    attendance_recall: float | None


def evaluate_class(
    database: Database, class_name: str, model_name: str, labels: Path, attendance: Path | None
) -> Evaluation:
    """Evaluate a processed class against labels.csv (and attendance.csv); formulas are in `pipelines.faces.metrics`.

    labels: columns file (relative to the class folder), x, y, w, h (pixels), identity, optionally role (student, guest).
    attendance: columns session, identity, present (0 or 1). Raises AttendanseeError naming a missing column or photo.
    """
    by_photo = defaultdict(list)
    for row in _read(labels, LABEL_COLUMNS):
        by_photo[row["file"]].append(row)
    with database.connection() as connection:
        class_id = catalog.find_class(connection, class_name)
        crops = evaluation.class_crops(connection, class_id, model_name)
        photos = evaluation.class_photos(connection, class_id)
    named = any(not crop.provisional for crop in crops if crop.student is not None)

    groups: list[int] = []
    identities: list[str] = []
    matched = found = right = students = guests = accepted = 0
    for file, rows in by_photo.items():
        path = f"{class_name}/{file}"
        if path not in photos:
            raise AttendanseeError(f"The labelled photo {path} is not registered: run the class's photos first.")
        here = [crop for crop in crops if crop.path == path]
        pairs = dict(
            metrics.match_boxes(
                np.array([_box(row, labels) for row in rows]),
                np.array([crop.box for crop in here], dtype=float).reshape(-1, 4),
            )
        )
        matched += len(pairs)
        found += len(here)
        for index, row in enumerate(rows):
            crop = here[pairs[index]] if index in pairs else None
            assigned = crop is not None and crop.state == "assigned"
            groups.append(crop.student_id if crop and assigned and crop.student_id else -1 - len(groups))
            identities.append(row["identity"])
            if row.get("role") == "guest":
                guests += 1
                accepted += bool(crop and assigned and not crop.provisional)
            elif crop:
                students += 1
                right += crop.student == row["identity"]
    bcubed = metrics.bcubed(np.array(groups), np.unique(identities, return_inverse=True)[1])
    precision = recall = None
    if attendance is not None and named:
        said = AttendanceService(database, model_name).register(class_name)
        rows = _read(attendance, ATTENDANCE_COLUMNS)
        sessions = {row["session"] for row in rows}
        present = {(s, name) for (name, s), status in said.cells.items() if status == "present" and s in sessions}
        truth = {(row["session"], row["identity"]) for row in rows if row["present"].strip() == "1"}
        precision, recall = metrics.precision_recall(present, truth)
    return Evaluation(
        detection_recall=matched / len(identities),
        detection_precision=matched / found if found else 1.0,
        bcubed_precision=bcubed.precision,
        bcubed_recall=bcubed.recall,
        bcubed_f1=bcubed.f1,
        rank1=right / students if named and students else None,
        guests_accepted=accepted,
        guests_total=guests,
        attendance_precision=precision,
        attendance_recall=recall,
    )


def _box(row: dict[str, str], labels: Path) -> list[float]:
    try:
        return [float(row[column]) for column in "xywh"]
    except (TypeError, ValueError) as error:
        raise AttendanseeError(
            f"A box of {row['file']} in {labels} is not made of numbers: give x, y, w and h in pixels."
        ) from error


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise AttendanseeError(f"The file {path} cannot be read ({error}): name an existing CSV file.") from error
    if missing:
        raise AttendanseeError(f"The file {path} lacks the column(s) {', '.join(missing)}: add them to its head.")
    if not rows:
        raise AttendanseeError(f"The file {path} holds no rows: label at least one face or session.")
    return rows
