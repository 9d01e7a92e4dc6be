"""Who is who: assignments, the class's gallery of identified crops."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from psycopg import Connection, sql
from psycopg.rows import args_row, class_row

from pipelines.database.crops import embeddings_table

State = Literal["assigned", "no_match", "needs_review"]
DecidedBy = Literal["person", "knn", "cluster"]


@dataclass(frozen=True)
class Assignment:
    """What one model's lineage says about one crop; student_id is None exactly for no_match."""

    crop_id: int
    state: State
    student_id: int | None
    decided_by: DecidedBy
    cosine_similarity: float | None = None
    similarity: float | None = None
    runner_up_id: int | None = None
    runner_up_cosine_similarity: float | None = None


class GalleryCrop(NamedTuple):
    """A crop whose student is known: a tuple, for a class has thousands, and as objects they took longer than the query.

    hidden: a person has said that the student is a visitor. size: pixels of the box's shorter side; sharpness,
    confidence, yaw as in `CropRow`.
    """

    crop_id: int
    student_id: int
    provisional: bool
    hidden: bool
    confirmed: bool
    size: float
    sharpness: float
    confidence: float
    yaw: float


@dataclass(frozen=True)
class Probe:
    """A crop without a student; `taken_off`: a person wants it without."""

    crop_id: int
    image_id: int
    session_id: int
    taken_off: bool


def _in_scope(session_id: int | None, crop_id: int | None) -> str:
    """What one crop, one session, or else all sessions of a class are; portraits are asked for by their own ids only."""
    if crop_id is not None:
        return "f.id = %(crop)s"
    return "NOT s.is_enrolment" if session_id is None else "s.id = %(session)s"


def sessions_of_crops(
    connection: Connection, class_id: int, *, session_id: int | None = None, crop_id: int | None = None
) -> set[int]:
    """Ids of the sessions, without the enrolment, that the crops of this scope are from."""
    rows = connection.execute(
        f"""SELECT DISTINCT s.id FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s AND NOT s.is_enrolment
        WHERE {_in_scope(session_id, crop_id)}""",  # noqa: S608 - only a constant is put in
        {"class": class_id, "session": session_id, "crop": crop_id},
    )
    return {session for (session,) in rows}


def read_probes(
    connection: Connection, class_id: int, model: str, *, session_id: int | None = None, crop_id: int | None = None
) -> list[Probe]:
    """The crops without a student of the class, or of one session, or the one crop if it has none; by photo and id.

    Crops that a person wants without a student are left alone unless asked for by id, and what is no face in any case.
    """
    with connection.cursor(row_factory=class_row(Probe)) as cursor:
        return cursor.execute(
            f"""SELECT f.id AS crop_id, i.id AS image_id, s.id AS session_id, u.crop_id IS NOT NULL AS taken_off
            FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
            LEFT JOIN unassigned_crops u ON u.crop_id = f.id AND u.class_id = %(class)s
            WHERE {_in_scope(session_id, crop_id)} AND (u.crop_id IS NULL OR %(crop)s::bigint IS NOT NULL)
            AND NOT EXISTS (SELECT 1 FROM confirmed_crops c WHERE c.crop_id = f.id AND c.class_id = %(class)s)
            AND NOT EXISTS (SELECT 1 FROM not_faces n WHERE n.crop_id = f.id AND n.class_id = %(class)s)
            AND NOT EXISTS (
                SELECT 1 FROM assignments a WHERE a.crop_id = f.id AND a.model = %(model)s AND a.state = 'assigned'
            )
            ORDER BY i.id, f.id""",  # noqa: S608 - only a constant is put in
            {"class": class_id, "model": model, "session": session_id, "crop": crop_id},
        ).fetchall()


