"""Who is who: clusters, assignments, the class's gallery of identified crops."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from psycopg import Connection
from psycopg.rows import class_row

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


@dataclass(frozen=True)
class GalleryCrop:
    """A crop whose student is known."""

    crop_id: int
    student_id: int
    provisional: bool
    confirmed: bool


def read_gallery(connection: Connection, class_id: int, model: str, *, without_session: int) -> list[GalleryCrop]:
    """The class's identified crops: all confirmed ones, and usable assigned ones of the other sessions.

    A session's own automatic assignments are left out, so that a re-run decides anew instead of agreeing with itself.
    """
    with connection.cursor(row_factory=class_row(GalleryCrop)) as cursor:
        return cursor.execute(
            """SELECT f.id AS crop_id, st.id AS student_id, st.provisional, c.student_id IS NOT NULL AS confirmed
            FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
            LEFT JOIN confirmed_crops c ON c.crop_id = f.id
            LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s AND a.state = 'assigned'
                AND f.usable AND s.id <> %(session)s
            JOIN students st ON st.id = coalesce(c.student_id, a.student_id)
            ORDER BY f.id""",
            {"class": class_id, "model": model, "session": without_session},
        ).fetchall()


def read_prior_students(connection: Connection, model: str, crop_ids: Sequence[int]) -> dict[int, int]:
    """Which student each crop had so far: in this model's lineage, else in any other's (the latest decision)."""
    rows = connection.execute(
        """SELECT DISTINCT ON (crop_id) crop_id, student_id FROM assignments
        WHERE crop_id = ANY(%s) AND state = 'assigned'
        ORDER BY crop_id, model = %s DESC, decided_at DESC, model""",
        [list(crop_ids), model],
    )
    return dict(rows.fetchall())


def write_assignments(connection: Connection, model: str, assignments: Iterable[Assignment], run_id: str | None) -> int:
    """Make these the current state; a crop that has this state and student already keeps the evidence it was decided on.

    Returns how many crops changed.
    """
    changed = 0
    with connection.cursor() as cursor:
        for a in assignments:
            cursor.execute(
                """INSERT INTO assignments AS old (crop_id, model, state, student_id, decided_by, cosine_similarity,
                    similarity, runner_up_id, runner_up_cosine_similarity, run_id)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
                ON CONFLICT (crop_id, model) DO UPDATE SET
                    state = excluded.state, student_id = excluded.student_id, decided_by = excluded.decided_by,
                    cosine_similarity = excluded.cosine_similarity, similarity = excluded.similarity,
                    runner_up_id = excluded.runner_up_id,
                    runner_up_cosine_similarity = excluded.runner_up_cosine_similarity,
                    run_id = excluded.run_id, decided_at = now()
                WHERE (old.state, old.student_id, old.decided_by = 'person')
                    IS DISTINCT FROM (excluded.state, excluded.student_id, excluded.decided_by = 'person')""",
                [
                    *(a.crop_id, model, a.state, a.student_id, a.decided_by, a.cosine_similarity),
                    *(a.similarity, a.runner_up_id, a.runner_up_cosine_similarity, run_id),
                ],
            )
            changed += cursor.rowcount
    return changed


def forget_assignments(connection: Connection, model: str, session_id: int, kept: Sequence[int]) -> int:
    """Delete the lineage's assignments of the session's crops other than `kept`: they have no vector any more."""
    return connection.execute(
        """DELETE FROM assignments a USING face_crops f, images i
        WHERE f.id = a.crop_id AND i.id = f.image_id AND i.session_id = %s AND a.model = %s AND NOT a.crop_id = ANY(%s)""",
        [session_id, model, list(kept)],
    ).rowcount


def read_clusters(connection: Connection, session_id: int, model: str) -> dict[int, int]:
    """The session's clusters as crop id -> label; noise is in no cluster."""
    rows = connection.execute(
        """SELECT m.crop_id, c.label FROM clusters c JOIN cluster_members m ON m.cluster_id = c.id
        WHERE c.session_id = %s AND c.model = %s""",
        [session_id, model],
    )
    return dict(rows.fetchall())


def write_clusters(connection: Connection, session_id: int, model: str, labels: Mapping[int, int]) -> bool:
    """Make these (crop id -> label) the session's clusters; returns False where they were so already."""
    connection.execute("SELECT 1 FROM sessions WHERE id = %s FOR UPDATE", [session_id])
    if read_clusters(connection, session_id, model) == dict(labels):
        return False
    connection.execute("DELETE FROM clusters WHERE session_id = %s AND model = %s", [session_id, model])
    connection.execute(
        """WITH given AS (SELECT * FROM unnest(%(crops)s::bigint[], %(labels)s::int[]) AS g (crop_id, label)),
        made AS (
            INSERT INTO clusters (class_id, session_id, model, label)
            SELECT DISTINCT s.class_id, s.id, %(model)s, label FROM given, sessions s WHERE s.id = %(session)s
            RETURNING id, label
        )
        INSERT INTO cluster_members (cluster_id, crop_id) SELECT made.id, given.crop_id FROM given JOIN made USING (label)""",
        {"crops": list(labels), "labels": list(labels.values()), "session": session_id, "model": model},
    )
    return True
