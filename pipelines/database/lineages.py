"""One model's lineage of a class beside another's: how far it reaches, what it answers, which one counts since when."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from psycopg import Connection, sql
from psycopg.rows import class_row

from pipelines.database.crops import embeddings_table
from pipelines.database.identities import DecidedBy, State


@dataclass(frozen=True)
class SessionState:
    """How far a model's lineage has got with one session that has a photo which is there and can be used, or had one.

    crops: of these photos; embedded: those with a vector of the version asked for; bare: usable ones without. assigned_at:
    when the lineage last decided who they are; attendance that counts was decided, by whatever operation. changed_at: when the latest photo, face or vector came or went.
    registered: there is attendance in this lineage; counted: in the class's active one. contradicted: that attendance is
    not what the assignments say.
    """

    id: int
    name: str
    is_enrolment: bool
    crops: int
    embedded: int
    bare: int
    assigned_at: datetime | None
    changed_at: datetime | None
    registered: bool
    counted: bool
    contradicted: bool


class Place(NamedTuple):
    """Where a crop was seen."""

    session_id: int
    session: str
    image_id: int
    path: str
    is_enrolment: bool


class StoredAnswer(NamedTuple):
    """What a lineage has stored about a crop; similarity on the calibrated scale."""

    state: State
    student_id: int | None
    decided_by: DecidedBy
    similarity: float | None


class Confirmation(NamedTuple):
    """Whom a crop shows, as a person has said, and since when."""

    student_id: int
    decided_at: datetime


@dataclass(frozen=True)
class Switch:
    """A switch of a class's active model: who made it and why, and what they put up with.

    accepted_crops: confirmed ones that the new model took for somebody else. missing_sessions: that it had not covered.
    """

    switched_at: datetime
    old_model: str
    new_model: str
    switched_by: str
    reason: str
    accepted_crops: list[int]
    missing_sessions: list[str]


class Deleted(NamedTuple):
    """Rows that a lineage consisted of."""

    vectors: int
    clusters: int
    assignments: int
    attendance: int


def mark_assigned(connection: Connection, session_id: int, model: str) -> None:
    """Note that the lineage decides, in this transaction, who the session's faces are."""
    connection.execute(
        """INSERT INTO lineage_sessions (session_id, model) VALUES (%s, %s)
        ON CONFLICT (session_id, model) DO UPDATE SET assigned_at = excluded.assigned_at""",
        [session_id, model],
    )


def mark_counted(connection: Connection, class_id: int, model: str) -> None:
    """Note every session whose attendance counted until now as decided: single operations may have made it."""
    connection.execute(
        """INSERT INTO lineage_sessions (session_id, model)
        SELECT DISTINCT t.session_id, t.model FROM attendance t JOIN sessions s ON s.id = t.session_id
        WHERE s.class_id = %s AND t.model = %s ON CONFLICT DO NOTHING""",
        [class_id, model],
    )


def models_of_class(connection: Connection, class_name: str) -> set[str]:
    """The models that have processed a session of the class."""
    rows = connection.execute(
        """SELECT DISTINCT l.model FROM lineage_sessions l JOIN sessions s ON s.id = l.session_id
        JOIN classes c ON c.id = s.class_id WHERE c.name = %s""",
        [class_name],
    )
    return {model for (model,) in rows}