def write_confirmed(
    connection: Connection,
    class_id: int,
    model: str,
    *,
    session_id: int | None = None,
    crop_id: int | None = None,
    run_id: str | None = None,
) -> None:
    """Give the crops of this scope that a person has confirmed their student in this lineage too."""
    connection.execute(
        f"""INSERT INTO assignments AS old
            (crop_id, model, state, student_id, decided_by, cosine_similarity, similarity, run_id)
        SELECT f.id, %(model)s, 'assigned', c.student_id, 'person', 1, 1, %(run)s
        FROM confirmed_crops c
        JOIN face_crops f ON f.id = c.crop_id AND c.class_id = %(class)s
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
        WHERE {_in_scope(session_id, crop_id)}
        ON CONFLICT (crop_id, model) DO UPDATE SET
            state = 'assigned', student_id = excluded.student_id, decided_by = 'person', cosine_similarity = 1,
            similarity = 1, runner_up_id = NULL, runner_up_cosine_similarity = NULL, run_id = excluded.run_id,
            decided_at = now()
        WHERE (old.student_id, old.decided_by) IS DISTINCT FROM (excluded.student_id, 'person')""",  # noqa: S608 - as above
        {"class": class_id, "model": model, "session": session_id, "crop": crop_id, "run": run_id},
    )


def read_identities(connection: Connection, class_id: int, model: str) -> dict[int, int | None]:
    """The student of each crop of the class's present photos, None where it has none; what is no face is left out."""
    rows = connection.execute(
        """SELECT f.id, coalesce(c.student_id, a.student_id)
        FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %s
        LEFT JOIN confirmed_crops c ON c.crop_id = f.id AND c.class_id = s.class_id
        LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %s AND a.state = 'assigned'
        WHERE NOT EXISTS (SELECT 1 FROM not_faces n WHERE n.crop_id = f.id AND n.class_id = s.class_id)""",
        [class_id, model],
    )
    return dict(rows.fetchall())


def carry_over(connection: Connection, class_id: int, model: str) -> set[int]:
    """Begin a model's lineage of a class with the identities that the class's active lineage has; returns its sessions.

    Who somebody is does not depend on the model: without this, the first operation with another model would take
    everybody for unknown. A lineage that has begun already stays as it is.
    """
    rows = connection.execute(
        """WITH carried AS (
            INSERT INTO assignments (crop_id, model, state, student_id, decided_by, decided_at)
            SELECT a.crop_id, %(model)s, a.state, a.student_id, a.decided_by, a.decided_at
            FROM assignments a
            JOIN face_crops f ON f.id = a.crop_id
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
            JOIN classes c ON c.id = s.class_id AND c.active_model <> %(model)s
            WHERE a.model = c.active_model AND a.state = 'assigned' AND NOT EXISTS (
                SELECT 1 FROM assignments begun JOIN face_crops g ON g.id = begun.crop_id
                JOIN images j ON j.id = g.image_id JOIN sessions t ON t.id = j.session_id
                WHERE begun.model = %(model)s AND t.class_id = %(class)s
            )
            ON CONFLICT DO NOTHING RETURNING crop_id
        )
        SELECT DISTINCT i.session_id FROM carried JOIN face_crops f ON f.id = carried.crop_id
        JOIN images i ON i.id = f.image_id""",
        {"class": class_id, "model": model},
    )
    return {session for (session,) in rows}


def student_of_crop(connection: Connection, class_id: int, crop_id: int, model: str) -> tuple[int, str] | None:
    """Id and name of the student of a crop of a present photo; None where it has none."""
    return connection.execute(
        """SELECT st.id, st.name FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        LEFT JOIN confirmed_crops c ON c.crop_id = f.id AND c.class_id = %s
        LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %s AND a.state = 'assigned'
        JOIN students st ON st.id = coalesce(c.student_id, a.student_id)
        WHERE f.id = %s""",
        [class_id, model, crop_id],
    ).fetchone()


def students_in_photos(
    connection: Connection, class_id: int, model: str, image_ids: Collection[int]
) -> dict[int, set[int]]:
    """The students whom these photos show already, by photo."""
    shown: dict[int, set[int]] = {}
    for image_id, student_id in connection.execute(
        """SELECT DISTINCT f.image_id, coalesce(c.student_id, a.student_id)
        FROM face_crops f
        LEFT JOIN confirmed_crops c ON c.crop_id = f.id AND c.class_id = %s
        LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %s AND a.state = 'assigned'
        WHERE f.image_id = ANY(%s) AND coalesce(c.student_id, a.student_id) IS NOT NULL""",
        [class_id, model, list(image_ids)],
    ):
        shown.setdefault(image_id, set()).add(student_id)
    return shown


