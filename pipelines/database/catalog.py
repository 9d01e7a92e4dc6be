"""Classes, sessions, students and photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from psycopg import Connection, sql
from psycopg.errors import LockNotAvailable
from psycopg.rows import class_row

from pipelines.database.confirmations import words_left_behind
from pipelines.errors import AttendanseeError, ClassBusyError, UnknownIdError
from pipelines.partitions import SessionKey


@dataclass(frozen=True)
class Image:
    """A registered photo."""

    id: int
    sha256: str
    path: str
    student_id: int | None
    refused_reason: str | None
    searched_with: str | None


@dataclass(frozen=True)
class SessionRow:
    """A session of a class."""

    id: int
    class_id: int
    name: str
    is_enrolment: bool
    held_on: date | None


def lock_class(connection: Connection, class_id: int, patience_s: float | None = None) -> None:
    """Wait until no other transaction decides about this class's identities; held to the end of the transaction.

    patience_s: raise ClassBusyError after so many seconds of waiting, with 0 at once; None waits for as long as it takes.
    """
    # To PostgreSQL 0 means without end.
    timeout_ms = 0 if patience_s is None else max(1, round(patience_s * 1000))
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{timeout_ms}ms"])
    try:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('attendansee class'), %s)", [class_id])
    except LockNotAvailable as error:
        raise ClassBusyError("The class is being processed by somebody else: try again in a moment.") from error
    # Rows are never held for long; waiting for one must not end in an error of PostgreSQL's own.
    connection.execute("SELECT set_config('lock_timeout', '0', true)")


def find_class(connection: Connection, name: str) -> int:
    """The id of a class; raises AttendanseeError naming the classes there are."""
    row = connection.execute("SELECT id FROM classes WHERE name = %s", [name]).fetchone()
    if row is None:
        known = ", ".join(class_names(connection)) or "none yet"
        raise AttendanseeError(f"There is no class {name!r}: choose one of these ({known}) or run its photos first.")
    return row[0]


def class_names(connection: Connection) -> list[str]:
    """Names of all classes, sorted."""
    return [name for (name,) in connection.execute("SELECT name FROM classes ORDER BY name")]


def adopt_model(connection: Connection, name: str, model: str) -> None:
    """The first model that processes a class is its active one, until somebody switches."""
    connection.execute("UPDATE classes SET active_model = %s WHERE name = %s AND active_model IS NULL", [model, name])


def active_model(connection: Connection, name: str) -> str | None:
    """The model whose attendance counts for the class; None where none has processed it."""
    find_class(connection, name)
    row = connection.execute("SELECT active_model FROM classes WHERE name = %s", [name]).fetchone()
    return row[0] if row else None


def active_models(connection: Connection) -> dict[str, str]:
    """The active model of each class that has one."""
    return dict(connection.execute("SELECT name, active_model FROM classes WHERE active_model IS NOT NULL").fetchall())


def record_photo_root(connection: Connection, name: str, root: str) -> None:
    """Remember where a class's photos lie, for runs that are started without saying so."""
    connection.execute("UPDATE classes SET photo_root = %s WHERE name = %s", [root, name])


def photo_root(connection: Connection, name: str) -> str | None:
    """Where the class's photos were when they were last registered."""
    row = connection.execute("SELECT photo_root FROM classes WHERE name = %s", [name]).fetchone()
    return row[0] if row else None


def ensure_session(connection: Connection, key: SessionKey, held_on: date | None = None) -> SessionRow:
    """The session's row, made with its class where absent; a date given later is filled in."""
    ensure_class(connection, key.class_name)
    connection.execute(
        """INSERT INTO sessions (class_id, name, is_enrolment, held_on)
        SELECT id, %s, %s, %s FROM classes WHERE name = %s
        ON CONFLICT (class_id, name) DO UPDATE SET held_on = excluded.held_on
        WHERE excluded.held_on IS NOT NULL AND sessions.held_on IS DISTINCT FROM excluded.held_on""",
        [key.session_name, key.is_enrolment, held_on, key.class_name],
    )
    return find_session(connection, key)


def class_by_id(connection: Connection, class_id: int) -> str:
    """The name of a class; raises UnknownIdError."""
    row = connection.execute("SELECT name FROM classes WHERE id = %s", [class_id]).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no class {class_id}.")
    return row[0]