def session_states(
    connection: Connection, class_id: int, model: str, version: str, withdrawn: Collection[int]
) -> list[SessionState]:
    """How far the lineage has got with each session of the class, by name; `withdrawn` students have no attendance."""
    query = sql.SQL(
        """WITH photos AS (
            SELECT i.id, i.session_id FROM images i JOIN sessions s ON s.id = i.session_id
            WHERE s.class_id = %(class)s AND i.removed_at IS NULL AND i.refused_reason IS NULL
        ), faces AS (
            SELECT p.session_id, f.id, f.usable, e.created_at AS embedded_at, greatest(f.created_at, e.created_at) AS at
            FROM photos p JOIN face_crops f ON f.image_id = p.id
            LEFT JOIN {vectors} e ON e.crop_id = f.id AND e.version = %(version)s
        ), seen AS (
            SELECT f.session_id, a.student_id, bool_or(a.state = 'assigned') AS present
            FROM faces f JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s
            WHERE a.student_id IS NOT NULL AND NOT a.student_id = ANY(%(withdrawn)s) GROUP BY 1, 2
        ), registered AS (
            SELECT t.session_id, t.student_id, t.status = 'present' AS present
            FROM attendance t JOIN sessions s ON s.id = t.session_id AND s.class_id = %(class)s
            WHERE t.model = %(model)s AND t.status <> 'absent' AND NOT t.student_id = ANY(%(withdrawn)s)
        ), contradicted AS (
            SELECT session_id FROM seen FULL JOIN registered USING (session_id, student_id)
            WHERE seen.present IS DISTINCT FROM registered.present
        )
        SELECT s.id, s.name, s.is_enrolment, coalesce(f.crops, 0) AS crops, coalesce(f.embedded, 0) AS embedded,
            coalesce(f.bare, 0) AS bare, coalesce(l.assigned_at, CASE WHEN c.active_model = %(model)s AND EXISTS (
                SELECT 1 FROM attendance t WHERE t.session_id = s.id AND t.model = %(model)s
            ) THEN now() END) AS assigned_at,
            greatest(f.at, (SELECT max(i.removed_at) FROM images i WHERE i.session_id = s.id)) AS changed_at,
            EXISTS (SELECT 1 FROM attendance t WHERE t.session_id = s.id AND t.model = %(model)s) AS registered,
            EXISTS (SELECT 1 FROM attendance t WHERE t.session_id = s.id AND t.model = c.active_model) AS counted,
            NOT s.is_enrolment AND s.id IN (SELECT session_id FROM contradicted) AS contradicted
        FROM sessions s JOIN classes c ON c.id = s.class_id
        LEFT JOIN lineage_sessions l ON l.session_id = s.id AND l.model = %(model)s
        LEFT JOIN (
            SELECT session_id, count(*) AS crops, count(embedded_at) AS embedded,
                count(*) FILTER (WHERE usable AND embedded_at IS NULL) AS bare, max(at) AS at
            FROM faces GROUP BY session_id
        ) f ON f.session_id = s.id
        WHERE s.class_id = %(class)s AND (s.id IN (SELECT session_id FROM photos) OR EXISTS (
            SELECT 1 FROM attendance t WHERE t.session_id = s.id AND t.model = %(model)s
        )) ORDER BY s.name"""
    ).format(vectors=embeddings_table(model))
    parameters = {"class": class_id, "model": model, "version": version, "withdrawn": sorted(withdrawn)}
    with connection.cursor(row_factory=class_row(SessionState)) as cursor:
        return cursor.execute(query, parameters).fetchall()


def portraits_changed_at(connection: Connection, class_id: int, model: str, version: str) -> datetime | None:
    """When a portrait of the class last came, went, got its vector of this version or was named after somebody."""
    query = sql.SQL(
        """SELECT greatest(
            (SELECT max(greatest(f.created_at, e.created_at, i.removed_at))
                FROM sessions s JOIN images i ON i.session_id = s.id LEFT JOIN face_crops f ON f.image_id = i.id
                LEFT JOIN {vectors} e ON e.crop_id = f.id AND e.version = %(version)s
                WHERE s.class_id = %(class)s AND s.is_enrolment),
            (SELECT max(decided_at) FROM decisions WHERE class_id = %(class)s AND decided_by = 'enrolment')
        )"""
    ).format(vectors=embeddings_table(model))
    row = connection.execute(query, {"class": class_id, "version": version}).fetchone()
    return row[0] if row else None


def read_places(connection: Connection, class_id: int) -> dict[int, Place]:
    """Where each crop of the class's present photos was seen."""
    rows = connection.execute(
        """SELECT f.id, s.id, s.name, i.id, i.path, s.is_enrolment FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %s""",
        [class_id],
    )
    return {crop_id: Place(*place) for crop_id, *place in rows}


def read_answers(connection: Connection, class_id: int, model: str) -> dict[int, StoredAnswer]:
    """What the lineage has stored about each crop of the class's present photos."""
    rows = connection.execute(
        """SELECT a.crop_id, a.state, a.student_id, a.decided_by, a.similarity FROM assignments a
        JOIN face_crops f ON f.id = a.crop_id
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %s
        WHERE a.model = %s""",
        [class_id, model],
    )
    return {crop_id: StoredAnswer(*answer) for crop_id, *answer in rows}


