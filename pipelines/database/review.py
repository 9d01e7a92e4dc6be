"""What a person looks at of a class: photos, the faces in them, who they show and who says so."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

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
    not_a_face, of a part the decision that it is part of; confirmed: whether it says who the crop shows. found_*: the
    student for whom the run took it, where people say something else, in which state, by what, when, and how similar.
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
    found_id: int | None
    found_state: str | None
    found_by: str | None
    found_at: datetime | None
    found_similarity: float | None


@dataclass(frozen=True)
class Rejection:
    """The last time that a person has said of a crop that it does not show a student."""

    crop_id: int
    student_id: int
    decision_id: int
    decided_by: str
    decided_at: datetime
    reason: str | None


@dataclass(frozen=True)
class TakenBack:
    """What a person has said of who a crop shows, or of a student in a session, and that does not count any more.

    student_id: None where it said that the crop shows nobody. status: of a mark of attendance.
    """

    kind: str
    crop_id: int | None
    session_id: int | None
    student_id: int | None
    status: str | None
    decided_by: str
    decided_at: datetime
    reason: str | None
    undone_by: str
    undone_at: datetime
    undo_reason: str | None


@dataclass(frozen=True)
class AttendanceWord:
    """What a person has set a student to in a session; without a status that the photos count."""

    session_id: int
    student_id: int
    status: str | None
    decided_by: str
    decided_at: datetime
    reason: str | None


@dataclass(frozen=True)
class AppliedPlan:
    """A plan of clustering a class anew that a person has applied; moved, attendance: of its changes, with names of then."""

    id: int
    applied_by: str
    applied_at: datetime
    reason: str | None
    moved: list[dict[str, Any]]
    attendance: list[dict[str, Any]]


@dataclass(frozen=True)
class StudentWord:
    """A rename, merge, split or hide; other_student_id: of a merge who was kept, of a split the new student.

    crops: how many face crops it gives to the student. undone_*: of the undo by which it does not count.
    """

    id: int
    kind: str
    student_id: int
    other_student_id: int | None
    old_name: str | None
    new_name: str | None
    crops: int
    decided_by: str
    decided_at: datetime
    reason: str | None
    undone_by: str | None
    undone_at: datetime | None
    undo_reason: str | None


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
                n.crop_id IS NOT NULL AS not_a_face, coalesce(part.part_of, w.decision_id) AS decision_id,
                w.decided_by AS decision_by, w.decided_at AS decision_at,
                coalesce(w.reason, whole.reason) AS decision_reason, coalesce(found.merged_into, found.id) AS found_id,
                d.state AS found_state, d.decided_by AS found_by, d.decided_at AS found_at,
                d.similarity AS found_similarity
            FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
                AND (%(session)s::text IS NULL OR s.name = %(session)s)
            LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s
            LEFT JOIN confirmed_crops k ON k.crop_id = f.id AND k.class_id = %(class)s
            LEFT JOIN unassigned_crops u ON u.crop_id = f.id AND u.class_id = %(class)s
            LEFT JOIN not_faces n ON n.crop_id = f.id AND n.class_id = %(class)s
            LEFT JOIN latest_words w ON w.crop_id = f.id AND w.class_id = %(class)s
            LEFT JOIN decisions part ON part.id = w.decision_id
            LEFT JOIN decisions whole ON whole.id = part.part_of
            LEFT JOIN displaced_assignments d ON d.crop_id = f.id AND d.model = %(model)s
            LEFT JOIN students found ON found.id = d.student_id
            ORDER BY f.image_id, f.x, f.id""",
            {"class": class_id, "model": model, "session": session_name},
        ).fetchall()


def read_rejections(connection: Connection, crop_ids: Collection[int]) -> dict[int, list[Rejection]]:
    """What people have said of whom a crop does not show, as far as it counts, by crop."""
    rejected: dict[int, list[Rejection]] = defaultdict(list)
    with connection.cursor(row_factory=class_row(Rejection)) as cursor:
        cursor.execute(
            """SELECT DISTINCT ON (r.crop_id, r.student_id) r.crop_id, r.student_id, d.id AS decision_id, d.decided_by,
                d.decided_at, d.reason
            FROM rejected_students r JOIN students s ON coalesce(s.merged_into, s.id) = r.student_id
            JOIN decisions_in_force d ON (d.crop_id, d.student_id) = (r.crop_id, s.id) AND d.kind = 'not_this_student'
            WHERE r.crop_id = ANY(%s) ORDER BY r.crop_id, r.student_id, d.id DESC""",
            [list(crop_ids)],
        )
        for rejection in cursor:
            rejected[rejection.crop_id].append(rejection)
    return dict(rejected)


