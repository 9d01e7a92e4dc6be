"""What people have said about crops and students: append-only, and read as constraints."""

from collections.abc import Collection
from typing import Literal

from psycopg import Connection, sql

Kind = Literal["confirm", "unassign", "not_this_student", "rename", "merge"]


def read_rejected(connection: Connection, crop_ids: Collection[int]) -> list[tuple[int, int]]:
    """The pairs (crop, student) of which a person has said: this crop does not show this student."""
    rows = connection.execute(
        "SELECT crop_id, student_id FROM rejected_students WHERE crop_id = ANY(%s)", [list(crop_ids)]
    )
    return rows.fetchall()


def read_unassigned(connection: Connection, crop_ids: Collection[int]) -> set[int]:
    """Those of the crops that a person has taken a student off and not given to anybody since."""
    rows = connection.execute("SELECT crop_id FROM unassigned_crops WHERE crop_id = ANY(%s)", [list(crop_ids)])
    return {crop_id for (crop_id,) in rows}


def read_portrayed(connection: Connection, class_id: int) -> set[int]:
    """Ids of the students of whom there is a portrait."""
    rows = connection.execute(
        """SELECT c.student_id FROM confirmed_crops c JOIN decisions d ON d.id = c.decision_id
        WHERE d.class_id = %s AND d.decided_by = 'enrolment'""",
        [class_id],
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


def confirmed_as(connection: Connection, student_ids: Collection[int]) -> dict[int, int]:
    """The crops that are confirmed as one of these students, each with its student."""
    rows = connection.execute(
        "SELECT crop_id, student_id FROM confirmed_crops WHERE student_id = ANY(%s)", [list(student_ids)]
    )
    return dict(rows.fetchall())


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
) -> int:
    """Add what a person has said and return its id."""
    row = connection.execute(
        """INSERT INTO decisions (class_id, kind, crop_id, student_id, other_student_id, old_name, new_name,
            decided_by, reason, run_id)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        [class_id, kind, crop_id, student_id, other_student_id, old_name, new_name, decided_by, reason, run_id],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def lineages(connection: Connection, crop_id: int, class_id: int) -> list[str]:
    """The models that have said something about the crop, and the active one of its class."""
    rows = connection.execute(
        """SELECT model FROM assignments WHERE crop_id = %s
        UNION SELECT active_model FROM classes WHERE id = %s AND active_model IS NOT NULL ORDER BY 1""",
        [crop_id, class_id],
    )
    return [model for (model,) in rows]


def drop_rejected(connection: Connection, student_id: int) -> None:
    """Take the student off all crops that were said not to show them, in every lineage; others may match these."""
    parameters = {"student": student_id}
    connection.execute(
        """UPDATE assignments a SET state = 'no_match', student_id = NULL, decided_by = 'knn',
            cosine_similarity = NULL, similarity = NULL, runner_up_id = NULL, runner_up_cosine_similarity = NULL,
            decided_at = now()
        FROM rejected_students r
        WHERE r.student_id = %(student)s AND a.crop_id = r.crop_id AND a.student_id = r.student_id""",
        parameters,
    )
    connection.execute(
        """UPDATE assignments a SET runner_up_id = NULL, runner_up_cosine_similarity = NULL
        FROM rejected_students r
        WHERE r.student_id = %(student)s AND a.crop_id = r.crop_id AND a.runner_up_id = r.student_id""",
        parameters,
    )


def doubt_second_faces(connection: Connection, student_id: int) -> None:
    """Where a photo shows the student twice and no person has said so, only the most similar face keeps them.

    The others need a review, as they do in a run of the pipeline.
    """
    connection.execute(
        """UPDATE assignments a SET state = 'needs_review', decided_at = now()
        FROM (
            SELECT a.crop_id, a.model, row_number() OVER (
                PARTITION BY f.image_id, a.model
                ORDER BY a.decided_by = 'person' DESC, a.cosine_similarity DESC NULLS LAST, a.crop_id
            ) AS place
            FROM assignments a JOIN face_crops f ON f.id = a.crop_id
            WHERE a.student_id = %s AND a.state = 'assigned'
        ) ranked
        WHERE (a.crop_id, a.model) = (ranked.crop_id, ranked.model) AND place > 1 AND a.decided_by <> 'person'""",
        [student_id],
    )


def merge_assignments(connection: Connection, student_id: int, into_student_id: int) -> None:
    """Give what the automatic process has given to one student to another.

    Clusters go on remembering the former, who is read as the latter: updating them here deadlocked with a run that
    clustered a session.
    """
    for column in ("student_id", "runner_up_id"):
        connection.execute(
            sql.SQL("UPDATE assignments SET {column} = %s WHERE {column} = %s").format(column=sql.Identifier(column)),
            [into_student_id, student_id],
        )
    connection.execute(
        """UPDATE assignments SET runner_up_id = NULL, runner_up_cosine_similarity = NULL
        WHERE student_id = %s AND runner_up_id = student_id""",
        [into_student_id],
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