# The class's identified crops `f`, whose student is st: all confirmed ones, and usable assigned ones outside the session.
_GALLERY: str = """face_crops f
    JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
    JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
    LEFT JOIN confirmed_crops c ON c.crop_id = f.id AND c.class_id = %(class)s
    LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s AND a.state = 'assigned'
        AND f.usable AND s.id IS DISTINCT FROM %(session)s::bigint
    JOIN students st ON st.id = coalesce(c.student_id, a.student_id)"""


def read_gallery(
    connection: Connection, class_id: int, model: str, *, without_session: int | None = None
) -> list[GalleryCrop]:
    """The class's identified crops: all confirmed ones, and usable assigned ones of the other sessions.

    A session's own automatic assignments are left out, so that a re-run decides anew instead of agreeing with itself.
    """
    with connection.cursor(row_factory=args_row(GalleryCrop)) as cursor:
        return cursor.execute(
            f"""SELECT f.id, st.id, st.provisional, st.hidden, c.student_id IS NOT NULL AS confirmed,
                least(f.width, f.height) AS size, f.sharpness, f.confidence, f.yaw
            FROM {_GALLERY} ORDER BY f.id""",  # noqa: S608 - only a constant is put in
            {"class": class_id, "model": model, "session": without_session},
        ).fetchall()


def read_gallery_students(connection: Connection, class_id: int, model: str) -> tuple[dict[int, int], set[int]]:
    """Whose each crop of the class's gallery is, crop id -> student id, and which of these are visitors.

    Column by column: ten thousand rows, each an object, had Python's garbage collector go through the whole process.
    """
    crop_ids, student_ids, visitors = connection.execute(
        f"""SELECT array_agg(f.id), array_agg(st.id), array_agg(DISTINCT st.id) FILTER (WHERE st.hidden)
        FROM {_GALLERY}""",  # noqa: S608 - only a constant is put in
        {"class": class_id, "model": model, "session": None},
    ).fetchone() or (None, None, None)
    return dict(zip(crop_ids or [], student_ids or [], strict=True)), set(visitors or [])


def portraits_without_embedding(connection: Connection, class_id: int, model: str, version: str) -> list[int]:
    """Ids of the class's portraits and other confirmed crops, of present photos, without a vector of this version."""
    query = sql.SQL(
        """SELECT f.id FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
        LEFT JOIN confirmed_crops c ON c.crop_id = f.id AND c.class_id = %(class)s
        LEFT JOIN {} e ON e.crop_id = f.id AND e.version = %(version)s
        WHERE (s.is_enrolment OR c.crop_id IS NOT NULL) AND e.crop_id IS NULL ORDER BY f.id"""
    ).format(embeddings_table(model))
    return [crop_id for (crop_id,) in connection.execute(query, {"class": class_id, "version": version})]


def nearest_in_gallery(
    connection: Connection, class_id: int, model: str, version: str, crop_id: int, k: int
) -> list[tuple[int, int, bool, float | None]]:
    """The identified crops that one crop's decision depends on: (crop, student, whether a visitor, cosine similarity).

    These are the k nearest of all, the k nearest of those that are no visitors', and everybody's nearest; by student, then
    crop. All crops without a vector come too, with None; of a student whom a person has rejected for this crop there are
    none. For one crop this is far less to read than all of the gallery's vectors.
    """
    query = sql.SQL(
        """WITH gallery AS MATERIALIZED (
            SELECT f.id AS crop_id, st.id AS student_id, st.hidden, (1 - (e.embedding <=> p.embedding))::real AS cosine
            FROM {gallery}
            LEFT JOIN {vectors} e ON e.crop_id = f.id AND e.version = %(version)s
            LEFT JOIN {vectors} p ON p.crop_id = %(crop)s AND p.version = %(version)s
            WHERE NOT EXISTS (
                SELECT 1 FROM rejected_students r WHERE r.crop_id = %(crop)s AND r.student_id = st.id
            )
        ), compared AS (SELECT * FROM gallery WHERE cosine IS NOT NULL)
        SELECT crop_id, student_id, hidden, cosine FROM gallery
        WHERE cosine IS NULL
        OR crop_id IN (SELECT crop_id FROM compared ORDER BY cosine DESC, student_id, crop_id LIMIT %(k)s)
        OR crop_id IN (
            SELECT crop_id FROM compared WHERE NOT hidden ORDER BY cosine DESC, student_id, crop_id LIMIT %(k)s
        )
        OR crop_id IN (
            SELECT DISTINCT ON (student_id) crop_id FROM compared ORDER BY student_id, cosine DESC, crop_id
        )
        ORDER BY student_id, crop_id"""
    ).format(gallery=sql.SQL(_GALLERY), vectors=embeddings_table(model))
    parameters = {"class": class_id, "model": model, "session": None, "version": version, "crop": crop_id, "k": k}
    return connection.execute(query, parameters).fetchall()


