"""Attendance rows and the register they make."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True)
class AttendanceCell:
    """A student in a session: present (a crop is assigned), unsure (only doubtful crops), absent (none), or what a person
    says, who alone says excused (`manual`).

    hidden: a person has said that the student is a visitor.
    """

    session: str
    held_on: date | None
    student_id: int
    student: str
    provisional: bool
    status: str
    crops: int
    similarity: float | None
    hidden: bool
    manual: bool


def register_session(
    connection: Connection, session_id: int, model: str, withdrawn: Collection[int], *, looked_at: bool = True
) -> None:
    """Derive the session's attendance rows from its assignments; rows that are right already stay untouched.

    What a person says counts, whatever the photos show, even where there is none. Else one student is present who has
    an assigned crop, unsure who has only crops that need review, absent otherwise. Provisional students and visitors
    get a row only where they appear: nobody knows that they should have been there. `withdrawn` students get none, and
    nobody does in a session without a photo: nobody looked. looked_at: whether the lineage has decided who the faces
    are; else only what people say counts.
    """
    parameters = {"session": session_id, "model": model, "withdrawn": sorted(withdrawn), "looked_at": looked_at}
    if looked_at:
        connection.execute(
            "INSERT INTO registered_sessions (session_id, model) VALUES (%(session)s, %(model)s) ON CONFLICT DO NOTHING",
            parameters,
        )
    derived = """
        SELECT st.id AS student_id,
            coalesce(m.status, CASE WHEN bool_or(a.state = 'assigned') THEN 'present' WHEN count(a.crop_id) > 0
                THEN 'unsure' ELSE 'absent' END) AS status,
            count(a.crop_id) FILTER (WHERE a.state = 'assigned')::int AS crops,
            max(a.similarity) FILTER (WHERE a.state = 'assigned') AS similarity, m.decision_id
        FROM sessions s
        JOIN students st ON st.class_id = s.class_id AND st.merged_into IS NULL
        LEFT JOIN manual_attendance m ON m.session_id = %(session)s AND m.student_id = st.id
        LEFT JOIN (assignments a JOIN face_crops f ON f.id = a.crop_id
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL)
            ON a.student_id = st.id AND a.model = %(model)s AND i.session_id = s.id
        WHERE s.id = %(session)s AND (m.decision_id IS NOT NULL
            OR (%(looked_at)s AND NOT st.id = ANY(%(withdrawn)s) AND EXISTS (
                SELECT 1 FROM images p
                WHERE p.session_id = s.id AND p.removed_at IS NULL AND p.refused_reason IS NULL
            )))
        GROUP BY st.id, m.status, m.decision_id
        HAVING m.decision_id IS NOT NULL OR NOT (st.provisional OR st.hidden) OR count(a.crop_id) > 0"""
    connection.execute(
        f"""DELETE FROM attendance t WHERE t.session_id = %(session)s AND t.model = %(model)s
        AND t.student_id NOT IN (SELECT student_id FROM ({derived}) d)""",  # noqa: S608 - only constants are put in
        parameters,
    )
    connection.execute(
        f"""INSERT INTO attendance AS old (session_id, model, student_id, status, crops, similarity, decision_id)
        SELECT %(session)s, %(model)s, student_id, status, crops, similarity, decision_id FROM ({derived}) d
        ON CONFLICT (session_id, model, student_id) DO UPDATE
        SET status = excluded.status, crops = excluded.crops, similarity = excluded.similarity,
            decision_id = excluded.decision_id
        WHERE (old.status, old.crops, old.similarity, old.decision_id) IS DISTINCT FROM
            (excluded.status, excluded.crops, excluded.similarity, excluded.decision_id)""",  # noqa: S608 - as above
        parameters,
    )


def looked_at_sessions(connection: Connection, session_ids: Collection[int]) -> dict[str, list[int]]:
    """Those of the sessions whose attendance was derived from faces before, if with nobody in it, by model."""
    rows = connection.execute(
        """SELECT model, array_agg(session_id) FROM registered_sessions WHERE session_id = ANY(%s)
        GROUP BY model ORDER BY model""",
        [list(session_ids)],
    )
    return dict(rows.fetchall())


def marked_sessions(connection: Connection, session_ids: Collection[int], model: str) -> set[int]:
    """Those of the sessions in which a person says, or in this lineage's attendance said, who was there."""
    rows = connection.execute(
        """SELECT session_id FROM manual_attendance WHERE session_id = ANY(%(sessions)s)
        UNION SELECT session_id FROM attendance
        WHERE session_id = ANY(%(sessions)s) AND model = %(model)s AND decision_id IS NOT NULL""",
        {"sessions": list(session_ids), "model": model},
    )
    return {session_id for (session_id,) in rows}