def session_by_id(connection: Connection, session_id: int) -> SessionRow:
    """The session's row; raises UnknownIdError."""
    with connection.cursor(row_factory=class_row(SessionRow)) as cursor:
        row = cursor.execute(
            "SELECT id, class_id, name, is_enrolment, held_on FROM sessions WHERE id = %s", [session_id]
        ).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no session {session_id}.")
    return row


def session_of_crop(connection: Connection, crop_id: int) -> SessionRow:
    """The session that a face crop belongs to; raises UnknownIdError where its photo is gone too."""
    row = connection.execute(
        """SELECT i.session_id, i.removed_at IS NULL AND i.refused_reason IS NULL
        FROM face_crops f JOIN images i ON i.id = f.image_id WHERE f.id = %s""",
        [crop_id],
    ).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no face crop {crop_id}.")
    session_id, there = row
    if not there:
        raise UnknownIdError(f"There is no face crop {crop_id} any more: its photo was removed or cannot be used.")
    return session_by_id(connection, session_id)


def class_of_crop(connection: Connection, crop_id: int) -> int:
    """The id of the class that a face crop belongs to; raises UnknownIdError where its photo is gone too."""
    return session_of_crop(connection, crop_id).class_id


def session_ids(connection: Connection, class_id: int) -> list[int]:
    """Ids of all sessions of a class."""
    return [i for (i,) in connection.execute("SELECT id FROM sessions WHERE class_id = %s ORDER BY id", [class_id])]


def ensure_class(connection: Connection, name: str) -> int:
    """The id of the class, made where absent."""
    connection.execute("INSERT INTO classes (name) VALUES (%s) ON CONFLICT DO NOTHING", [name])
    return find_class(connection, name)


def student_names(connection: Connection, class_id: int) -> dict[int, str]:
    """The name of each student of a class."""
    return dict(connection.execute("SELECT id, name FROM students WHERE class_id = %s", [class_id]).fetchall())


def find_session(connection: Connection, key: SessionKey) -> SessionRow:
    """The session's row; raises AttendanseeError where its photos were never registered."""
    with connection.cursor(row_factory=class_row(SessionRow)) as cursor:
        row = cursor.execute(
            """SELECT s.id, s.class_id, s.name, s.is_enrolment, s.held_on
            FROM sessions s JOIN classes c ON c.id = s.class_id WHERE c.name = %s AND s.name = %s""",
            key,
        ).fetchone()
    if row is None:
        raise AttendanseeError(f"The session {key} is not registered: materialise its session_images first.")
    return row


def session_keys(connection: Connection) -> set[SessionKey]:
    """Every registered session, enrolments included."""
    rows = connection.execute("SELECT c.name, s.name FROM sessions s JOIN classes c ON c.id = s.class_id")
    return {SessionKey(class_name, session_name) for class_name, session_name in rows}


def unsearched_sessions(connection: Connection) -> set[SessionKey]:
    """Sessions with a present photo in which nobody has looked for faces."""
    rows = connection.execute(
        """SELECT DISTINCT c.name, s.name FROM images i
        JOIN sessions s ON s.id = i.session_id JOIN classes c ON c.id = s.class_id
        WHERE i.removed_at IS NULL AND i.refused_reason IS NULL AND i.searched_with IS NULL"""
    )
    return {SessionKey(class_name, session_name) for class_name, session_name in rows}


def session_dates(connection: Connection, class_id: int) -> dict[str, date | None]:
    """Names and dates of a class's sessions in the order of dates, then names; the enrolment is left out."""
    rows = connection.execute(
        """SELECT name, held_on FROM sessions WHERE class_id = %s AND NOT is_enrolment
        ORDER BY held_on NULLS LAST, name""",
        [class_id],
    )
    return dict(rows.fetchall())


def named_students(connection: Connection, class_id: int, model: str) -> list[str]:
    """Names of the students that a person has named, sorted; visitors, and who is withdrawn in the lineage, are left out."""
    rows = connection.execute(
        """SELECT name FROM students WHERE class_id = %s AND merged_into IS NULL AND NOT provisional AND NOT hidden
        AND NOT id = ANY(%s) ORDER BY name""",
        [class_id, sorted(withdrawn_student_ids(connection, class_id, model))],
    )
    return [name for (name,) in rows]


