"""What people have said about crops, students and attendance: append-only, and read as constraints."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from psycopg import Connection
from psycopg.rows import class_row, dict_row

from pipelines.errors import UnknownIdError

Kind = Literal[
    "confirm",
    "assign",
    "unassign",
    "not_this_student",
    "not_a_face",
    "rename",
    "merge",
    "split",
    "hide",
    "attendance",
    "undo",
]
AttendanceStatus = Literal["present", "absent", "excused"]

# Who has said what the names of portraits' files say.
ENROLMENT = "enrolment"


class StudentDecision(NamedTuple):
    """A decision that says what a student is."""

    id: int
    kind: str
    student_id: int
    other_student_id: int | None
    new_name: str | None
    in_force: bool


@dataclass(frozen=True)
class Decision:
    """A decision. base_id: itself, or of an undo the decision that is taken back, or back in force, by it at last.

    undone_by: the undo by which it is out of force; of a part, that of the whole.
    """

    id: int
    class_id: int
    kind: Kind
    student_id: int | None
    other_student_id: int | None
    decided_by: str
    decided_at: datetime
    undoes: int | None
    part_of: int | None
    undone_by: int | None
    base_id: int


def read_rejected(connection: Connection, crop_ids: Collection[int]) -> list[tuple[int, int]]:
    """The pairs (crop, student) of which a person has said: this crop does not show this student."""
    rows = connection.execute(
        "SELECT crop_id, student_id FROM rejected_students WHERE crop_id = ANY(%s)", [list(crop_ids)]
    )
    return rows.fetchall()


def read_unassigned(connection: Connection, crop_ids: Collection[int]) -> set[int]:
    """Those of the crops that a person has taken a student off, or said to be no face, and given to nobody since."""
    rows = connection.execute("SELECT crop_id FROM unassigned_crops WHERE crop_id = ANY(%s)", [list(crop_ids)])
    return {crop_id for (crop_id,) in rows}


def read_not_faces(connection: Connection, crop_ids: Collection[int]) -> set[int]:
    """Those of the crops that show no face, as a person has said: nothing takes them into account."""
    rows = connection.execute("SELECT crop_id FROM not_faces WHERE crop_id = ANY(%s)", [list(crop_ids)])
    return {crop_id for (crop_id,) in rows}


def read_confirmed(connection: Connection, crop_ids: Collection[int]) -> dict[int, int]:
    """Those of the crops of which a person has said who they show, each with its student."""
    rows = connection.execute(
        "SELECT crop_id, student_id FROM confirmed_crops WHERE crop_id = ANY(%s)", [list(crop_ids)]
    )
    return dict(rows.fetchall())


def read_student_decisions(connection: Connection, class_id: int) -> list[StudentDecision]:
    """Every rename, merge, split and hide of the class, those that were undone too, by id."""
    with connection.cursor(row_factory=class_row(StudentDecision)) as cursor:
        return cursor.execute(
            """SELECT id, kind, student_id, other_student_id, new_name,
                id NOT IN (SELECT id FROM undone_decisions) AS in_force
            FROM decisions WHERE class_id = %s AND kind IN ('rename', 'merge', 'split', 'hide') AND part_of IS NULL
            ORDER BY id""",
            [class_id],
        ).fetchall()


def read_portrayed(connection: Connection, class_id: int) -> set[int]:
    """Ids of the students of whom there is a portrait."""
    rows = connection.execute(
        """SELECT c.student_id FROM confirmed_crops c JOIN decisions d ON d.id = c.decision_id
        WHERE d.class_id = %s AND d.decided_by = %s""",
        [class_id, ENROLMENT],
    )
    return {student_id for (student_id,) in rows}


def read_doubted(
    connection: Connection, model: str, crop_ids: Collection[int], student_ids: Collection[int]
) -> dict[int, int]:
    """Those of the crops that need a review, each with its student, by this model.

    Where one of these students is in question, or the cluster has said who it is: of clusters that max_clusters has
    merged most crops are in doubt, and without them the same clusters would be somebody new with every run.
    """
    rows = connection.execute(
        """SELECT crop_id, student_id FROM assignments
        WHERE state = 'needs_review' AND model = %s AND crop_id = ANY(%s)
        AND (student_id = ANY(%s) OR decided_by = 'cluster')""",
        [model, list(crop_ids), list(student_ids)],
    )
    return dict(rows.fetchall())


def read_confirmations(connection: Connection, class_id: int) -> dict[int, tuple[int, int]]:
    """The confirmed crops of the class, each with its student and the decision that says so."""
    rows = connection.execute(
        "SELECT crop_id, student_id, decision_id FROM confirmed_crops WHERE class_id = %s", [class_id]
    )
    return {crop_id: (student_id, decision_id) for crop_id, student_id, decision_id in rows}


def still_in_force(connection: Connection, decision_ids: Collection[int]) -> set[int]:
    """Those of the decisions that nobody has undone."""
    rows = connection.execute("SELECT id FROM decisions_in_force WHERE id = ANY(%s)", [list(decision_ids)])
    return {decision_id for (decision_id,) in rows}


def append_decision(
    connection: Connection,
    kind: Kind,
    *,
    class_id: int,
    decided_by: str,
    run_id: str | None,
    reason: str | None = None,
    crop_id: int | None = None,
    student_id: int | None = None,
    other_student_id: int | None = None,
    old_name: str | None = None,
    new_name: str | None = None,
    session_id: int | None = None,
    status: AttendanceStatus | None = None,
    undoes: int | None = None,
    part_of: int | None = None,
) -> int:
    """Add what a person has said and return its id."""
    row = connection.execute(
        """INSERT INTO decisions (class_id, kind, crop_id, student_id, other_student_id, old_name, new_name, session_id,
            status, undoes, part_of, decided_by, reason, run_id)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        [
            *(class_id, kind, crop_id, student_id, other_student_id, old_name, new_name, session_id, status),
            *(undoes, part_of, decided_by, reason, run_id),
        ],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def find_decision(connection: Connection, decision_id: int) -> Decision:
    """The decision of this id; raises UnknownIdError."""
    with connection.cursor(row_factory=class_row(Decision)) as cursor:
        row = cursor.execute(
            """WITH RECURSIVE chain AS (
                SELECT id, undoes FROM decisions WHERE id = %(id)s
                UNION ALL SELECT d.id, d.undoes FROM decisions d JOIN chain ON d.id = chain.undoes
            )
            SELECT d.id, d.class_id, d.kind, d.student_id, d.other_student_id, d.decided_by, d.decided_at, d.undoes,
                d.part_of, (SELECT min(u.id) FROM decisions u
                    WHERE u.undoes = coalesce(d.part_of, d.id) AND NOT is_undone(u.id)) AS undone_by,
                (SELECT min(id) FROM chain) AS base_id
            FROM decisions d WHERE d.id = %(id)s""",
            {"id": decision_id},
        ).fetchone()
    if row is None:
        raise UnknownIdError(f"There is no decision {decision_id}.")
    return row