def read_cell(connection: Connection, session_id: int, student_id: int) -> tuple[str, bool] | None:
    """A student's status in a session by the class's active model, and whether a person says so; None without a row."""
    return connection.execute(
        """SELECT t.status, t.decision_id IS NOT NULL FROM attendance t
        JOIN sessions s ON s.id = t.session_id JOIN classes c ON c.id = s.class_id AND c.active_model = t.model
        WHERE t.session_id = %s AND t.student_id = %s""",
        [session_id, student_id],
    ).fetchone()


def read_attendance(connection: Connection, class_id: int, model: str) -> list[AttendanceCell]:
    """Every registered cell of the class, by session date and student name."""
    with connection.cursor(row_factory=class_row(AttendanceCell)) as cursor:
        return cursor.execute(
            """SELECT s.name AS session, s.held_on, st.id AS student_id, st.name AS student, st.provisional,
                t.status, t.crops, t.similarity, st.hidden, t.decision_id IS NOT NULL AS manual
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
    visitor_faces: int
    doubtful_faces: int
    unmatched_faces: int
    photos: int
    photos_without_faces: int
    photos_refused: int


def count_faces(connection: Connection, session_id: int, model: str) -> FaceCounts:
    """Counts over the session's present photos; what a person has said to be no face is none.

    unknown_faces are of provisional students, visitor_faces of hidden ones; known_faces are all other assigned ones.
    """
    with connection.cursor(row_factory=class_row(FaceCounts)) as cursor:
        row = cursor.execute(
            """WITH photos AS (
                SELECT i.id, i.refused_reason, count(f.id) AS faces
                FROM images i LEFT JOIN (
                    SELECT c.id, c.image_id FROM face_crops c
                    WHERE NOT EXISTS (SELECT 1 FROM not_faces n WHERE n.crop_id = c.id)
                ) f ON f.image_id = i.id
                WHERE i.session_id = %(session)s AND i.removed_at IS NULL GROUP BY i.id
            ), faces AS (
                SELECT f.usable, a.state, st.provisional, st.hidden
                FROM face_crops f JOIN photos p ON p.id = f.image_id
                LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s
                LEFT JOIN students st ON st.id = a.student_id
                WHERE NOT EXISTS (SELECT 1 FROM not_faces n WHERE n.crop_id = f.id)
            )
            SELECT (SELECT count(*) FROM faces) AS faces,
                (SELECT count(*) FROM faces WHERE usable) AS usable_faces,
                (SELECT count(*) FROM faces WHERE state = 'assigned' AND NOT (provisional OR hidden)) AS known_faces,
                (SELECT count(*) FROM faces WHERE state = 'assigned' AND provisional AND NOT hidden) AS unknown_faces,
                (SELECT count(*) FROM faces WHERE state = 'assigned' AND hidden) AS visitor_faces,
                (SELECT count(*) FROM faces WHERE state = 'needs_review') AS doubtful_faces,
                (SELECT count(*) FROM faces WHERE state = 'no_match') AS unmatched_faces,
                (SELECT count(*) FROM photos) AS photos,
                (SELECT count(*) FROM photos WHERE refused_reason IS NULL AND faces = 0) AS photos_without_faces,
                (SELECT count(*) FROM photos WHERE refused_reason IS NOT NULL) AS photos_refused""",
            {"session": session_id, "model": model},
        ).fetchone()
    assert row is not None, "a SELECT of scalars gives one row"
    return row
