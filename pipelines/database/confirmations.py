"""Whether a lineage agrees with what people have confirmed."""

from collections.abc import Sequence

from psycopg import Connection

from pipelines.errors import AttendanseeError

_NAMED = 20


class LostConfirmationError(AttendanseeError):
    """A run would have taken away what a person has confirmed; nothing of it was written."""


def lost_confirmations(
    connection: Connection, class_id: int, model: str, session_id: int | None = None
) -> list[tuple[int, str]]:
    """The confirmed crops (id, student's name) that the lineage gives to somebody else or to nobody.

    Crops of present photos. Of one session that the lineage has decided about, one of which it says nothing is lost, too;
    without a session these are left out, for the lineage may not have come to them yet.
    """
    return connection.execute(
        """SELECT c.crop_id, st.name FROM confirmed_crops c
        JOIN face_crops f ON f.id = c.crop_id
        JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN students st ON st.id = c.student_id
        LEFT JOIN assignments a ON a.crop_id = c.crop_id AND a.model = %(model)s
        WHERE c.class_id = %(class)s
        AND CASE WHEN %(session)s::bigint IS NULL THEN a.crop_id IS NOT NULL ELSE i.session_id = %(session)s END
        AND (a.state, a.student_id) IS DISTINCT FROM ('assigned', c.student_id)
        ORDER BY c.crop_id""",
        {"class": class_id, "model": model, "session": session_id},
    ).fetchall()


def check_confirmations(connection: Connection, class_id: int, model: str, session_id: int | None = None) -> None:
    """Raise LostConfirmationError, so that the transaction is rolled back, where a confirmed identity would be lost."""
    lost = lost_confirmations(connection, class_id, model, session_id)
    if lost:
        named = ", ".join(f"{name} (crop {crop_id})" for crop_id, name in lost[:_NAMED])
        raise LostConfirmationError(
            f"{len(lost)} confirmed identities would have been lost, so nothing was changed: {named}. This is a mistake of "
            "the program: report it, and go on with the register as it is."
        )


def words_left_behind(connection: Connection, class_name: str, session_id: int | None = None) -> dict[str, str]:
    """What people said of faces in photos that others have replaced since, and that no face of those has taken over.

    Of the class, or of one session. Path -> a sentence that names who was confirmed. A confirmation is told of until the
    student is confirmed in the photo that lies there now, or has a mark by hand in the session; anything else until
    somebody says something about that photo's faces.
    """
    replaced = connection.execute(
        """SELECT s.class_id, s.id, now.id, now.path, old.removed_at, f.id
        FROM classes c JOIN sessions s ON s.class_id = c.id AND (%(session)s::bigint IS NULL OR s.id = %(session)s)
        JOIN images now ON now.session_id = s.id AND now.removed_at IS NULL AND now.searched_with IS NOT NULL
        JOIN images old ON old.session_id = s.id AND old.path = now.path AND old.removed_at IS NOT NULL
        JOIN face_crops f ON f.image_id = old.id
        WHERE c.name = %(class)s""",
        {"class": class_name, "session": session_id},
    ).fetchall()
    if not replaced:
        return {}
    classes, sessions, images, paths, removed, crops = (list(column) for column in zip(*replaced, strict=True))
    rows = connection.execute(
        """WITH replaced AS MATERIALIZED (
            SELECT * FROM unnest(%(sessions)s::bigint[], %(images)s::bigint[], %(paths)s::text[],
                %(removed)s::timestamptz[], %(crops)s::bigint[]) AS r (session_id, image_id, path, removed_at, crop_id)
        ), confirmed AS (
            SELECT DISTINCT r.path, st.name FROM replaced r
            JOIN confirmed_crops k ON k.class_id = %(class)s AND k.crop_id = r.crop_id
            JOIN decisions d ON d.id = k.decision_id AND d.decided_by <> 'enrolment'
            JOIN students st ON st.id = k.student_id
            WHERE NOT EXISTS (
                SELECT 1 FROM confirmed_crops n JOIN face_crops f ON f.id = n.crop_id
                WHERE n.class_id = %(class)s AND f.image_id = r.image_id AND n.student_id = k.student_id
            )
            AND NOT EXISTS (
                SELECT 1 FROM manual_attendance m WHERE m.session_id = r.session_id AND m.student_id = k.student_id
            )
        ), others AS (
            SELECT r.path, r.crop_id FROM replaced r
            WHERE (r.crop_id IN (SELECT crop_id FROM unassigned_crops WHERE class_id = %(class)s)
                OR r.crop_id IN (SELECT crop_id FROM rejected_students WHERE crop_id = ANY(%(crops)s)))
            AND NOT EXISTS (
                SELECT 1 FROM decisions_in_force d JOIN face_crops f ON f.id = d.crop_id
                WHERE f.image_id = r.image_id AND d.decided_at > r.removed_at AND d.decided_by <> 'enrolment'
            )
        )
        SELECT path, ARRAY(SELECT name FROM confirmed k WHERE k.path = r.path ORDER BY name),
            (SELECT count(DISTINCT crop_id) FROM others o WHERE o.path = r.path)
        FROM (SELECT DISTINCT path FROM replaced) r ORDER BY path""",
        {
            "class": classes[0],
            "sessions": sessions,
            "images": images,
            "paths": paths,
            "removed": removed,
            "crops": crops,
        },
    ).fetchall()
    return {path: _left_behind(path, names, others) for path, names, others in rows if names or others}


def _left_behind(path: str, names: Sequence[str], others: int) -> str:
    said = []
    if names:
        said.append(f"who was confirmed there ({', '.join(names)})")
    if others:
        said.append(f"what was said of {others} face{'s' * (others > 1)} there (whom they do not show, or nobody)")
    remedies = "say it again of the faces that are there now, or put the earlier photo back"
    if names:
        remedies = "confirm a face that is there now, mark attendance by hand, or put the earlier photo back"
    return f"{path} does not show all faces of the photo that it replaced, so {' and '.join(said)} does not count: {remedies}."
