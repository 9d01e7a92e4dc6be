"""Attendance rows and the register they make."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True)
class AttendanceCell:
    """A student in a session: present (a crop is assigned), unsure (only doubtful crops), absent (none)."""

    session: str
    held_on: date | None
    student_id: int
    student: str
    provisional: bool
    status: str
    crops: int
    similarity: float | None


def register_session(connection: Connection, session_id: int, model: str, withdrawn: Collection[int]) -> None:
    """Derive the session's attendance rows from its assignments; rows that are right already stay untouched.

    One student is present who has an assigned crop, unsure who has only crops that need review, absent otherwise.
    Provisional students get a row only where they appear: nobody knows that a visitor should have been there.
    `withdrawn` students get none, and nobody does in a session without a photo: nobody looked.
    """
    parameters = {"session": session_id, "model": model, "withdrawn": sorted(withdrawn)}
    derived = """
        SELECT st.id AS student_id,
            CASE WHEN bool_or(a.state = 'assigned') THEN 'present' WHEN count(a.crop_id) > 0 THEN 'unsure'
                ELSE 'absent' END AS status,
            count(a.crop_id) FILTER (WHERE a.state = 'assigned')::int AS crops,
            max(a.similarity) FILTER (WHERE a.state = 'assigned') AS similarity
        FROM sessions s
        JOIN students st ON st.class_id = s.class_id AND st.merged_into IS NULL
        LEFT JOIN (assignments a JOIN face_crops f ON f.id = a.crop_id
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL)
            ON a.student_id = st.id AND a.model = %(model)s AND i.session_id = s.id
        WHERE s.id = %(session)s AND NOT st.id = ANY(%(withdrawn)s) AND EXISTS (
            SELECT 1 FROM images p WHERE p.session_id = s.id AND p.removed_at IS NULL AND p.refused_reason IS NULL
        )
        GROUP BY st.id
        HAVING NOT st.provisional OR count(a.crop_id) > 0"""
    connection.execute(
        f"""DELETE FROM attendance t WHERE t.session_id = %(session)s AND t.model = %(model)s
        AND t.student_id NOT IN (SELECT student_id FROM ({derived}) d)""",  # noqa: S608 - only constants are put in
        parameters,
    )
    connection.execute(
        f"""INSERT INTO attendance AS old (session_id, model, student_id, status, crops, similarity)
        SELECT %(session)s, %(model)s, student_id, status, crops, similarity FROM ({derived}) d
        ON CONFLICT (session_id, model, student_id) DO UPDATE
        SET status = excluded.status, crops = excluded.crops, similarity = excluded.similarity
        WHERE (old.status, old.crops, old.similarity) IS DISTINCT FROM
            (excluded.status, excluded.crops, excluded.similarity)""",  # noqa: S608 - only constants are put in
        parameters,
    )


def registered_sessions(connection: Connection, session_ids: Collection[int]) -> dict[str, list[int]]:
    """Those of the sessions that have attendance already, by model."""
    rows = connection.execute(
        """SELECT model, array_agg(DISTINCT session_id) FROM attendance WHERE session_id = ANY(%s)
        GROUP BY model ORDER BY model""",
        [list(session_ids)],
    )
    return dict(rows.fetchall())


def read_attendance(connection: Connection, class_id: int, model: str) -> list[AttendanceCell]:
    """Every registered cell of the class, by session date and student name."""
    with connection.cursor(row_factory=class_row(AttendanceCell)) as cursor:
        return cursor.execute(
            """SELECT s.name AS session, s.held_on, st.id AS student_id, st.name AS student, st.provisional,
                t.status, t.crops, t.similarity
            FROM attendance t
            JOIN sessions s ON s.id = t.session_id AND s.class_id = %s AND NOT s.is_enrolment
            JOIN students st ON st.id = t.student_id
            WHERE t.model = %s
            ORDER BY s.held_on NULLS LAST, s.name, st.provisional, st.name""",
            [class_id, model],
        ).fetchall()


@dataclass(frozen=True)
class FaceCounts:
    """What became of the faces of one session."""

    faces: int
    usable_faces: int
    known_faces: int
    unknown_faces: int
    doubtful_faces: int
    unmatched_faces: int
    photos: int
    photos_without_faces: int
    photos_refused: int


def count_faces(connection: Connection, session_id: int, model: str) -> FaceCounts:
    """Counts over the session's present photos; `unknown_faces` are of provisional students."""
    with connection.cursor(row_factory=class_row(FaceCounts)) as cursor:
        row = cursor.execute(
            """WITH photos AS (
                SELECT i.id, i.refused_reason, count(f.id) AS faces
                FROM images i LEFT JOIN face_crops f ON f.image_id = i.id
                WHERE i.session_id = %(session)s AND i.removed_at IS NULL GROUP BY i.id
            ), faces AS (
                SELECT f.usable, a.state, st.provisional
                FROM face_crops f JOIN photos p ON p.id = f.image_id
                LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s
                LEFT JOIN students st ON st.id = a.student_id
            )
            SELECT (SELECT count(*) FROM faces) AS faces,
                (SELECT count(*) FROM faces WHERE usable) AS usable_faces,
                (SELECT count(*) FROM faces WHERE state = 'assigned' AND NOT provisional) AS known_faces,
                (SELECT count(*) FROM faces WHERE state = 'assigned' AND provisional) AS unknown_faces,
                (SELECT count(*) FROM faces WHERE state = 'needs_review') AS doubtful_faces,
                (SELECT count(*) FROM faces WHERE state = 'no_match') AS unmatched_faces,
                (SELECT count(*) FROM photos) AS photos,
                (SELECT count(*) FROM photos WHERE refused_reason IS NULL AND faces = 0) AS photos_without_faces,
                (SELECT count(*) FROM photos WHERE refused_reason IS NOT NULL) AS photos_refused""",
            {"session": session_id, "model": model},
        ).fetchone()
    assert row is not None, "a SELECT of scalars gives one row"
    return row
