"""Whether a lineage agrees with what people have confirmed."""

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
