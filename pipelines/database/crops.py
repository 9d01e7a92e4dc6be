"""Face crops and their embeddings."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, sql
from psycopg.rows import class_row

from pipelines.faces.face import DetectedFace


@dataclass(frozen=True)
class CropRow:
    """A stored face crop in its photo's pixel coordinates."""

    id: int
    image_id: int
    path: str
    x: float
    y: float
    width: float
    height: float
    landmarks: list[float]
    confidence: float
    sharpness: float
    yaw: float
    unusable_reasons: list[str]
    crop_path: str | None

    @property
    def class_name(self) -> str:
        """The class whose photo it is from: paths read <class>/<session>/<file>."""
        return self.path.partition("/")[0]

    @property
    def usable(self) -> bool:
        """Whether the crop may be clustered and stand in the gallery."""
        return not self.unusable_reasons

    @property
    def face(self) -> DetectedFace:
        """The crop as the detector gave it."""
        return DetectedFace(
            box=(self.x, self.y, self.width, self.height),
            landmarks=np.asarray(self.landmarks, dtype=np.float32).reshape(5, 2),
            confidence=self.confidence,
        )


_COLUMNS = """SELECT f.id, f.image_id, i.path, f.x, f.y, f.width, f.height, f.landmarks, f.confidence, f.sharpness, f.yaw,
        f.unusable_reasons, f.crop_path
    FROM face_crops f JOIN images i ON i.id = f.image_id"""


def session_crops(connection: Connection, session_id: int) -> list[CropRow]:
    """The crops of the session's present photos, by photo and id."""
    with connection.cursor(row_factory=class_row(CropRow)) as cursor:
        return cursor.execute(
            f"{_COLUMNS} WHERE i.session_id = %s AND i.removed_at IS NULL AND i.refused_reason IS NULL"
            " ORDER BY f.image_id, f.id",
            [session_id],
        ).fetchall()


def lock_image(connection: Connection, image_id: int) -> str | None:
    """Lock a photo's row to the end of the transaction; returns the detector version that has searched it."""
    row = connection.execute("SELECT searched_with FROM images WHERE id = %s FOR UPDATE", [image_id]).fetchone()
    return row[0] if row else None


def image_crops(connection: Connection, image_id: int) -> list[CropRow]:
    """The crops of one photo, by id."""
    with connection.cursor(row_factory=class_row(CropRow)) as cursor:
        return cursor.execute(f"{_COLUMNS} WHERE f.image_id = %s ORDER BY f.id", [image_id]).fetchall()


def crops_by_id(connection: Connection, crop_ids: Sequence[int]) -> list[CropRow]:
    """Those of the crops that exist and whose photo is still there, by photo and id.

    A path says nothing about a photo that is gone: another may lie there now.
    """
    with connection.cursor(row_factory=class_row(CropRow)) as cursor:
        return cursor.execute(
            f"{_COLUMNS} WHERE f.id = ANY(%s) AND i.removed_at IS NULL AND i.refused_reason IS NULL"
            " ORDER BY f.image_id, f.id",
            [list(crop_ids)],
        ).fetchall()


@dataclass(frozen=True)
class EarlierCrop:
    """A crop of another photo that lay at a photo's path before; width, height: that photo's, in pixels.

    spoken_of: a person, or a portrait's name, has said something about it.
    """

    crop: CropRow
    width: int
    height: int
    spoken_of: bool


def earlier_crops(connection: Connection, image_id: int) -> list[EarlierCrop]:
    """The crops of the photos that this one, registered under their path in the same session, has taken the place of."""
    rows = connection.execute(
        """SELECT f.id, i.width, i.height, EXISTS (SELECT 1 FROM decisions d WHERE d.crop_id = f.id)
        FROM images now JOIN images i ON i.session_id = now.session_id AND i.path = now.path AND i.id <> now.id
            AND i.width IS NOT NULL
        JOIN face_crops f ON f.image_id = i.id WHERE now.id = %s""",
        [image_id],
    ).fetchall()
    about = {crop_id: rest for crop_id, *rest in rows}
    with connection.cursor(row_factory=class_row(CropRow)) as cursor:
        found = cursor.execute(f"{_COLUMNS} WHERE f.id = ANY(%s) ORDER BY f.id", [list(about)]).fetchall()
    return [EarlierCrop(crop, *about[crop.id]) for crop in found]


