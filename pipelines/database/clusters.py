"""Clusters of face crops: who is with whom, and what deciding about them needs to know."""

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True)
class Scope:
    """What is clustered: one session, or a whole class where session_id is None."""

    class_id: int
    session_id: int | None = None


@dataclass(frozen=True)
class ClusterCrop:
    """A crop of a present photo with all that decides who it may become.

    clusterable: it is usable, a face as far as anybody has said, and no portrait that nobody has confirmed. assigned_student_id: what the lineage says.
    doubted_student_id: whom the lineage needs a review for. merged_student_id: the one of these two, where a person has
    merged somebody into them (for the last time) since they were given the crop. unassigned: a person has taken its student
    off. rejected: students whom it does not show, as a person has said.
    """

    id: int
    image_id: int
    session_id: int
    clusterable: bool
    confirmed_student_id: int | None
    assigned_student_id: int | None
    doubted_student_id: int | None
    merged_student_id: int | None
    unassigned: bool
    rejected: list[int]

    @property
    def student_id(self) -> int | None:
        """Whom it shows, a person's word first."""
        if self.confirmed_student_id is not None:
            return self.confirmed_student_id
        student_id = self.assigned_student_id
        return student_id if student_id is not None and self.may_become(student_id) else None

    @property
    def kept_student_id(self) -> int | None:
        """Whose it stays, in doubt or not, though no person has confirmed it: their faces look like two people's.

        A person who merged them has seen that they do, so no similarity takes the crop away from them again. What a run
        has given them since is any run's mistake, and may go.
        """
        given = self.merged_student_id
        keeps = self.confirmed_student_id is None and given is not None and self.may_become(given)
        return given if keeps else None

    def may_become(self, student_id: int) -> bool:
        """Whether nothing that a person has said speaks against this student."""
        return not self.unassigned and student_id not in self.rejected


def read_cluster_crops(
    connection: Connection, scope: Scope, model: str, *, all_merged: bool = False
) -> list[ClusterCrop]:
    """All crops of the scope's present photos, by id.

    all_merged: merged_student_id is told of what students were given after the merge, too, for nothing is to move.
    """
    with connection.cursor(row_factory=class_row(ClusterCrop)) as cursor:
        return cursor.execute(
            """WITH RECURSIVE said AS (
                SELECT d.id, s.merged_into, d.decided_at
                FROM students s JOIN decisions d ON d.class_id = s.class_id
                    AND ((d.kind = 'merge' AND d.student_id = s.id) OR (d.kind = 'split' AND d.other_student_id = s.id))
                WHERE s.class_id = %(class)s AND s.merged_into IS NOT NULL
                -- The undo of a split makes two one as well, and so does that of the undo of a merge.
                UNION ALL SELECT u.id, said.merged_into, u.decided_at FROM said JOIN decisions u ON u.undoes = said.id
            ), merges AS MATERIALIZED (
                SELECT merged_into AS student_id, max(decided_at) AS merged_at FROM said GROUP BY 1
            )
            SELECT f.id, f.image_id, i.session_id,
                f.usable AND (NOT s.is_enrolment OR c.student_id IS NOT NULL)
                    AND NOT EXISTS (SELECT 1 FROM not_faces n WHERE n.crop_id = f.id AND n.class_id = %(class)s)
                    AS clusterable,
                c.student_id AS confirmed_student_id,
                CASE a.state WHEN 'assigned' THEN a.student_id END AS assigned_student_id,
                CASE a.state WHEN 'needs_review' THEN a.student_id END AS doubted_student_id,
                -- Another lineage may have known it before: this one began with, or came to, the same student.
                CASE WHEN EXISTS (SELECT 1 FROM assignments o WHERE o.crop_id = f.id
                    AND o.student_id = m.student_id AND (o.decided_at <= m.merged_at OR %(all_merged)s)) THEN m.student_id END
                    AS merged_student_id,
                u.crop_id IS NOT NULL AS unassigned,
                ARRAY(SELECT r.student_id FROM rejected_students r WHERE r.crop_id = f.id ORDER BY 1) AS rejected
            FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %(class)s
                AND (%(session)s::bigint IS NULL OR s.id = %(session)s)
            LEFT JOIN confirmed_crops c ON c.crop_id = f.id AND c.class_id = %(class)s
            LEFT JOIN unassigned_crops u ON u.crop_id = f.id AND u.class_id = %(class)s
            LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %(model)s
            LEFT JOIN merges m ON m.student_id = a.student_id
            ORDER BY f.id""",
            {"class": scope.class_id, "session": scope.session_id, "model": model, "all_merged": all_merged},
        ).fetchall()