def withdrawn_student_ids(connection: Connection, class_id: int, model: str) -> set[int]:
    """Ids of students whose portraits are all gone (removed, or renamed after somebody else) and whom no crop shows.

    A student whom the model's lineage has seen, or whose attendance a person has set, keeps their past attendance there,
    whatever becomes of the portraits, and one whom a roster gives a number or an address is of the class without any.
    What another model has seen does not count: else trying one would change the register.
    """
    rows = connection.execute(
        """WITH present AS (
            SELECT f.id AS crop_id FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
        )
        SELECT st.id FROM students st
        WHERE st.class_id = %(class)s AND st.merged_into IS NULL AND st.student_number IS NULL AND st.email IS NULL
        AND EXISTS (
            SELECT 1 FROM decisions d JOIN students named ON named.id = d.student_id
            WHERE d.decided_by = 'enrolment' AND coalesce(named.merged_into, named.id) = st.id
        )
        AND NOT EXISTS (
            SELECT 1 FROM confirmed_crops c JOIN present USING (crop_id)
            WHERE c.class_id = %(class)s AND c.student_id = st.id
        )
        AND NOT EXISTS (
            SELECT 1 FROM assignments a JOIN present USING (crop_id)
            WHERE a.student_id = st.id AND a.model = %(model)s AND a.decided_by <> 'person'
        )
        AND NOT EXISTS (SELECT 1 FROM manual_attendance m WHERE m.student_id = st.id)""",
        {"class": class_id, "model": model},
    )
    return {student_id for (student_id,) in rows}


def ensure_named_student(connection: Connection, class_id: int, name: str) -> int:
    """The id of the class's student of that name, made where absent; a provisional one of that name is now named.

    A name that nobody has any more is that of the student who had it last, renamed or merged since.
    """
    if student_named(connection, class_id, name) is None:
        former = student_formerly_named(connection, class_id, name)
        if former is not None:
            return former
    connection.execute(
        """INSERT INTO students (class_id, name, provisional) VALUES (%s, %s, false)
        ON CONFLICT (class_id, name) WHERE merged_into IS NULL
        DO UPDATE SET provisional = false, original_provisional = false
        WHERE students.provisional""",
        [class_id, name],
    )
    student_id = student_named(connection, class_id, name)
    assert student_id is not None, "inserted above"
    return student_id


def student_named(connection: Connection, class_id: int, name: str) -> int | None:
    """The id of the class's student who has this name now."""
    row = connection.execute(
        "SELECT id FROM students WHERE class_id = %s AND name = %s AND merged_into IS NULL", [class_id, name]
    ).fetchone()
    return row[0] if row else None


def student_formerly_named(connection: Connection, class_id: int, name: str) -> int | None:
    """The id of the student who had this name last, before being renamed or merged into somebody."""
    row = connection.execute(
        """SELECT coalesce(s.merged_into, s.id) FROM (
            SELECT id AS decision_id, CASE kind WHEN 'merge' THEN other_student_id ELSE student_id END AS student_id
            FROM decisions_in_force WHERE class_id = %(class)s AND kind IN ('rename', 'merge')
            AND old_name = %(name)s AND new_name <> old_name
            UNION ALL
            SELECT d.id, d.student_id FROM decisions_in_force d JOIN students m ON m.id = d.student_id
            WHERE d.class_id = %(class)s AND d.kind = 'merge' AND m.name = %(name)s
        ) had JOIN students s ON s.id = had.student_id
        ORDER BY had.decision_id DESC LIMIT 1""",
        {"class": class_id, "name": name},
    ).fetchone()
    return row[0] if row else None


def portrayed_student(connection: Connection, class_id: int, session_id: int, sha256: str, path: str, name: str) -> int:
    """The id of the student whom the portrait at this path shows, made where absent.

    A registered portrait whose file has not been renamed stays with its student, whoever has the file's name by now.
    """
    row = connection.execute(
        """SELECT coalesce(st.merged_into, st.id) FROM images i JOIN students st ON st.id = i.student_id
        WHERE i.session_id = %s AND i.sha256 = %s AND i.path = %s""",
        [session_id, sha256, path],
    ).fetchone()
    return row[0] if row else ensure_named_student(connection, class_id, name)