def move_crops(connection: Connection, crop_ids: Sequence[int], image_id: int) -> None:
    """Have crops of earlier photos be this photo's, which shows the same faces: what was said of them goes with them.

    The photos that they were of are searched anew should they come back. A portrait stays its student's.
    """
    parameters = {"crops": list(crop_ids), "image": image_id}
    connection.execute(
        """UPDATE images now SET student_id = old.student_id
        FROM images old JOIN face_crops f ON f.image_id = old.id
        WHERE now.id = %(image)s AND f.id = ANY(%(crops)s) AND old.student_id IS NOT NULL""",
        parameters,
    )
    connection.execute(
        """UPDATE images SET searched_with = NULL
        WHERE id IN (SELECT image_id FROM face_crops WHERE id = ANY(%(crops)s))""",
        parameters,
    )
    connection.execute("UPDATE face_crops SET image_id = %(image)s WHERE id = ANY(%(crops)s)", parameters)


def insert_crop(
    connection: Connection, image_id: int, face: DetectedFace, crop_path: str | None, *, sharpness: float, yaw: float
) -> int:
    """Store a face, with where the photo store keeps its file, and return its id."""
    row = connection.execute(
        """INSERT INTO face_crops
            (image_id, x, y, width, height, landmarks, confidence, sharpness, yaw, crop_path)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id""",
        [image_id, *face.box, face.landmarks.ravel().tolist(), face.confidence, sharpness, yaw, crop_path],
    ).fetchone()
    assert row is not None, "RETURNING gives a row"
    return row[0]


def update_crop(
    connection: Connection, crop_id: int, face: DetectedFace, crop_path: str, *, sharpness: float, yaw: float
) -> None:
    """Give a known crop what was found of the same face since; its id, and so its identity, stays."""
    connection.execute(
        """UPDATE face_crops SET x = %s, y = %s, width = %s, height = %s, landmarks = %s, confidence = %s,
            sharpness = %s, yaw = %s, crop_path = %s WHERE id = %s""",
        [*face.box, face.landmarks.ravel().tolist(), face.confidence, sharpness, yaw, crop_path, crop_id],
    )


def set_unusable_reasons(connection: Connection, crop_id: int, reasons: list[str]) -> None:
    """Record why a crop is not good enough to be clustered; no reasons make it usable."""
    connection.execute("UPDATE face_crops SET unusable_reasons = %s WHERE id = %s", [reasons, crop_id])


def delete_crops_without_decisions(connection: Connection, crop_ids: Sequence[int]) -> list[CropRow]:
    """Delete those of the crops that no person has spoken about; returns the others."""
    connection.execute(
        """DELETE FROM face_crops f WHERE id = ANY(%s)
        AND NOT EXISTS (SELECT 1 FROM decisions d WHERE d.crop_id = f.id)""",
        [list(crop_ids)],
    )
    with connection.cursor(row_factory=class_row(CropRow)) as cursor:
        return cursor.execute(f"{_COLUMNS} WHERE f.id = ANY(%s)", [list(crop_ids)]).fetchall()


def mark_searched(connection: Connection, image_id: int, detector_version: str) -> None:
    """Record that the photo was searched for faces by this version of the detector."""
    connection.execute("UPDATE images SET searched_with = %s WHERE id = %s", [detector_version, image_id])


