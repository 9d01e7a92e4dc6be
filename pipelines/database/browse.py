"""Reads for whoever looks around: classes, sessions, photos, face crops and students, page by page or one by its id."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.rows import dict_row

Row = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """A part of a list in the order of ids; total: the length of the whole list."""

    total: int
    rows: list[Row]


_CLASSES: str = """
    SELECT c.id, c.name, c.active_model,
        (SELECT count(*) FROM sessions s WHERE s.class_id = c.id AND NOT s.is_enrolment) AS session_count,
        (SELECT count(*) FROM students t WHERE t.class_id = c.id AND t.merged_into IS NULL)
            - (SELECT count(*) FROM students_of_other_lineages o WHERE o.class_id = c.id)
            - (SELECT count(*) FROM emptied_students e WHERE e.class_id = c.id) AS student_count
    FROM classes c
    WHERE (%(id)s::bigint IS NULL OR c.id = %(id)s)"""

_SESSIONS: str = """
    SELECT s.id, s.class_id, s.name, s.is_enrolment, s.held_on,
        (SELECT count(*) FROM images i WHERE i.session_id = s.id AND i.removed_at IS NULL) AS image_count,
        (SELECT count(*) FROM face_crops f JOIN images i ON i.id = f.image_id
            WHERE i.session_id = s.id AND i.removed_at IS NULL AND i.refused_reason IS NULL) AS face_crop_count
    FROM sessions s
    WHERE (%(id)s::bigint IS NULL OR s.id = %(id)s) AND (%(class_id)s::bigint IS NULL OR s.class_id = %(class_id)s)"""

_IMAGES: str = """
    SELECT i.id, i.session_id, s.class_id, i.path, i.width, i.height, i.size_bytes, i.taken_at,
        coalesce(st.merged_into, st.id) AS student_id, i.refused_reason, i.searched_with IS NOT NULL AS searched,
        CASE WHEN i.refused_reason IS NULL THEN (SELECT count(*) FROM face_crops f WHERE f.image_id = i.id) ELSE 0 END
            AS face_crop_count
    FROM images i JOIN sessions s ON s.id = i.session_id LEFT JOIN students st ON st.id = i.student_id
    WHERE i.removed_at IS NULL AND (%(id)s::bigint IS NULL OR i.id = %(id)s)
        AND (%(session_id)s::bigint IS NULL OR i.session_id = %(session_id)s)"""

# Who a crop shows: what a person has confirmed, else the assignment by the class's active model.
_ALL_CROPS: str = """
    SELECT f.id, f.image_id, i.session_id, s.class_id, f.x, f.y, f.width, f.height, f.confidence, f.sharpness, f.yaw,
        f.usable, f.unusable_reasons, f.crop_path, st.id AS student_id, st.name AS student_name, st.provisional,
        k.crop_id IS NOT NULL AS confirmed, CASE WHEN k.crop_id IS NULL THEN a.state ELSE 'assigned' END AS state,
        CASE WHEN k.crop_id IS NULL THEN a.decided_by ELSE 'person' END AS decided_by, a.similarity, a.cosine_similarity,
        ca.id AS candidate_id, ca.name AS candidate_name
    FROM face_crops f
    JOIN images i ON i.id = f.image_id
    JOIN sessions s ON s.id = i.session_id
    JOIN classes c ON c.id = s.class_id
    LEFT JOIN confirmed_crops k ON k.crop_id = f.id AND k.class_id = s.class_id
    LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = c.active_model
    LEFT JOIN students st ON st.id = coalesce(k.student_id, CASE WHEN a.state = 'assigned' THEN a.student_id END)
    LEFT JOIN students ca ON ca.id = a.student_id AND a.state = 'needs_review' AND k.crop_id IS NULL
    WHERE (%(id)s::bigint IS NULL OR f.id = %(id)s)
        AND (%(class_id)s::bigint IS NULL OR s.class_id = %(class_id)s)
        AND (%(session_id)s::bigint IS NULL OR i.session_id = %(session_id)s)
        AND (%(image_id)s::bigint IS NULL OR f.image_id = %(image_id)s)
        AND (%(student_id)s::bigint IS NULL OR st.id = %(student_id)s)
        AND (%(identified)s::boolean IS NULL OR (st.id IS NOT NULL) = %(identified)s)"""
_CROPS: str = f"{_ALL_CROPS} AND i.removed_at IS NULL AND i.refused_reason IS NULL"

_STUDENTS: str = """
    SELECT t.id, t.class_id, t.name, t.provisional, t.hidden, t.student_number, t.email
    FROM students t
    WHERE t.merged_into IS NULL AND (%(id)s::bigint IS NULL OR t.id = %(id)s)
        AND (%(id)s::bigint IS NOT NULL OR t.id NOT IN (
            SELECT student_id FROM students_of_other_lineages UNION ALL SELECT student_id FROM emptied_students
        ))
        AND (%(class_id)s::bigint IS NULL OR t.class_id = %(class_id)s)
        AND (%(provisional)s::boolean IS NULL OR t.provisional = %(provisional)s)"""


def classes(connection: Connection, limit: int, offset: int) -> Page:
    """All classes."""
    return _page(connection, _CLASSES, {}, limit, offset)


def class_row(connection: Connection, class_id: int) -> Row | None:
    """One class."""
    return _one(connection, _CLASSES, {"id": class_id})


def sessions(connection: Connection, limit: int, offset: int, *, class_id: int | None = None) -> Page:
    """Sessions of one class or of all; the enrolment, which holds the portraits, is one of them."""
    return _page(connection, _SESSIONS, {"class_id": class_id}, limit, offset)


def session_row(connection: Connection, session_id: int) -> Row | None:
    """One session."""
    return _one(connection, _SESSIONS, {"id": session_id, "class_id": None})


def images(connection: Connection, limit: int, offset: int, *, session_id: int | None = None) -> Page:
    """Photos that are still in the photo root; those that cannot be used carry the reason."""
    return _page(connection, _IMAGES, {"session_id": session_id}, limit, offset)


def image_row(connection: Connection, image_id: int) -> Row | None:
    """One photo."""
    return _one(connection, _IMAGES, {"id": image_id, "session_id": None})


def face_crops(
    connection: Connection,
    limit: int,
    offset: int,
    *,
    class_id: int | None = None,
    session_id: int | None = None,
    image_id: int | None = None,
    student_id: int | None = None,
    identified: bool | None = None,
) -> Page:
    """Face crops of photos that are there and usable, with who they show."""
    filters = {
        **{"class_id": class_id, "session_id": session_id, "image_id": image_id},
        **{"student_id": student_id, "identified": identified},
    }
    return _page(connection, _CROPS, filters, limit, offset)


def face_crop_row(connection: Connection, crop_id: int, *, of_removed_too: bool = False) -> Row | None:
    """One face crop, with who it shows; of_removed_too: of a photo that was removed or refused as well."""
    filters = dict.fromkeys(("class_id", "session_id", "image_id", "student_id", "identified"))
    return _one(connection, _ALL_CROPS if of_removed_too else _CROPS, {**filters, "id": crop_id})


def students(
    connection: Connection, limit: int, offset: int, *, class_id: int | None = None, provisional: bool | None = None
) -> Page:
    """Students who were not merged into another, without the unknown people whom only another model's lineage has made."""
    page = _page(connection, _STUDENTS, {"class_id": class_id, "provisional": provisional}, limit, offset)
    return Page(page.total, _with_counts(connection, page.rows))