def create_provisional_student(
    connection: Connection, class_id: int, class_name: str, session: SessionRow | None = None
) -> int:
    """Make a provisional student with the session's or else the class's next number and return its id.

    The name is `Class_<class>_Session_<session>_Cluster_<n>` or `Class_<class>_Cluster_<n>`; a number whose name a person
    has given to a student is passed over.
    """
    table, of_session = ("classes", "") if session is None else ("sessions", f"_Session_{session.name}")
    query = sql.SQL(
        """WITH numbered AS (
            UPDATE {} SET next_cluster = next_cluster + 1 WHERE id = %s RETURNING next_cluster - 1 AS number
        )
        INSERT INTO students (class_id, name, provisional)
        SELECT %s, %s || number, true FROM numbered ON CONFLICT DO NOTHING RETURNING id"""
    ).format(sql.Identifier(table))
    numbered_id = class_id if session is None else session.id
    while True:
        row = connection.execute(query, [numbered_id, class_id, f"Class_{class_name}{of_session}_Cluster_"]).fetchone()
        if row is not None:
            return row[0]


def nameless_student_ids(connection: Connection, class_id: int) -> set[int]:
    """Ids of the class's students of whom no person has said anything yet, neither a name nor that they are a visitor."""
    rows = connection.execute(
        "SELECT id FROM students WHERE class_id = %s AND provisional AND NOT hidden AND merged_into IS NULL", [class_id]
    )
    return {student_id for (student_id,) in rows}


def delete_empty_provisional_students(connection: Connection, class_id: int, model: str) -> int:
    """Delete provisional students that no crop of a present photo, cluster or decision points at; returns how many.

    One whom another lineage's attendance names stays: a run of this `model` must not change that attendance.
    """
    return connection.execute(
        """DELETE FROM students s WHERE s.class_id = %s AND s.provisional
        AND NOT EXISTS (
            SELECT 1 FROM assignments a JOIN face_crops f ON f.id = a.crop_id
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            WHERE a.student_id = s.id
        )
        AND NOT EXISTS (SELECT 1 FROM clusters c WHERE c.student_id = s.id)
        AND NOT EXISTS (SELECT 1 FROM decisions d WHERE s.id IN (d.student_id, d.other_student_id))
        AND NOT EXISTS (SELECT 1 FROM students m WHERE m.merged_into = s.id)
        AND NOT EXISTS (SELECT 1 FROM images i WHERE i.student_id = s.id)
        AND NOT EXISTS (SELECT 1 FROM attendance t WHERE t.student_id = s.id AND t.model <> %s)""",
        [class_id, model],
    ).rowcount


def session_images(connection: Connection, session_id: int) -> list[Image]:
    """The session's photos that are still in the photo root, by path."""
    with connection.cursor(row_factory=class_row(Image)) as cursor:
        return cursor.execute(
            """SELECT id, sha256, path, student_id, refused_reason, searched_with FROM images
            WHERE session_id = %s AND removed_at IS NULL ORDER BY path""",
            [session_id],
        ).fetchall()


def known_hashes(connection: Connection, session_id: int) -> set[str]:
    """Content hashes of all photos the session ever had."""
    return {h for (h,) in connection.execute("SELECT sha256 FROM images WHERE session_id = %s", [session_id])}


def register_image(
    connection: Connection,
    session_id: int,
    *,
    sha256: str,
    path: str,
    size_bytes: int,
    width: int | None,
    height: int | None,
    taken_at: datetime | None,
    refused_reason: str | None,
) -> None:
    """Register one photo by its content; one that is registered already gets what reading it again has found."""
    connection.execute(
        """INSERT INTO images (session_id, sha256, path, size_bytes, width, height, taken_at, refused_reason)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (session_id, sha256) DO UPDATE SET
            width = excluded.width, height = excluded.height, taken_at = excluded.taken_at,
            refused_reason = excluded.refused_reason""",
        [session_id, sha256, path, size_bytes, width, height, taken_at, refused_reason],
    )


