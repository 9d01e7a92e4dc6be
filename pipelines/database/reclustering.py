"""A class's identities and attendance at one moment, and plans of changing them by clustering anew."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import Connection, sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pipelines.database.crops import embeddings_table
from pipelines.errors import UnknownIdError


class CropState(NamedTuple):
    """What a lineage says of a crop: assigned, needs_review, no_match, or None where it says nothing."""

    session: str
    photo: str
    state: str | None
    student_id: int | None


@dataclass(frozen=True)
class ClassState:
    """What clustering a class anew may change, in one model's lineage.

    students: the names of all who are in a list of the class, by id. provisional: ids of those whom nobody has named.
    attendance: status by (session, student's id).
    """

    crops: dict[int, CropState]
    students: dict[int, str]
    provisional: set[int]
    attendance: dict[tuple[str, int], str]


def read_class_state(connection: Connection, class_id: int, model: str) -> ClassState:
    """The state now, of present photos."""
    crops = connection.execute(
        """SELECT f.id, s.name, i.path, a.state, a.student_id
        FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %s
        LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %s ORDER BY f.id""",
        [class_id, model],
    ).fetchall()
    students = connection.execute(
        "SELECT id, name, provisional FROM students WHERE class_id = %s AND merged_into IS NULL ORDER BY id", [class_id]
    ).fetchall()
    attendance = connection.execute(
        """SELECT s.name, t.student_id, t.status FROM attendance t JOIN sessions s ON s.id = t.session_id
        WHERE s.class_id = %s AND t.model = %s ORDER BY 1, 2""",
        [class_id, model],
    ).fetchall()
    return ClassState(
        {crop_id: CropState(*rest) for crop_id, *rest in crops},
        {student_id: name for student_id, name, _ in students},
        {student_id for student_id, _, provisional in students if provisional},
        {(session, student_id): status for session, student_id, status in attendance},
    )


def state_hash(connection: Connection, state: ClassState, class_id: int, model: str, version: str) -> str:
    """A hash of all that clustering the class by these vectors depends on and changes; state: the class's, as it is."""
    vectors = sql.SQL(
        """SELECT e.crop_id, f.usable, e.created_at::text FROM {} e JOIN face_crops f ON f.id = e.crop_id
        JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
        WHERE s.class_id = %s AND e.version = %s ORDER BY 1"""
    ).format(embeddings_table(model))
    parts = (
        sorted((crop_id, *crop) for crop_id, crop in state.crops.items()),
        sorted(state.students.items()),
        sorted(state.provisional),
        sorted((*key, status) for key, status in state.attendance.items()),
        connection.execute("SELECT max(id) FROM decisions WHERE class_id = %s", [class_id]).fetchall(),
        # What clusters remember, and thresholds that a person has adopted.
        connection.execute(
            """SELECT c.session_id, c.label, c.student_id, m.crop_id FROM clusters c
            JOIN cluster_members m ON m.cluster_id = c.id WHERE c.class_id = %s AND c.model = %s ORDER BY 4, 1 NULLS FIRST, 2""",
            [class_id, model],
        ).fetchall(),
        connection.execute(
            "SELECT max(id) FROM calibration_adoptions WHERE class_id = %s AND model = %s", [class_id, model]
        ).fetchall(),
        connection.execute(vectors, [class_id, version]).fetchall(),
    )
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class StoredPlan:
    """A plan as it was made: parameters of the clustering, what it changes, and who has applied it, if anybody has."""

    id: int
    class_id: int
    model: str
    version: str
    parameters: dict[str, Any]
    state: str
    changes: dict[str, Any]
    planned_at: datetime
    applied_by: str | None
    applied_at: datetime | None


def insert_plan(
    connection: Connection,
    *,
    class_id: int,
    model: str,
    version: str,
    parameters: dict[str, Any],
    state: str,
    changes: dict[str, Any],
    run_id: str | None,
) -> int:
    """Keep a plan and return its id."""
    row = connection.execute(
        """INSERT INTO reclustering_plans (class_id, model, version, parameters, state, changes, run_id)
        VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        [class_id, model, version, Jsonb(parameters), state, Jsonb(changes), run_id],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def find_plan(connection: Connection, plan_id: int) -> StoredPlan:
    """The plan of this id; raises UnknownIdError."""
    with connection.cursor(row_factory=class_row(StoredPlan)) as cursor:
        row = cursor.execute(
            """SELECT id, class_id, model, version, parameters, state, changes, planned_at, applied_by, applied_at
            FROM reclustering_plans WHERE id = %s""",
            [plan_id],
        ).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no reclustering plan {plan_id}: make one with `attendansee plan-reclustering`.")
    return row


def mark_applied(connection: Connection, plan_id: int, applied_by: str, reason: str | None, run_id: str | None) -> None:
    """Record who has applied a plan."""
    connection.execute(
        """UPDATE reclustering_plans SET applied_by = %s, applied_at = now(), reason = %s, run_id = coalesce(%s, run_id)
        WHERE id = %s""",
        [applied_by, reason, run_id, plan_id],
    )
