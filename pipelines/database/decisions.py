"""What people have said about crops, students and attendance: append-only, and read as constraints."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

from psycopg import Connection, sql
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

# Columns of an assignment that gives a crop to nobody.
_NOBODY: str = """state = 'no_match', student_id = NULL, cosine_similarity = NULL, similarity = NULL,
    runner_up_id = NULL, runner_up_cosine_similarity = NULL, decided_at = now()"""


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
    """Add what a person has said and return its id.

    What the transaction changes of assignments from now on counts as done by it (by the whole where it is a part), and
    is put back where it is undone.
    """
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
    if part_of is None:
        connection.execute("SELECT set_config('attendansee.decision', %s, true)", [str(row[0])])
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


_CONTENT: str = """state, student_id, decided_by, cosine_similarity, similarity, runner_up_id,
    runner_up_cosine_similarity, run_id, decided_at"""


def keep_as_displaced(connection: Connection, decision_id: int, model: str, crop_ids: Collection[int]) -> None:
    """Note what the decision has found of these crops where it left it as it was, for it was right already.

    Without this an earlier decision that says the same, and is undone first, could hand nothing over to it.
    """
    connection.execute(
        f"""INSERT INTO displaced_assignments (decision_id, crop_id, model, {_CONTENT})
        SELECT %s, crop_id, model, {_CONTENT} FROM assignments WHERE model = %s AND crop_id = ANY(%s)
        ON CONFLICT DO NOTHING""",  # noqa: S608 - only a constant is put in
        [decision_id, model, list(crop_ids)],
    )


def displaced_anew(connection: Connection, base_id: int, undo_id: int) -> None:
    """Have what the undo has displaced, by which the decision counts again, be what the decision itself displaces."""
    connection.execute("DELETE FROM displaced_assignments WHERE decision_id = %s", [base_id])
    connection.execute(
        f"""INSERT INTO displaced_assignments (decision_id, crop_id, model, {_CONTENT})
        SELECT %s, crop_id, model, {_CONTENT} FROM displaced_assignments WHERE decision_id = %s""",  # noqa: S608 - as above
        [base_id, undo_id],
    )


def put_back_displaced(connection: Connection, undone: Decision, base: Decision, undo_id: int) -> None:
    """Have the assignments count again that the decision `undone` has displaced; the changes are the undo's.

    base: what is taken back, or back in force, by it at last, as it was before the undo; while it is in force, what it
    has displaced is kept with it, whichever undos of undos there were.

    A row that a run has changed since stays, and one that a run has removed stays away, but for what a person has said.
    Where a later decision in force has displaced the row too, that one's displaced row takes the older content, and gives
    its own to the undo, so that this can be undone in turn. A student who is gone is nobody; one who was merged since is
    whom they were merged into.
    """
    parameters = {
        "undone": base.id if base.undone_by is None else undone.id,
        "base": base.id,
        "at": _last_decided_at(connection, base.id, undo_id),
        "undo": undo_id,
    }
    content, values = _CONTENT, ", ".join(f"d.{column.strip()}" for column in _CONTENT.split(","))
    # Of two later ones the earlier: it has displaced what stands because of the decision.
    later = """INSERT INTO displaced_later SELECT DISTINCT ON (d.crop_id, d.model) d.crop_id, d.model, l.decision_id AS later
        FROM displaced_assignments d
        JOIN displaced_assignments l ON (l.crop_id, l.model) = (d.crop_id, d.model)
        JOIN decisions_in_force f ON f.id = l.decision_id AND f.id > %(base)s
        WHERE d.decision_id = %(undone)s ORDER BY d.crop_id, d.model, l.decision_id"""
    connection.execute("CREATE TEMP TABLE displaced_later (crop_id bigint, model text, later bigint) ON COMMIT DROP")
    connection.execute(later, parameters)
    connection.execute(
        f"""INSERT INTO displaced_assignments (decision_id, crop_id, model, {content})
        SELECT %(undo)s, d.crop_id, d.model, {values} FROM displaced_assignments d
        JOIN displaced_later l ON (l.crop_id, l.model, l.later) = (d.crop_id, d.model, d.decision_id)
        WHERE d.decided_at IS NULL OR d.decided_at <= %(at)s""",  # noqa: S608 - only constants are put in
        parameters,
    )
    connection.execute(
        f"""UPDATE displaced_assignments t SET ({content}) = ({values})
        FROM displaced_assignments d JOIN displaced_later l USING (crop_id, model)
        WHERE d.decision_id = %(undone)s AND (t.crop_id, t.model, t.decision_id) = (d.crop_id, d.model, l.later)
        AND (t.decided_at IS NULL OR t.decided_at <= %(at)s)""",  # noqa: S608 - only constants are put in
        parameters,
    )
    connection.execute(
        """DELETE FROM assignments a USING displaced_assignments d
        WHERE d.decision_id = %(undone)s AND d.state IS NULL AND (a.crop_id, a.model) = (d.crop_id, d.model)
        AND a.decided_at <= %(at)s AND (d.crop_id, d.model) NOT IN (SELECT crop_id, model FROM displaced_later)""",
        parameters,
    )
    connection.execute(
        """INSERT INTO assignments AS a (crop_id, model, state, student_id, decided_by, cosine_similarity, similarity,
            runner_up_id, runner_up_cosine_similarity, run_id, decided_at)
        SELECT d.crop_id, d.model, CASE WHEN known THEN d.state ELSE 'no_match' END, coalesce(s.merged_into, s.id),
            CASE WHEN known THEN d.decided_by ELSE 'knn' END, CASE WHEN known THEN d.cosine_similarity END,
            CASE WHEN known THEN d.similarity END, coalesce(r.merged_into, r.id),
            CASE WHEN r.id IS NOT NULL THEN d.runner_up_cosine_similarity END, d.run_id, d.decided_at
        FROM displaced_assignments d
        LEFT JOIN students s ON s.id = d.student_id LEFT JOIN students r ON r.id = d.runner_up_id
        CROSS JOIN LATERAL (SELECT d.state = 'no_match' OR s.id IS NOT NULL AS known) k
        WHERE d.decision_id = %(undone)s AND d.state IS NOT NULL
        AND (d.crop_id, d.model) NOT IN (SELECT crop_id, model FROM displaced_later)
        AND (d.decided_by = 'person'
            OR EXISTS (SELECT 1 FROM assignments t WHERE (t.crop_id, t.model) = (d.crop_id, d.model))
            -- An undo has deleted it, for there was none before the decision.
            OR EXISTS (SELECT 1 FROM displaced_assignments t WHERE t.decision_id = %(base)s AND t.state IS NULL
                AND (t.crop_id, t.model) = (d.crop_id, d.model)))
        ON CONFLICT (crop_id, model) DO UPDATE SET
            state = excluded.state, student_id = excluded.student_id, decided_by = excluded.decided_by,
            cosine_similarity = excluded.cosine_similarity, similarity = excluded.similarity,
            runner_up_id = excluded.runner_up_id,
            runner_up_cosine_similarity = excluded.runner_up_cosine_similarity,
            run_id = excluded.run_id, decided_at = excluded.decided_at
        WHERE a.decided_at <= %(at)s""",
        parameters,
    )
    connection.execute("DROP TABLE displaced_later")


def _last_decided_at(connection: Connection, base_id: int, undo_id: int) -> datetime:
    """When the decision, or the last undo of it or of such an undo before this one, was made."""
    row = connection.execute(
        """WITH RECURSIVE chain AS (
            SELECT id, decided_at FROM decisions WHERE id = %(base)s
            UNION ALL SELECT d.id, d.decided_at FROM decisions d JOIN chain ON d.undoes = chain.id AND d.id <> %(undo)s
        ) SELECT max(decided_at) FROM chain""",
        {"base": base_id, "undo": undo_id},
    ).fetchone()
    assert row is not None, "max gives one row"
    return row[0]


def follow_what_is_said(connection: Connection, class_id: int) -> None:
    """Make every lineage's assignments of the class agree with what people say, and change nothing that does.

    Confirmed crops have their student, unassigned ones nobody; those that a person spoke about before, and nobody does
    now, are open again. Nobody is assigned who was merged, rejected for the crop, or, unless a person has said so,
    shown by another face of the photo.
    """
    parameters = {"class": class_id}
    connection.execute(
        """UPDATE assignments a SET state = 'assigned', student_id = c.student_id, decided_by = 'person',
            cosine_similarity = 1, similarity = 1, runner_up_id = NULL, runner_up_cosine_similarity = NULL,
            decided_at = now()
        FROM confirmed_crops c WHERE c.class_id = %(class)s AND a.crop_id = c.crop_id
        AND (a.state, a.student_id, a.decided_by) IS DISTINCT FROM ('assigned', c.student_id, 'person')""",
        parameters,
    )
    connection.execute(
        f"""UPDATE assignments a SET {_NOBODY}, decided_by = 'person'
        FROM unassigned_crops u WHERE u.class_id = %(class)s AND a.crop_id = u.crop_id
        AND (a.state, a.decided_by) IS DISTINCT FROM ('no_match', 'person')""",  # noqa: S608 - a constant is put in
        parameters,
    )
    connection.execute(
        f"""UPDATE assignments a SET {_NOBODY}, decided_by = 'knn'
        FROM face_crops f JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
        WHERE s.class_id = %(class)s AND a.crop_id = f.id AND a.decided_by = 'person'
        AND NOT EXISTS (SELECT 1 FROM confirmed_crops c WHERE c.crop_id = f.id AND c.class_id = %(class)s)
        AND NOT EXISTS (SELECT 1 FROM unassigned_crops u WHERE u.crop_id = f.id AND u.class_id = %(class)s)""",  # noqa: S608 - as above
        parameters,
    )
    merge_assignments(connection, class_id)
    drop_rejected(connection, class_id)
    doubt_second_faces(connection, class_id)


def hidden_by(connection: Connection, student_id: int) -> int | None:
    """The last decision in force that makes the student, or whoever was merged into them, a visitor."""
    row = connection.execute(
        """SELECT max(d.id) FROM decisions_in_force d JOIN students s ON s.id = d.student_id
        WHERE d.kind = 'hide' AND coalesce(s.merged_into, s.id) = %s""",
        [student_id],
    ).fetchone()
    return row[0] if row else None


def lineages(connection: Connection, crop_id: int, class_id: int) -> list[str]:
    """The models that have said something about the crop, and the active one of its class."""
    rows = connection.execute(
        """SELECT model FROM assignments WHERE crop_id = %s
        UNION SELECT active_model FROM classes WHERE id = %s AND active_model IS NOT NULL ORDER BY 1""",
        [crop_id, class_id],
    )
    return [model for (model,) in rows]


def drop_rejected(connection: Connection, class_id: int, student_id: int | None = None) -> None:
    """Take the student, or each one, off all crops that were said not to show them, in every lineage."""
    parameters = {"class": class_id, "student": student_id}
    rejected = """rejected_students r JOIN students s ON s.id = r.student_id AND s.class_id = %(class)s
        WHERE (%(student)s::bigint IS NULL OR r.student_id = %(student)s) AND a.crop_id = r.crop_id"""
    connection.execute(
        f"""UPDATE assignments a SET {_NOBODY}, decided_by = 'knn'
        FROM {rejected} AND a.student_id = r.student_id""",  # noqa: S608 - only constants are put in
        parameters,
    )
    connection.execute(
        f"""UPDATE assignments a SET runner_up_id = NULL, runner_up_cosine_similarity = NULL
        FROM {rejected} AND a.runner_up_id = r.student_id""",  # noqa: S608 - only constants are put in
        parameters,
    )


def doubt_second_faces(connection: Connection, class_id: int, student_id: int | None = None) -> None:
    """Where a photo shows the student, or anybody, twice and no person has said so, only the most similar face keeps them.

    The others need a review, as they do in a run of the pipeline.
    """
    connection.execute(
        """UPDATE assignments a SET state = 'needs_review', decided_at = now()
        FROM (
            SELECT a.crop_id, a.model, row_number() OVER (
                PARTITION BY f.image_id, a.model, a.student_id
                ORDER BY a.decided_by = 'person' DESC, a.cosine_similarity DESC NULLS LAST, a.crop_id
            ) AS place
            FROM assignments a JOIN face_crops f ON f.id = a.crop_id JOIN students s ON s.id = a.student_id
            WHERE s.class_id = %(class)s AND (%(student)s::bigint IS NULL OR s.id = %(student)s) AND a.state = 'assigned'
        ) ranked
        WHERE (a.crop_id, a.model) = (ranked.crop_id, ranked.model) AND place > 1 AND a.decided_by <> 'person'""",
        {"class": class_id, "student": student_id},
    )


def merge_assignments(connection: Connection, class_id: int) -> None:
    """Give what assignments give to students of the class who were merged to those who were kept.

    Clusters go on remembering the former, who are read as the latter: updating them here deadlocked with a run that
    clustered a session.
    """
    for column in ("student_id", "runner_up_id"):
        connection.execute(
            sql.SQL(
                """UPDATE assignments a SET {column} = s.merged_into FROM students s
                WHERE s.class_id = %s AND s.merged_into IS NOT NULL AND a.{column} = s.id"""
            ).format(column=sql.Identifier(column)),
            [class_id],
        )
    connection.execute(
        """UPDATE assignments a SET runner_up_id = NULL, runner_up_cosine_similarity = NULL
        FROM students s WHERE s.class_id = %s AND a.student_id = s.id AND a.runner_up_id = s.id""",
        [class_id],
    )


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
