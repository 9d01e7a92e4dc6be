"""What an evaluation reads."""

from dataclasses import dataclass

from psycopg import Connection
from psycopg.rows import class_row


@dataclass(frozen=True)
class JudgedCrop:
    """A crop and what one lineage says of it."""

    path: str
    x: float
    y: float
    width: float
    height: float
    state: str | None
    student_id: int | None
    student: str | None
    provisional: bool | None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x, y, width, height) in the photo's pixels."""
        return self.x, self.y, self.width, self.height


def class_crops(connection: Connection, class_id: int, model: str) -> list[JudgedCrop]:
    """All crops of the class's present session photos."""
    with connection.cursor(row_factory=class_row(JudgedCrop)) as cursor:
        return cursor.execute(
            """SELECT i.path, f.x, f.y, f.width, f.height, a.state, a.student_id, st.name AS student, st.provisional
            FROM face_crops f
            JOIN images i ON i.id = f.image_id AND i.removed_at IS NULL
            JOIN sessions s ON s.id = i.session_id AND s.class_id = %s AND NOT s.is_enrolment
            LEFT JOIN assignments a ON a.crop_id = f.id AND a.model = %s
            LEFT JOIN students st ON st.id = a.student_id
            ORDER BY f.id""",
            [class_id, model],
        ).fetchall()


def class_photos(connection: Connection, class_id: int) -> set[str]:
    """Paths of the class's present session photos."""
    return {
        path
        for (path,) in connection.execute(
            """SELECT i.path FROM images i JOIN sessions s ON s.id = i.session_id
            WHERE s.class_id = %s AND NOT s.is_enrolment AND i.removed_at IS NULL""",
            [class_id],
        )
    }