def read_taken_back(connection: Connection, class_id: int) -> list[TakenBack]:
    """What people have said of crops, and of students in sessions, and what another word has undone, by id."""
    with connection.cursor(row_factory=class_row(TakenBack)) as cursor:
        return cursor.execute(
            """SELECT d.kind, d.crop_id, d.session_id, coalesce(s.merged_into, s.id) AS student_id, d.status, d.decided_by,
                d.decided_at, whole.reason, u.decided_by AS undone_by, u.decided_at AS undone_at, u.reason AS undo_reason
            FROM decisions d JOIN decisions whole ON whole.id = coalesce(d.part_of, d.id)
            JOIN undone_decisions gone ON gone.id = whole.id
            CROSS JOIN LATERAL (SELECT decided_by, decided_at, reason FROM decisions
                WHERE undoes = whole.id AND NOT is_undone(id) ORDER BY id DESC LIMIT 1) u
            LEFT JOIN students s ON s.id = d.student_id
            WHERE d.class_id = %s AND (d.crop_id IS NOT NULL OR d.kind = 'attendance') AND whole.kind <> 'merge'
            ORDER BY d.id""",
            [class_id],
        ).fetchall()


def read_attendance_words(connection: Connection, class_id: int) -> list[AttendanceWord]:
    """All that people have set students to in sessions and that nobody has undone, by id: of a cell the last one counts."""
    with connection.cursor(row_factory=class_row(AttendanceWord)) as cursor:
        return cursor.execute(
            """SELECT d.session_id, coalesce(s.merged_into, s.id) AS student_id, d.status, d.decided_by, d.decided_at,
                d.reason
            FROM decisions_in_force d JOIN students s ON s.id = d.student_id
            WHERE d.class_id = %s AND d.kind = 'attendance' ORDER BY d.id""",
            [class_id],
        ).fetchall()


def read_applied_plans(connection: Connection, class_id: int, model: str) -> list[AppliedPlan]:
    """The plans of clustering the class anew that people have applied in the model's lineage, the first applied first."""
    with connection.cursor(row_factory=class_row(AppliedPlan)) as cursor:
        return cursor.execute(
            """SELECT id, applied_by, applied_at, reason, changes->'moved' AS moved, changes->'attendance' AS attendance
            FROM reclustering_plans WHERE class_id = %s AND model = %s AND applied_at IS NOT NULL
            ORDER BY applied_at, id""",
            [class_id, model],
        ).fetchall()


def read_student_words(connection: Connection, class_id: int) -> list[StudentWord]:
    """What people have said of the class's students, what was undone too, by id."""
    with connection.cursor(row_factory=class_row(StudentWord)) as cursor:
        return cursor.execute(
            """SELECT d.id, d.kind, d.student_id, d.other_student_id, d.old_name, d.new_name, d.decided_by, d.decided_at,
                d.reason, (SELECT count(*) FROM decisions p WHERE p.part_of = d.id AND p.kind = 'assign') AS crops,
                u.decided_by AS undone_by, u.decided_at AS undone_at, u.reason AS undo_reason
            FROM decisions d LEFT JOIN LATERAL (SELECT decided_by, decided_at, reason FROM decisions
                WHERE undoes = d.id AND NOT is_undone(id) ORDER BY id DESC LIMIT 1) u ON true
            WHERE d.class_id = %s AND d.kind IN ('rename', 'merge', 'split', 'hide') AND d.part_of IS NULL
            ORDER BY d.id""",
            [class_id],
        ).fetchall()


def read_origins(connection: Connection, class_id: int, model: str) -> dict[int, int]:
    """Whom a crop was found to show, by crop, where that student was merged into another one since.

    By what the run found, or by what the crop's cluster remembers; after a later run it may be that neither does.
    """
    rows = connection.execute(
        """SELECT DISTINCT ON (crop_id) crop_id, student_id FROM (
            SELECT d.crop_id, d.student_id, 1 AS place FROM displaced_assignments d WHERE d.model = %(model)s
            UNION ALL SELECT m.crop_id, c.student_id, CASE WHEN c.session_id IS NULL THEN 3 ELSE 2 END
            FROM clusters c JOIN cluster_members m ON m.cluster_id = c.id
            WHERE c.class_id = %(class)s AND c.model = %(model)s
        ) origin JOIN students s ON s.id = origin.student_id
        WHERE s.class_id = %(class)s AND s.merged_into IS NOT NULL ORDER BY crop_id, place""",
        {"class": class_id, "model": model},
    )
    return dict(rows.fetchall())


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