def read_prior_students(connection: Connection, model: str, crop_ids: Sequence[int]) -> dict[int, int]:
    """Which student each crop had so far: in this model's lineage, else in the active one, else in a retired one.

    A lineage that never counted for a class that has chosen its model, such as one on trial, says nothing to others; and
    the active one asks others only about crops that it has never seen.
    """
    rows = connection.execute(
        """SELECT DISTINCT ON (a.crop_id) a.crop_id, a.student_id
        FROM assignments a
        JOIN face_crops f ON f.id = a.crop_id JOIN images i ON i.id = f.image_id
        JOIN sessions s ON s.id = i.session_id JOIN classes c ON c.id = s.class_id
        WHERE a.crop_id = ANY(%(crops)s) AND a.state = 'assigned' AND (
            a.model = %(model)s
            OR (
                (c.active_model IS NULL OR a.model = c.active_model
                    OR EXISTS (SELECT 1 FROM model_switches w WHERE w.class_id = c.id AND w.old_model = a.model))
                AND (c.active_model IS DISTINCT FROM %(model)s OR NOT EXISTS (
                    SELECT 1 FROM assignments own WHERE own.crop_id = a.crop_id AND own.model = %(model)s
                ))
            )
        )
        ORDER BY a.crop_id, a.model = %(model)s DESC, a.model = c.active_model DESC, a.decided_at DESC, a.model""",
        {"crops": list(crop_ids), "model": model},
    )
    return dict(rows.fetchall())


def write_assignments(connection: Connection, model: str, assignments: Iterable[Assignment], run_id: str | None) -> int:
    """Make these the current state; a crop that has this state and student already keeps the evidence it was decided on.

    decided_at is since when the crop is given to this student, in doubt or not: what a person merged is known by it.
    Returns how many crops changed.
    """
    columns = list(
        zip(
            *(
                (
                    *(a.crop_id, a.state, a.student_id, a.decided_by, a.cosine_similarity),
                    *(a.similarity, a.runner_up_id, a.runner_up_cosine_similarity),
                )
                for a in assignments
            ),
            strict=True,
        )
    )
    if not columns:
        return 0
    return connection.execute(
        """INSERT INTO assignments AS old (crop_id, state, student_id, decided_by, cosine_similarity,
            similarity, runner_up_id, runner_up_cosine_similarity, model, run_id)
        SELECT new.*, %s, %s FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::real[], %s::real[],
            %s::bigint[], %s::real[]) AS new
        ON CONFLICT (crop_id, model) DO UPDATE SET
            state = excluded.state, student_id = excluded.student_id, decided_by = excluded.decided_by,
            cosine_similarity = excluded.cosine_similarity, similarity = excluded.similarity,
            runner_up_id = excluded.runner_up_id,
            runner_up_cosine_similarity = excluded.runner_up_cosine_similarity,
            run_id = excluded.run_id,
            decided_at = CASE WHEN old.student_id = excluded.student_id THEN old.decided_at ELSE now() END
        WHERE (old.state, old.student_id, old.decided_by = 'person')
            IS DISTINCT FROM (excluded.state, excluded.student_id, excluded.decided_by = 'person')""",
        [model, run_id, *map(list, columns)],
    ).rowcount


def forget_assignments(connection: Connection, model: str, session_id: int, kept: Sequence[int]) -> int:
    """Delete the lineage's assignments of the session's crops other than `kept`: they have no vector any more.

    Those of photos that were removed, or cannot be read now, stay: should the photo come back, its faces are still whose
    they were, above all a student's whom a person has named, or made a visitor, without a word about each face.
    """
    return connection.execute(
        """DELETE FROM assignments a USING face_crops f, images i
        WHERE f.id = a.crop_id AND i.id = f.image_id AND i.session_id = %s AND a.model = %s AND NOT a.crop_id = ANY(%s)
        AND i.removed_at IS NULL AND i.refused_reason IS NULL""",
        [session_id, model, list(kept)],
    ).rowcount