def place_image(connection: Connection, session_id: int, sha256: str, path: str, student_id: int | None) -> None:
    """Say where a registered photo lies now and whose portrait it is; one that was removed is back."""
    connection.execute(
        """UPDATE images SET path = %(path)s, student_id = %(student)s, removed_at = NULL
        WHERE session_id = %(session)s AND sha256 = %(sha256)s
        AND (path, student_id, removed_at) IS DISTINCT FROM (%(path)s, %(student)s::bigint, NULL::timestamptz)""",
        {"path": path, "student": student_id, "session": session_id, "sha256": sha256},
    )


def refused_hashes(connection: Connection, session_id: int) -> set[str]:
    """Content hashes of the session's photos that were refused."""
    rows = connection.execute(
        "SELECT sha256 FROM images WHERE session_id = %s AND refused_reason IS NOT NULL", [session_id]
    )
    return {sha256 for (sha256,) in rows}


def mark_removed(connection: Connection, session_id: int, hashes: list[str]) -> int:
    """Mark the session's photos of these content hashes as removed; returns how many were newly marked."""
    return connection.execute(
        "UPDATE images SET removed_at = now() WHERE session_id = %s AND removed_at IS NULL AND sha256 = ANY(%s)",
        [session_id, hashes],
    ).rowcount


def date_session_by_its_photos(connection: Connection, session_id: int) -> None:
    """Date a session by the earliest EXIF date of its present photos; without any it has no date."""
    connection.execute(
        """UPDATE sessions s SET held_on = photos.day FROM (
            SELECT min(taken_at)::date AS day FROM images WHERE session_id = %(session)s AND removed_at IS NULL
        ) photos WHERE s.id = %(session)s AND s.held_on IS DISTINCT FROM photos.day""",
        {"session": session_id},
    )


def refuse_image(connection: Connection, image_id: int, reason: str) -> None:
    """Record why a photo cannot be used."""
    connection.execute("UPDATE images SET refused_reason = %s WHERE id = %s", [reason, image_id])


def record_remarks(connection: Connection, session_id: int, remarks: Sequence[str]) -> None:
    """Keep the sentences about a session's files that no photo's row can say, in place of the earlier ones."""
    connection.execute("UPDATE sessions SET remarks = %s WHERE id = %s", [list(remarks), session_id])


def file_remarks(connection: Connection, class_name: str) -> list[str]:
    """What people should know of a class's photos.

    Why some cannot be used, which may lie in the wrong place, and of which what people said does not count any more.
    """
    rows = connection.execute(
        """WITH present AS (
            SELECT i.*, s.is_enrolment FROM images i
            JOIN sessions s ON s.id = i.session_id JOIN classes c ON c.id = s.class_id
            WHERE c.name = %(class)s AND i.removed_at IS NULL
        )
        SELECT remark FROM (
            SELECT 1 AS part, refused_reason AS remark, path AS place FROM present WHERE refused_reason IS NOT NULL
            UNION ALL
            SELECT 2, st.name || ' has no portrait that can be used, so nobody is recognised as ' || st.name
                || ': add one, or name a face by hand.', st.name
            FROM students st JOIN present p ON p.student_id = st.id
            WHERE st.merged_into IS NULL
            AND NOT EXISTS (SELECT 1 FROM confirmed_crops c WHERE c.student_id = st.id)
            AND NOT EXISTS (
                SELECT 1 FROM assignments a JOIN face_crops f ON f.id = a.crop_id
                JOIN present q ON q.id = f.image_id AND q.refused_reason IS NULL WHERE a.student_id = st.id
            )
            GROUP BY st.id HAVING bool_and(p.refused_reason IS NOT NULL)
            UNION ALL
            SELECT 3, remark, s.name FROM classes c JOIN sessions s ON s.class_id = c.id, unnest(s.remarks) AS remark
            WHERE c.name = %(class)s
            UNION ALL
            SELECT 4, string_agg(path, ' and ' ORDER BY path)
                || ' are one photo, which counts in each session: remove it where it does not belong.', min(path)
            FROM present WHERE NOT is_enrolment AND refused_reason IS NULL GROUP BY sha256 HAVING count(*) > 1
        ) remarks ORDER BY part, place""",
        {"class": class_name},
    ).fetchall()
    return [*(remark for (remark,) in rows), *words_left_behind(connection, class_name).values()]