def confirm_portraits(connection: Connection, session_id: int, class_id: int) -> None:
    """Confirm each portrait's crop as the student its photo is named after, once for each name that it is given.

    What a person has said of the crop since counts, until the file is named after somebody else.
    """
    connection.execute(
        """INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by, reason)
        SELECT %(class)s, 'confirm', f.id, coalesce(st.merged_into, st.id), 'enrolment', 'portrait'
        FROM face_crops f
        JOIN images i ON i.id = f.image_id AND i.session_id = %(session)s
            AND i.removed_at IS NULL AND i.refused_reason IS NULL
        JOIN students st ON st.id = i.student_id
        LEFT JOIN LATERAL (
            SELECT coalesce(s.merged_into, s.id) AS student_id FROM decisions d JOIN students s ON s.id = d.student_id
            WHERE d.crop_id = f.id AND d.decided_by = 'enrolment' ORDER BY d.id DESC LIMIT 1
        ) said ON true
        WHERE said.student_id IS DISTINCT FROM coalesce(st.merged_into, st.id)""",
        {"class": class_id, "session": session_id},
    )


def embeddings_table(model: str) -> sql.Identifier:
    """The table that holds a model's vectors."""
    return sql.Identifier(f"embeddings_{model}")


def crops_with_embedding(connection: Connection, model: str, version: str, crop_ids: Sequence[int]) -> set[int]:
    """Which of the crops have a vector of this model and version."""
    query = sql.SQL("SELECT crop_id FROM {} WHERE version = %s AND crop_id = ANY(%s)").format(embeddings_table(model))
    return {crop_id for (crop_id,) in connection.execute(query, [version, list(crop_ids)])}


def write_embeddings(
    connection: Connection, model: str, version: str, crop_ids: Sequence[int], vectors: NDArray[np.float32]
) -> None:
    """Store (n, D) unit vectors by binary COPY into a temporary table, then upsert: text COPY is 13 to 17 times slower."""
    from pgvector import Vector

    table = embeddings_table(model)
    connection.execute("DROP TABLE IF EXISTS new_embeddings")
    connection.execute(
        sql.SQL("CREATE TEMP TABLE new_embeddings ON COMMIT DROP AS SELECT crop_id, embedding FROM {} LIMIT 0").format(
            table
        )
    )
    with connection.cursor().copy("COPY new_embeddings (crop_id, embedding) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "vector"])
        for crop_id, vector in zip(crop_ids, vectors, strict=True):
            copy.write_row((crop_id, Vector(vector)))
    # A crop that was deleted meanwhile (its photo was searched anew) has no row to point at. A vector that two runs
    # computed at once keeps the time of the first, by which sessions compared with it are up to date.
    connection.execute(
        sql.SQL(
            """INSERT INTO {} (crop_id, version, embedding)
            SELECT n.crop_id, %s, n.embedding FROM new_embeddings n JOIN face_crops f ON f.id = n.crop_id
            ON CONFLICT (crop_id, version) DO UPDATE SET embedding = excluded.embedding, created_at = now()
            WHERE {}.embedding <> excluded.embedding"""
        ).format(table, table),
        [version],
    )


def read_embeddings(
    connection: Connection, model: str, version: str, crop_ids: Iterable[int], dimension: int
) -> tuple[list[int], NDArray[np.float32]]:
    """The stored vectors of these crops as (ids in ascending order, (n, dimension) float32); crops without one are left out.

    By binary COPY, whose rows all have one layout, so that no vector is made an object: 0.08 s instead of 0.12 for
    10,000 vectors of 512 numbers.
    """
    query = sql.SQL(
        "COPY (SELECT crop_id, embedding FROM {} WHERE version = {} AND crop_id = ANY({}) ORDER BY crop_id) "
        "TO STDOUT (FORMAT BINARY)"
    ).format(embeddings_table(model), version, list(crop_ids))
    with connection.cursor().copy(query) as copy:
        received = b"".join(copy)
    # PostgreSQL's "Binary Format" of COPY: 19 bytes, rows of fields with their lengths, 2 bytes. A vector (pgvector's
    # vector_send) is its dimension, an unused number, and big-endian floats.
    layout = [("fields", ">i2"), ("id_length", ">i4"), ("id", ">i8"), ("vector_length", ">i4")]
    layout += [("dimension", ">i2"), ("unused", ">i2")]
    row = np.dtype([*layout, ("vector", ">f4", (dimension,))])
    rows = np.frombuffer(received, row, offset=19, count=(len(received) - 19 - 2) // row.itemsize)
    return rows["id"].tolist(), rows["vector"].astype(np.float32)
