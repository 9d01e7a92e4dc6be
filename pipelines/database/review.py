"""What a person looks at of a class: photos, the faces in them, who they show and who says so."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True)
class ReviewedPhoto:
    """A present photo of the class, one that cannot be used included."""

    image_id: int
    session_id: int
    session: str
    held_on: date | None
    is_enrolment: bool
    path: str
    width: int | None
    height: int | None
    refused_reason: str | None
    searched: bool


@dataclass(frozen=True)
class ReviewedFace:
    """A face in a usable photo: what one lineage says of it, and the latest word of a person that is in force.

    state, student_id, decided_by: the lineage's assignment; a crop that a person has confirmed is assigned to that
    student by a person, in a lineage too that has not seen it. decision_*: of the latest confirm, assign, unassign or
    not_a_face; confirmed: whether it says who the crop shows.
    """

    crop_id: int
    image_id: int
    x: float
    y: float
    width: float
    height: float
    unusable_reasons: list[str]
    crop_path: str | None
    state: str | None
    student_id: int | None
    decided_by: str | None
    cosine_similarity: float | None
    similarity: float | None
    runner_up_id: int | None
    runner_up_cosine_similarity: float | None
    run_id: str | None
    decided_at: datetime | None
    confirmed: bool
    taken_off: bool
    not_a_face: bool
    decision_id: int | None
    decision_by: str | None
    decision_at: datetime | None
    decision_reason: str | None


@dataclass(frozen=True)
class ReviewedStudent:
    """A student of the class who was not merged into another; hidden: a visitor."""

    id: int
    name: str
    provisional: bool
    hidden: bool
    student_number: str | None


@dataclass(frozen=True)
class ManualMark:
    """What a person says of a student in a session, whatever the photos show."""

    session: str
    student_id: int
    status: str
    note: str | None
    decided_by: str
    decided_at: datetime
    decision_id: int


def read_sessions(connection: Connection, class_id: int) -> dict[int, tuple[str, date | None]]:
    """Name and date of each of the class's sessions, by date and name; the enrolment is left out."""
    rows = connection.execute(
        """SELECT id, name, held_on FROM sessions WHERE class_id = %s AND NOT is_enrolment
        ORDER BY held_on NULLS LAST, name""",
        [class_id],
    )
    return {session_id: (name, held_on) for session_id, name, held_on in rows}


def read_photos(connection: Connection, class_id: int, session_name: str | None = None) -> list[ReviewedPhoto]:
    """The present photos of the class, or of one session, by session date, session and path."""
    with connection.cursor(row_factory=class_row(ReviewedPhoto)) as cursor:
        return cursor.execute(
            """SELECT i.id AS image_id, s.id AS session_id, s.name AS session, s.held_on, s.is_enrolment, i.path,
                i.width, i.height, i.refused_reason, i.searched_with IS NOT NULL AS searched
            FROM images i JOIN sessions s ON s.id = i.session_id
            WHERE s.class_id = %(class)s AND i.removed_at IS NULL
            AND (%(session)s::text IS NULL OR s.name = %(session)s)
            ORDER BY s.is_enrolment, s.held_on NULLS LAST, s.name, i.path, i.id""",
            {"class": class_id, "session": session_name},
        ).fetchall()


def read_faces(
    connection: Connection, class_id: int, model: str, session_name: str | None = None
) -> list[ReviewedFace]:
    """The faces of the usable photos of the class, or of one session, by photo and from left to right."""
    with connection.cursor(row_factory=class_row(ReviewedFace)) as cursor:
        return cursor.execute(
            """SELECT f.id AS crop_id, f.image_id, f.x, f.y, f.width, f.height, f.unusable_reasons, f.crop_path,
                CASE WHEN k.crop_id IS NULL THEN a.state ELSE 'assigned' END AS state,
                coalesce(k.student_id, a.student_id) AS student_id,
                CASE WHEN k.crop_id IS NULL THEN a.decided_by ELSE 'person' END AS decided_by,
                a.cosine_similarity, a.similarity, a.runner_up_id, a.runner_up_cosine_similarity, a.run_id,
                a.decided_at, k.crop_id IS NOT NULL AS confirmed, u.crop_id IS NOT NULL AS taken_off,
                n.crop_id IS NOT NULL AS not_a_face, w.decision_id, w.decided_by AS decision_by,
                w.decided_at AS decision_at, w.reason AS decision_reason
            FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
                AND (%(session)s::text IS NULL OR s.name = %(session)s)
            LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s
            LEFT JOIN confirmed_crops k ON k.crop_id = f.id AND k.class_id = %(class)s
            LEFT JOIN unassigned_crops u ON u.crop_id = f.id AND u.class_id = %(class)s
            LEFT JOIN not_faces n ON n.crop_id = f.id AND n.class_id = %(class)s
            LEFT JOIN latest_words w ON w.crop_id = f.id AND w.class_id = %(class)s
            ORDER BY f.image_id, f.x, f.id""",
            {"class": class_id, "model": model, "session": session_name},
        ).fetchall()


def read_rejections(connection: Connection, crop_ids: Collection[int]) -> dict[int, list[int]]:
    """The students of whom a person has said that a crop does not show them, by crop."""
    rejected: dict[int, list[int]] = defaultdict(list)
    for crop_id, student_id in connection.execute(
        "SELECT crop_id, student_id FROM rejected_students WHERE crop_id = ANY(%s) ORDER BY crop_id, student_id",
        [list(crop_ids)],
    ):
        rejected[crop_id].append(student_id)
    return dict(rejected)


def read_students(connection: Connection, class_id: int) -> list[ReviewedStudent]:
    """The class's students, by name."""
    with connection.cursor(row_factory=class_row(ReviewedStudent)) as cursor:
        return cursor.execute(
            """SELECT id, name, provisional, hidden, student_number FROM students
            WHERE class_id = %s AND merged_into IS NULL ORDER BY name""",
            [class_id],
        ).fetchall()


def read_marks(connection: Connection, class_id: int) -> list[ManualMark]:
    """The attendance that people have set by hand in the class's sessions."""
    with connection.cursor(row_factory=class_row(ManualMark)) as cursor:
        return cursor.execute(
            """SELECT s.name AS session, m.student_id, m.status, m.note, m.decided_by, m.decided_at, m.decision_id
            FROM manual_attendance m JOIN sessions s ON s.id = m.session_id AND s.class_id = %s
            ORDER BY m.decision_id""",
            [class_id],
        ).fetchall()