def built_upon_by(connection: Connection, decision: Decision) -> int | None:
    """The first later merge or split in force of whose students the merge or split `decision` says something.

    Two splits of one student stand side by side: neither is built on the other.
    """
    row = connection.execute(
        """SELECT min(d.id) FROM decisions_in_force d
        WHERE d.class_id = %(class)s AND d.id > %(id)s AND d.kind IN ('merge', 'split')
        AND (d.other_student_id IN (%(one)s, %(other)s) OR d.student_id = %(other)s
            OR (d.student_id = %(one)s AND NOT (d.kind = 'split' AND %(kind)s = 'split')))""",
        {
            "class": decision.class_id,
            "id": decision.id,
            "kind": decision.kind,
            "one": decision.student_id,
            "other": decision.other_student_id,
        },
    ).fetchone()
    return row[0] if row else None


_LOGGED: str = """
    SELECT d.id, d.kind, d.decided_by, d.decided_at, d.reason, d.run_id, d.student_id, d.other_student_id, d.session_id,
        d.status, d.old_name, d.new_name, d.undoes, st.name AS student_name, other.name AS other_student_name,
        s.name AS session_name,
        CASE WHEN d.crop_id IS NULL THEN ARRAY(
            SELECT p.crop_id FROM decisions p
            WHERE p.part_of = d.id AND p.crop_id IS NOT NULL AND d.kind <> 'merge' ORDER BY p.id
        ) ELSE ARRAY[d.crop_id] END AS crop_ids,
        (SELECT min(u.id) FROM decisions u
            WHERE u.undoes = coalesce(d.part_of, d.id) AND NOT is_undone(u.id)) AS undone_by
    FROM decisions d
    LEFT JOIN students st ON st.id = d.student_id
    LEFT JOIN students other ON other.id = d.other_student_id
    LEFT JOIN sessions s ON s.id = d.session_id
    WHERE d.class_id = %(class)s"""


