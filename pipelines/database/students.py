"""Students: what a roster and people say of them, who was merged into whom."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, sql
from psycopg.rows import class_row, dict_row

from pipelines.errors import UnknownIdError


@dataclass(frozen=True)
class Student:
    """A student of a class who was not merged into another one. hidden: a visitor, as a person has said."""

    id: int
    class_id: int
    name: str
    provisional: bool
    hidden: bool
    student_number: str | None
    email: str | None


@dataclass(frozen=True)
class StudentState:
    """What follows of a student from decisions."""

    name: str
    provisional: bool
    merged_into: int | None = None
    hidden: bool = False


def find_student(connection: Connection, student_id: int) -> Student:
    """The student of this id, or whom that one was merged into; raises UnknownIdError."""
    with connection.cursor(row_factory=class_row(Student)) as cursor:
        row = cursor.execute(
            """SELECT kept.id, kept.class_id, kept.name, kept.provisional, kept.hidden, kept.student_number, kept.email
            FROM students s JOIN students kept ON kept.id = coalesce(s.merged_into, s.id) WHERE s.id = %s""",
            [student_id],
        ).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no student {student_id}.")
    return row


def student_numbered(connection: Connection, class_id: int, student_number: str) -> int | None:
    """The id of the class's student with this number, of one who was merged where nobody else has it."""
    row = connection.execute(
        """SELECT id FROM students WHERE class_id = %s AND student_number = %s
        ORDER BY merged_into IS NULL DESC, id DESC LIMIT 1""",
        [class_id, student_number],
    ).fetchone()
    return row[0] if row else None


def former_names(connection: Connection, student_id: int) -> set[str]:
    """Names that the student had before, those of the students who were merged into them included."""
    rows = connection.execute(
        """SELECT m.name FROM students m JOIN decisions_in_force d ON d.kind = 'merge' AND d.student_id = m.id
        WHERE m.merged_into = %(student)s
        UNION SELECT d.old_name FROM decisions_in_force d
        JOIN students s ON s.id = CASE d.kind WHEN 'merge' THEN d.other_student_id ELSE d.student_id END
        WHERE d.kind IN ('rename', 'merge') AND %(student)s IN (s.id, s.merged_into) AND d.old_name IS NOT NULL""",
        {"student": student_id},
    )
    return {name for (name,) in rows}


def merged_names(connection: Connection, student_id: int) -> set[str]:
    """Names of the students who were merged into this one."""
    rows = connection.execute("SELECT name FROM students WHERE merged_into = %s", [student_id])
    return {name for (name,) in rows}


def add_student(connection: Connection, class_id: int, name: str, student_number: str | None, email: str | None) -> int:
    """Add a named student whose name and number nobody else in the class has; returns the id."""
    row = connection.execute(
        """INSERT INTO students (class_id, name, provisional, student_number, email)
        VALUES (%s, %s, false, %s, %s) RETURNING id""",
        [class_id, name, student_number, email],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def update_student(connection: Connection, student_id: int, **columns: Any) -> None:
    """Set columns of a student that do not follow from decisions: student_number, email."""
    assignments = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(column)) for column in columns)
    connection.execute(
        sql.SQL("UPDATE students SET {} WHERE id = %s").format(assignments), [*columns.values(), student_id]
    )


def keep_originals(connection: Connection, student_ids: Collection[int]) -> None:
    """Keep what the students are before the first decision about them, for their states follow from it."""
    connection.execute(
        """UPDATE students SET original_name = name, original_provisional = provisional
        WHERE id = ANY(%s) AND original_name IS NULL""",
        [list(student_ids)],
    )


def read_states(connection: Connection, class_id: int) -> tuple[dict[int, StudentState], dict[int, StudentState]]:
    """The students of the class by id: as they are, and as they were before any decision."""
    rows = connection.execute(
        """SELECT id, name, provisional, merged_into, hidden, coalesce(original_name, name),
            coalesce(original_provisional, provisional)
        FROM students WHERE class_id = %s ORDER BY id""",
        [class_id],
    ).fetchall()
    current = {row[0]: StudentState(*row[1:5]) for row in rows}
    return current, {row[0]: StudentState(*row[5:]) for row in rows}


