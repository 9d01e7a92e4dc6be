"""Thresholds measured on a class's confirmed identities, and which of them people adopted."""

from dataclasses import dataclass
from datetime import datetime

from psycopg import Connection
from psycopg.rows import class_row

from pipelines.errors import UnknownIdError
from pipelines.faces.calibration import Calibration


@dataclass(frozen=True)
class ConfirmedCrop:
    """A crop that a person, or a portrait's name, has given to a student; photo: equal for copies of one file."""

    crop_id: int
    student_id: int
    photo: int


@dataclass(frozen=True)
class StoredCalibration:
    """The thresholds of a calibration: cosine distances, and the calibrated scale's slope per unit of distance.

    version: of the vectors that were compared. fpir: the false-positive identification rate that was asked for.
    """

    id: int
    class_id: int
    model: str
    version: str
    operating_distance: float
    verification_distance: float
    slope: float
    fpir: float


@dataclass(frozen=True)
class Adoption:
    """Who let which thresholds hold, when and why; calibration_id: None for the model's own."""

    calibration_id: int | None
    adopted_by: str
    reason: str | None
    adopted_at: datetime


def read_confirmed(connection: Connection, class_id: int) -> list[ConfirmedCrop]:
    """The confirmed crops of the class's present photos, portraits included, by id."""
    with connection.cursor(row_factory=class_row(ConfirmedCrop)) as cursor:
        return cursor.execute(
            """SELECT f.id AS crop_id, c.student_id, dense_rank() OVER (ORDER BY i.sha256) AS photo
            FROM confirmed_crops c
            JOIN face_crops f ON f.id = c.crop_id
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            WHERE c.class_id = %s ORDER BY f.id""",
            [class_id],
        ).fetchall()


def insert_calibration(
    connection: Connection,
    calibration: Calibration,
    *,
    class_id: int,
    model: str,
    version: str,
    fpir: float,
    run_id: str | None,
) -> int:
    """Store a calibration and return its id."""
    row = connection.execute(
        """INSERT INTO calibrations (class_id, model, version, fpir, run_id, operating_distance, verification_distance,
            slope, false_positives, impostor_comparisons, true_positives, genuine_comparisons)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        [
            *(class_id, model, version, fpir, run_id),
            *(calibration.operating_distance, calibration.verification_distance, calibration.slope),
            *(calibration.fpir.times, calibration.fpir.searches, calibration.tpir.times, calibration.tpir.searches),
        ],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def find_calibration(connection: Connection, calibration_id: int) -> StoredCalibration:
    """The calibration of this id; raises UnknownIdError."""
    with connection.cursor(row_factory=class_row(StoredCalibration)) as cursor:
        row = cursor.execute(
            """SELECT id, class_id, model, version, operating_distance, verification_distance, slope, fpir
            FROM calibrations WHERE id = %s""",
            [calibration_id],
        ).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no calibration {calibration_id}.")
    return row


def adopted_calibration(connection: Connection, class_id: int, model: str) -> StoredCalibration | None:
    """The calibration whose thresholds a person has adopted for the class and model; None where the model's own hold."""
    adoption = last_adoption(connection, class_id, model)
    if adoption is None or adoption.calibration_id is None:
        return None
    return find_calibration(connection, adoption.calibration_id)


def last_adoption(connection: Connection, class_id: int, model: str) -> Adoption | None:
    """What a person said last about the thresholds of the class and model; None where nobody has said anything."""
    with connection.cursor(row_factory=class_row(Adoption)) as cursor:
        return cursor.execute(
            """SELECT calibration_id, adopted_by, reason, adopted_at FROM calibration_adoptions
            WHERE class_id = %s AND model = %s ORDER BY id DESC LIMIT 1""",
            [class_id, model],
        ).fetchone()


def append_adoption(
    connection: Connection,
    class_id: int,
    model: str,
    calibration_id: int | None,
    *,
    adopted_by: str,
    reason: str | None,
    run_id: str | None,
) -> int:
    """Record that these thresholds hold from now on (None: the model's own) and return the record's id."""
    row = connection.execute(
        """INSERT INTO calibration_adoptions (class_id, model, calibration_id, adopted_by, reason, run_id)
        VALUES (%s, %s, %s, %s, %s, %s) RETURNING id""",
        [class_id, model, calibration_id, adopted_by, reason, run_id],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]