def read_log(connection: Connection, class_id: int, limit: int, offset: int) -> tuple[int, list[dict[str, Any]]]:
    """How many decisions of the class there are, parts not counted, and some of them, the newest first.

    Each with the names that those it is about have now, all its crops, and the undo by which it does not count.
    """
    total = connection.execute(
        "SELECT count(*) FROM decisions WHERE class_id = %s AND part_of IS NULL", [class_id]
    ).fetchone()
    assert total is not None, "count(*) gives one row"
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"{_LOGGED} AND d.part_of IS NULL ORDER BY d.id DESC LIMIT %(limit)s OFFSET %(offset)s",
            {"class": class_id, "limit": limit, "offset": offset},
        ).fetchall()
    return total[0], rows


def read_logged(connection: Connection, class_id: int, decision_ids: Collection[int]) -> dict[int, dict[str, Any]]:
    """These decisions of the class as in the log, and those that they undo, directly or not."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"""WITH RECURSIVE chain AS (
                SELECT id, undoes FROM decisions WHERE id = ANY(%(ids)s)
                UNION SELECT o.id, o.undoes FROM decisions o JOIN chain ON o.id = chain.undoes
            ) {_LOGGED} AND d.id IN (SELECT id FROM chain)""",  # noqa: S608 - only a constant is put in
            {"class": class_id, "ids": list(decision_ids)},
        ).fetchall()
    return {row["id"]: row for row in rows}


def crops_of(connection: Connection, decision_id: int) -> list[int]:
    """The crops that the decision or its parts are about."""
    rows = connection.execute(
        "SELECT crop_id FROM decisions WHERE %s IN (id, part_of) AND crop_id IS NOT NULL ORDER BY id", [decision_id]
    )
    return [crop_id for (crop_id,) in rows]


def follow_what_is_said(
    connection: Connection, class_id: int, crop_ids: Collection[int] = (), *, elsewhere: bool = False
) -> None:
    """Make the assignments, in every lineage, what follows from what runs found and from the decisions in force.

    Of the photos of these crops, elsewhere: of the whole class. These crops get an assignment in the active lineage, too,
    where a person has said who they show and no run has come to them yet.

    Nothing else counts: not which decisions were made in between and undone, and in which order. What runs found is kept
    in displaced_assignments where it does not stand; a run that writes an assignment makes that what was found.

    Confirmed crops have their student, unassigned ones nobody; those of whom a person has taken back, or rejected, what
    was said are open for the next run. Nobody is assigned who was merged, rejected for the crop, or, unless a person has
    said so, shown by another, more similar face of the photo: that one needs a review, as in a run of the pipeline.
    """
    parameters = {"class": class_id, "crops": list(crop_ids), "elsewhere": elsewhere}
    connection.execute("SELECT set_config('attendansee.following', 'on', true)")
    connection.execute(
        """INSERT INTO assignments (crop_id, model, state, decided_by)
        SELECT w.crop_id, c.active_model, 'no_match', 'knn' FROM latest_words w JOIN classes c ON c.id = w.class_id
        WHERE w.class_id = %(class)s AND w.crop_id = ANY(%(crops)s) AND c.active_model IS NOT NULL
        ON CONFLICT DO NOTHING""",
        parameters,
    )
    connection.execute(
        """DELETE FROM assignments a USING displaced_assignments d
        WHERE (d.crop_id, d.model) = (a.crop_id, a.model) AND d.state IS NULL
        AND NOT EXISTS (SELECT 1 FROM latest_words w WHERE w.class_id = %(class)s AND w.crop_id = a.crop_id)
        AND EXISTS (SELECT 1 FROM face_crops f JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
            WHERE f.id = a.crop_id AND s.class_id = %(class)s)""",
        parameters,
    )
    connection.execute(_FOLLOW, parameters)
    connection.execute("SELECT set_config('attendansee.following', 'off', true)")


# found: what runs found. verdict: what is to be said of it. Clusters go on remembering students who were merged, who are
# read as those who were kept: updating them here deadlocked with a run that clustered a session.
_FOLLOW: str = """
WITH place AS MATERIALIZED (
    SELECT f.id AS crop_id, f.image_id
    FROM face_crops f JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
    WHERE s.class_id = %(class)s AND (%(elsewhere)s
        OR f.image_id IN (SELECT image_id FROM face_crops WHERE id = ANY(%(crops)s)))
), word AS MATERIALIZED (
    SELECT crop_id, decision_id, kind, decided_at, run_id FROM latest_words WHERE class_id = %(class)s
), confirmed AS MATERIALIZED (
    SELECT crop_id, student_id FROM confirmed_crops WHERE class_id = %(class)s
), rejected AS MATERIALIZED (
    SELECT crop_id, student_id FROM rejected_students JOIN place USING (crop_id)
), found AS (
    SELECT p.image_id, a.crop_id, a.model, v.*
    FROM place p JOIN assignments a USING (crop_id)
    LEFT JOIN displaced_assignments d ON (d.crop_id, d.model) = (a.crop_id, a.model)
    CROSS JOIN LATERAL (
        SELECT d.state, d.student_id, d.decided_by, d.cosine_similarity, d.similarity, d.runner_up_id,
            d.runner_up_cosine_similarity, d.run_id, d.decided_at WHERE d.crop_id IS NOT NULL
        UNION ALL SELECT a.state, a.student_id, a.decided_by, a.cosine_similarity, a.similarity, a.runner_up_id,
            a.runner_up_cosine_similarity, a.run_id, a.decided_at WHERE d.crop_id IS NULL
    ) v
), judged AS (
    SELECT f.image_id, f.crop_id, f.model, f.state, f.decided_by, f.cosine_similarity, f.similarity,
        f.runner_up_cosine_similarity, f.runner_up_id, f.run_id, f.decided_at, s.now AS student_id, c.student_id AS said_id,
        r.now AS runner_up_now, w.decided_at AS word_at, w.run_id AS word_run_id,
        -- A run found it as people had said.
        f.decided_by = 'person' AND s.now IS NOT DISTINCT FROM c.student_id AS said_before,
        CASE WHEN c.crop_id IS NOT NULL THEN 'confirmed'
            WHEN w.kind IN ('unassign', 'not_a_face') THEN 'taken off'
            -- A person's word that another one has rejected, or that is out of force, or somebody who is gone or
            -- rejected. What a run has found since the word knew of it and stands: it was wiped out by the next undo.
            WHEN coalesce(f.decided_at, '-infinity') <= w.decided_at OR f.decided_by = 'person'
                OR (f.state <> 'no_match' AND s.now IS NULL)
                OR EXISTS (SELECT 1 FROM rejected x WHERE (x.crop_id, x.student_id) = (f.crop_id, s.now)) THEN 'open'
            ELSE 'found' END AS verdict
    FROM found f
    LEFT JOIN confirmed c USING (crop_id) LEFT JOIN word w USING (crop_id)
    LEFT JOIN LATERAL (SELECT coalesce(merged_into, id) AS now FROM students WHERE id = f.student_id) s ON true
    LEFT JOIN LATERAL (SELECT coalesce(merged_into, id) AS now FROM students WHERE id = f.runner_up_id) r
        ON r.now <> s.now IS NOT FALSE
        AND NOT EXISTS (SELECT 1 FROM rejected x WHERE (x.crop_id, x.student_id) = (f.crop_id, r.now))
), ranked AS (
    SELECT j.*, row_number() OVER (
        PARTITION BY image_id, model, coalesce(said_id, student_id), verdict = 'confirmed' OR
            (verdict = 'found' AND state = 'assigned')
        ORDER BY verdict = 'confirmed' DESC, cosine_similarity DESC NULLS LAST, crop_id
    ) AS place
    FROM judged j
), due AS (
    SELECT crop_id, model, said_id AS student_id, 'assigned' AS state, 'person' AS decided_by,
        1::real AS cosine_similarity, 1::real AS similarity, NULL::bigint AS runner_up_id,
        NULL::real AS runner_up_cosine_similarity, CASE WHEN said_before THEN run_id ELSE word_run_id END AS run_id,
        CASE WHEN said_before THEN decided_at ELSE word_at END AS decided_at
    FROM ranked WHERE verdict = 'confirmed'
    UNION ALL SELECT crop_id, model, NULL, 'no_match', 'person', NULL, NULL, NULL, NULL,
        CASE WHEN said_before THEN run_id ELSE word_run_id END, CASE WHEN said_before THEN decided_at ELSE word_at END
    FROM ranked WHERE verdict = 'taken off'
    UNION ALL SELECT crop_id, model, NULL, 'no_match', 'knn', NULL, NULL, NULL, NULL, run_id,
        coalesce(decided_at, word_at)
    FROM ranked WHERE verdict = 'open'
    UNION ALL SELECT crop_id, model, student_id,
        CASE WHEN state = 'assigned' AND place > 1 THEN 'needs_review' ELSE state END, decided_by, cosine_similarity,
        similarity, runner_up_now,
        CASE WHEN runner_up_id IS NULL OR runner_up_now IS NOT NULL THEN runner_up_cosine_similarity END, run_id,
        decided_at
    FROM ranked WHERE verdict = 'found'
)
UPDATE assignments a SET state = d.state, student_id = d.student_id, decided_by = d.decided_by,
    cosine_similarity = d.cosine_similarity, similarity = d.similarity, runner_up_id = d.runner_up_id,
    runner_up_cosine_similarity = d.runner_up_cosine_similarity, run_id = d.run_id, decided_at = d.decided_at