def write_states(connection: Connection, states: Mapping[int, StudentState]) -> None:
    """Make these the students' states; no two of a class that are not merged have one name afterwards."""
    if not states:
        return
    # Two who swap their names, or of whom one takes the other's, would have one name for a moment, which the index
    # refuses. No person can give a name with a control character.
    connection.execute("UPDATE students SET name = E'\\x01' || id WHERE id = ANY(%s)", [list(states)])
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE students SET name = %s, provisional = %s, merged_into = %s, hidden = %s WHERE id = %s",
            [(state.name, state.provisional, state.merged_into, state.hidden, i) for i, state in states.items()],
        )


def take_number_and_email(connection: Connection, student_id: int, from_student_id: int) -> None:
    """Give a student the roster number and address of the one who was merged into them, where they have none."""
    connection.execute(
        """UPDATE students kept SET student_number = coalesce(kept.student_number, merged.student_number),
            email = coalesce(kept.email, merged.email)
        FROM students merged WHERE kept.id = %s AND merged.id = %s""",
        [student_id, from_student_id],
    )


def give_back_number_and_email(connection: Connection, student_id: int, to_student_id: int) -> None:
    """Undo `take_number_and_email`: what both have is that of the one who was merged."""
    connection.execute(
        """UPDATE students kept SET student_number = nullif(kept.student_number, merged.student_number),
            email = nullif(kept.email, merged.email)
        FROM students merged WHERE kept.id = %s AND merged.id = %s""",
        [student_id, to_student_id],
    )


def read_merge_targets(connection: Connection, class_id: int) -> set[int]:
    """Ids of the students whom others were merged into."""
    rows = connection.execute(
        "SELECT DISTINCT merged_into FROM students WHERE class_id = %s AND merged_into IS NOT NULL", [class_id]
    )
    return {student_id for (student_id,) in rows}


def list_students(connection: Connection, class_id: int) -> list[dict[str, Any]]:
    """Every student of the class: id, name, provisional, hidden, student_number, email, crops and sessions_present.

    Unknown people whom only another model's lineage has made are none of them. A crop shows whom a person has confirmed,
    else whom the class's active model has assigned; sessions count in that model's lineage. Named students first, each
    part by name.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            """WITH shown AS (
                SELECT coalesce(k.student_id, a.student_id) AS student_id, count(*) AS crops
                FROM classes c JOIN sessions s ON s.class_id = c.id
                JOIN images i ON i.session_id = s.id AND i.removed_at IS NULL AND i.refused_reason IS NULL
                JOIN face_crops f ON f.image_id = i.id
                LEFT JOIN confirmed_crops k ON k.crop_id = f.id AND k.class_id = c.id
                LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = c.active_model AND a.state = 'assigned'
                WHERE c.id = %(class)s GROUP BY 1
            )
            SELECT st.id, st.name, st.provisional, st.hidden, st.student_number, st.email,
                coalesce(shown.crops, 0) AS crops,
                (SELECT count(*) FROM attendance t
                    WHERE t.student_id = st.id AND t.model = c.active_model AND t.status = 'present'
                ) AS sessions_present
            FROM students st JOIN classes c ON c.id = st.class_id LEFT JOIN shown ON shown.student_id = st.id
            WHERE st.class_id = %(class)s AND st.merged_into IS NULL
            AND st.id NOT IN (
                SELECT student_id FROM students_of_other_lineages WHERE class_id = %(class)s
                UNION ALL SELECT student_id FROM emptied_students WHERE class_id = %(class)s
            )
            ORDER BY st.provisional, st.name, st.id""",
            {"class": class_id},
        ).fetchall()