def read_clusters(connection: Connection, scope: Scope, model: str) -> dict[int, int]:
    """The scope's clusters as crop id -> label; noise is in no cluster."""
    return {crop_id: label for crop_id, (label, _) in _stored(connection, scope, model).items()}


def read_remembered(connection: Connection, scope: Scope, model: str) -> dict[int, int]:
    """The student that each crop's cluster remembers, as crop id -> student id: the session's own, else the class's.

    For a session they may be about crops of other sessions too.
    """
    rows = connection.execute(
        """SELECT DISTINCT ON (m.crop_id) m.crop_id, coalesce(s.merged_into, s.id)
        FROM clusters c JOIN cluster_members m ON m.cluster_id = c.id JOIN students s ON s.id = c.student_id
        WHERE c.class_id = %(class)s AND (c.session_id IS NULL OR c.session_id = %(session)s) AND c.model = %(model)s
        ORDER BY m.crop_id, c.session_id NULLS LAST""",
        _parameters(scope, model),
    )
    return dict(rows.fetchall())


def write_clusters(
    connection: Connection,
    scope: Scope,
    model: str,
    labels: Mapping[int, int],
    students: Mapping[int, int] | None = None,
) -> bool:
    """Make these (crop id -> label) the scope's clusters; returns False where they were so already.

    students: label -> the student that the cluster remembers; without it, clusters that stay as they are remember what
    they did.
    """
    # Two runs may cluster a session at once; those that cluster a class hold its lock. FOR UPDATE would make whoever
    # writes the session's attendance wait, who may hold what this needs next.
    connection.execute("SELECT 1 FROM sessions WHERE id = %s FOR NO KEY UPDATE", [scope.session_id])
    stored = _stored(connection, scope, model)
    if students is None:
        if {crop_id: label for crop_id, (label, _) in stored.items()} == dict(labels):
            return False
    elif stored == {crop_id: (label, students.get(label)) for crop_id, label in labels.items()}:
        return False
    remembered = students or {}
    connection.execute(
        f"DELETE FROM clusters c WHERE {_condition(scope)} AND c.model = %(model)s",  # noqa: S608 - constants only
        _parameters(scope, model),
    )
    connection.execute(
        """WITH given AS (
            SELECT * FROM unnest(%(crops)s::bigint[], %(labels)s::int[], %(students)s::bigint[])
                AS g (crop_id, label, student_id)
        ),
        made AS (
            INSERT INTO clusters (class_id, session_id, model, label, student_id)
            SELECT DISTINCT %(class)s::bigint, %(session)s::bigint, %(model)s, label, student_id FROM given
            RETURNING id, label
        )
        INSERT INTO cluster_members (cluster_id, crop_id) SELECT made.id, given.crop_id FROM given JOIN made USING (label)""",
        {
            **_parameters(scope, model),
            "crops": list(labels),
            "labels": list(labels.values()),
            "students": [remembered.get(label) for label in labels.values()],
        },
    )
    return True


def _stored(connection: Connection, scope: Scope, model: str) -> dict[int, tuple[int, int | None]]:
    """Crop id -> the label of its cluster and whom that remembers: of a merged student, the one that is left."""
    rows = connection.execute(
        f"""SELECT m.crop_id, c.label, coalesce(s.merged_into, s.id)
        FROM clusters c JOIN cluster_members m ON m.cluster_id = c.id LEFT JOIN students s ON s.id = c.student_id
        WHERE {_condition(scope)} AND c.model = %(model)s""",  # noqa: S608 - constants only
        _parameters(scope, model),
    )
    return {crop_id: (label, student_id) for crop_id, label, student_id in rows}


def _condition(scope: Scope) -> str:
    """Written out for both cases: an index finds no row by IS NOT DISTINCT FROM."""
    if scope.session_id is None:
        return "c.session_id IS NULL AND c.class_id = %(class)s"
    return "c.session_id = %(session)s"


def _parameters(scope: Scope, model: str) -> dict[str, int | str | None]:
    return {"class": scope.class_id, "session": scope.session_id, "model": model}
