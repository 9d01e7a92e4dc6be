"""What assets show of a review in Dagster's UI; faces only where a setting says so, for its event log is kept for good."""

from typing import Any
from urllib.parse import quote

import dagster as dg
import numpy as np

from pipelines.assets.score_plot import score_plot
from pipelines.errors import PhotoError
from pipelines.resources.photo_store import PhotoStore
from pipelines.services.report import data_uri, face_jpeg
from pipelines.services.review import Review

_THUMBNAIL = (48, 60)
# Of all thumbnails of one materialization together, in characters.
THUMBNAILS_LENGTH = 60_000


def review_metadata(review: Review, store: PhotoStore, *, thumbnails: bool) -> dict[str, Any]:
    """What is left to ask, the expected number of false "present", the similarities that decided, and the faces."""
    metadata: dict[str, Any] = {
        "questions": review.left,
        "expected_false_present": round(sum(s.expected_false_present for s in review.sessions), 3),
    }
    drawing = _similarities(review)
    if drawing:
        metadata["similarities"] = dg.MetadataValue.md(drawing)
    if thumbnails:
        metadata["thumbnails"] = dg.MetadataValue.md(_thumbnails(review, store))
    return metadata


def register_table(columns: list[str], rows: list[list[Any]]) -> dg.TableMetadataValue:
    """Rows as a table in the UI; Dagster takes texts and numbers only."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord({name: "" if cell is None else cell for name, cell in zip(columns, row, strict=True)})
            for row in rows
        ],
        schema=dg.TableSchema([dg.TableColumn(column) for column in columns]),
    )


def _similarities(review: Review) -> str | None:
    """How similar the compared faces of the sessions are to their student, or candidate, and to the runner-up."""
    compared = [
        face
        for session in review.sessions
        for photo in session.photos
        for face in photo.faces
        if face.student_id is not None and face.decider is not None and face.decider.by == "knn"
    ]
    student = np.array([f.cosine_similarity for f in compared if f.cosine_similarity is not None])
    runner_up = np.array([f.runner_up_cosine_similarity for f in compared if f.runner_up_cosine_similarity is not None])
    if not len(student) + len(runner_up):
        return None
    drawing = score_plot(student, runner_up, review.cosine_threshold, ("student", "runner-up"))
    return f"![similarities to student and runner-up](data:image/svg+xml,{quote(drawing)})"


def _thumbnails(review: Review, store: PhotoStore) -> str:
    """The sessions' faces, those in doubt first, as many as there is room for."""
    names = review.names()
    order = ("unsure", "unknown", "visitor", "sure", "not_a_face")
    faces = [face for session in review.sessions for photo in session.photos for face in photo.faces]
    shown, room, left_out = [], THUMBNAILS_LENGTH, 0
    for face in sorted(faces, key=lambda face: (order.index(face.state), names.get(face.student_id or 0, ""))):
        try:
            jpeg = face_jpeg(store, face.crop_path, _THUMBNAIL) if face.crop_path and room else None
        except PhotoError:
            jpeg = None  # a picture that cannot be read is left out, and counted
        # The name stands in the register; in Markdown it could be anything.
        picture = f"![{face.state} {face.crop_id}]({data_uri(jpeg)})" if jpeg else ""
        if picture and len(picture) <= room:
            shown.append(picture)
            room -= len(picture)
        else:
            left_out += 1
    return " ".join([*shown, f"({left_out} left out)"] if left_out else shown)