def student_row(connection: Connection, student_id: int) -> Row | None:
    """One student who was not merged into another."""
    row = _one(connection, _STUDENTS, {"id": student_id, "class_id": None, "provisional": None})
    return _with_counts(connection, [row])[0] if row else None


def merged_into(connection: Connection, student_id: int) -> int | None:
    """The student that one was merged into; None for a student who was not, or is not there."""
    row = connection.execute("SELECT merged_into FROM students WHERE id = %s", [student_id]).fetchone()
    return row[0] if row else None


def class_names_of_crops(connection: Connection, crop_ids: Sequence[int]) -> set[str]:
    """Names of the classes that these face crops belong to."""
    rows = connection.execute(
        """SELECT DISTINCT c.name FROM face_crops f JOIN images i ON i.id = f.image_id
        JOIN sessions s ON s.id = i.session_id JOIN classes c ON c.id = s.class_id WHERE f.id = ANY(%s)""",
        [list(crop_ids)],
    )
    return {name for (name,) in rows}


def class_names_of_student(connection: Connection, student_id: int) -> set[str]:
    """The name of the student's class; empty where there is no such student."""
    rows = connection.execute(
        "SELECT c.name FROM students t JOIN classes c ON c.id = t.class_id WHERE t.id = %s", [student_id]
    )
    return {name for (name,) in rows}


def class_names_of_session(connection: Connection, session_id: int) -> set[str]:
    """The name of the session's class; empty where there is no such session."""
    rows = connection.execute(
        "SELECT c.name FROM sessions s JOIN classes c ON c.id = s.class_id WHERE s.id = %s", [session_id]
    )
    return {name for (name,) in rows}


def class_names_of_decision(connection: Connection, decision_id: int) -> set[str]:
    """The name of the class that the decision is about; empty where there is no such decision."""
    rows = connection.execute(
        "SELECT c.name FROM decisions d JOIN classes c ON c.id = d.class_id WHERE d.id = %s", [decision_id]
    )
    return {name for (name,) in rows}


def _with_counts(connection: Connection, rows: Sequence[Row]) -> list[Row]:
    """The students with the number of their crops."""
    nothing = dict.fromkeys(("id", "session_id", "image_id", "student_id", "identified"))
    counts: dict[int, int] = {}
    for class_id in {row["class_id"] for row in rows}:
        counts |= dict(
            connection.execute(
                f"""SELECT student_id, count(*) FROM ({_CROPS}) crops
                WHERE student_id = ANY(%(ids)s) GROUP BY student_id""",  # noqa: S608 - only a constant is put in
                {**nothing, "class_id": class_id, "ids": [row["id"] for row in rows]},
            ).fetchall()
        )
    return [{**row, "face_crop_count": counts.get(row["id"], 0)} for row in rows]


def _page(connection: Connection, query: str, filters: Row, limit: int, offset: int) -> Page:
    parameters = {**filters, "id": None, "limit": limit, "offset": offset}
    count = f"SELECT count(*) FROM ({query}) q"  # noqa: S608 - only constants are put in
    total = connection.execute(count, parameters).fetchone()
    assert total is not None, "count(*) gives one row"
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(f"{query} ORDER BY id LIMIT %(limit)s OFFSET %(offset)s", parameters).fetchall()
    return Page(total[0], rows)


def _one(connection: Connection, query: str, filters: Row) -> Row | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, filters).fetchone()