FROM due d WHERE (a.crop_id, a.model) = (d.crop_id, d.model)
AND (a.state, a.student_id, a.decided_by, a.cosine_similarity, a.similarity, a.runner_up_id,
        a.runner_up_cosine_similarity, a.run_id, a.decided_at)
    IS DISTINCT FROM (d.state, d.student_id, d.decided_by, d.cosine_similarity, d.similarity, d.runner_up_id,
        d.runner_up_cosine_similarity, d.run_id, d.decided_at)"""


def hidden_by(connection: Connection, student_id: int) -> int | None:
    """The last decision in force that makes the student, or whoever was merged into them, a visitor."""
    row = connection.execute(
        """SELECT max(d.id) FROM decisions_in_force d JOIN students s ON s.id = d.student_id
        WHERE d.kind = 'hide' AND coalesce(s.merged_into, s.id) = %s""",
        [student_id],
    ).fetchone()
    return row[0] if row else None


def current_student(connection: Connection, crop_id: int) -> tuple[int, str] | None:
    """Id and name of the student whom the crop shows: confirmed, or assigned in the class's active model's lineage."""
    return connection.execute(
        """SELECT st.id, st.name
        FROM face_crops f JOIN images i ON i.id = f.image_id
        JOIN sessions s ON s.id = i.session_id JOIN classes c ON c.id = s.class_id
        LEFT JOIN confirmed_crops said ON said.crop_id = f.id
        LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = c.active_model AND a.state = 'assigned'
        JOIN students st ON st.id = coalesce(said.student_id, a.student_id)
        WHERE f.id = %s""",
        [crop_id],
    ).fetchone()