def read_confirmations(connection: Connection, class_id: int) -> dict[int, Confirmation]:
    """What people have confirmed about the crops of the class's present photos."""
    rows = connection.execute(
        """SELECT c.crop_id, c.student_id, d.decided_at FROM confirmed_crops c JOIN decisions d ON d.id = c.decision_id
        JOIN face_crops f ON f.id = c.crop_id
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        WHERE c.class_id = %s""",
        [class_id],
    )
    return {crop_id: Confirmation(*confirmation) for crop_id, *confirmation in rows}


def retired_at(connection: Connection, class_id: int, model: str) -> datetime | None:
    """When the class last switched away from the model; None where it never counted, or has counted ever since."""
    row = connection.execute(
        "SELECT max(switched_at) FROM model_switches WHERE class_id = %s AND old_model = %s", [class_id, model]
    ).fetchone()
    return row[0] if row else None


def embedded_until(
    connection: Connection, model: str, version: str, crop_ids: Collection[int], at: datetime
) -> set[int]:
    """Those of the crops whose vector of this version was there at that time."""
    query = sql.SQL("SELECT crop_id FROM {} WHERE version = %s AND crop_id = ANY(%s) AND created_at <= %s")
    rows = connection.execute(query.format(embeddings_table(model)), [version, list(crop_ids), at])
    return {crop_id for (crop_id,) in rows}


def read_switches(connection: Connection, class_id: int) -> list[Switch]:
    """Every switch of the class's active model, the latest first."""
    with connection.cursor(row_factory=class_row(Switch)) as cursor:
        return cursor.execute(
            """SELECT switched_at, old_model, new_model, switched_by, reason, accepted_crops, missing_sessions
            FROM model_switches WHERE class_id = %s ORDER BY id DESC""",
            [class_id],
        ).fetchall()


def first_models(connection: Connection) -> dict[str, str]:
    """The model that each class began with: its active one where it has never switched."""
    rows = connection.execute(
        """SELECT c.name, coalesce(
            (SELECT w.old_model FROM model_switches w WHERE w.class_id = c.id ORDER BY w.id LIMIT 1), c.active_model
        ) FROM classes c WHERE c.active_model IS NOT NULL"""
    )
    return dict(rows.fetchall())


def switch_model(
    connection: Connection,
    class_id: int,
    old_model: str,
    new_model: str,
    *,
    switched_by: str,
    reason: str,
    accepted_crops: Collection[int],
    missing_sessions: Collection[str],
    run_id: str | None,
) -> int:
    """Make a model the class's active one, and add who did so and why; returns the id of that record."""
    mark_counted(connection, class_id, old_model)
    connection.execute("UPDATE classes SET active_model = %s WHERE id = %s", [new_model, class_id])
    row = connection.execute(
        """INSERT INTO model_switches (class_id, old_model, new_model, switched_by, reason, accepted_crops,
            missing_sessions, run_id)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        [
            *(class_id, old_model, new_model, switched_by, reason),
            *(sorted(accepted_crops), sorted(missing_sessions), run_id),
        ],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def delete_lineage(connection: Connection, class_id: int, model: str) -> Deleted:
    """Delete all that the model has said about the class, its vectors of every version too."""
    of_crops = sql.SQL(
        """DELETE FROM {table} t USING face_crops f, images i, sessions s
        WHERE f.id = t.crop_id AND i.id = f.image_id AND s.id = i.session_id AND s.class_id = %(class)s"""
    )
    of_sessions = sql.SQL(
        """DELETE FROM {table} t USING sessions s
        WHERE s.id = t.session_id AND s.class_id = %(class)s AND t.model = %(model)s"""
    )
    parameters = {"class": class_id, "model": model}

    def delete(query: sql.SQL | sql.Composed) -> int:
        return connection.execute(query, parameters).rowcount

    deleted = Deleted(
        vectors=delete(of_crops.format(table=embeddings_table(model))),
        clusters=delete(sql.SQL("DELETE FROM clusters WHERE class_id = %(class)s AND model = %(model)s")),
        assignments=delete(of_crops.format(table=sql.Identifier("assignments")) + sql.SQL(" AND t.model = %(model)s")),
        attendance=delete(of_sessions.format(table=sql.Identifier("attendance"))),
    )
    # Or the undo of a decision would bring rows of it back.
    delete(of_crops.format(table=sql.Identifier("displaced_assignments")) + sql.SQL(" AND t.model = %(model)s"))
    for table in ("lineage_sessions", "registered_sessions"):
        delete(of_sessions.format(table=sql.Identifier(table)))
    return deleted
