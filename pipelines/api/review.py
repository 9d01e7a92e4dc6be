"""The review page, and what it shows of a class."""

from datetime import date
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, Field

from pipelines.api.auth import PAGES
from pipelines.api.common import Browse, ClassId, Context
from pipelines.api.errors import documented
from pipelines.errors import UnknownIdError
from pipelines.services.review import Cell, Face, FaceState, Question, Review, StudentReview, explain_face, read_review

router = APIRouter(prefix="/classes", tags=["classes"])
pages = APIRouter(prefix=PAGES.rstrip("/"), include_in_schema=False)

# The only page with a script: its own and nobody else's, which makes elements and never HTML (trusted types), calls this
# server alone, and shows pictures from its memory.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {entry.name: entry.read_bytes() for entry in (files("pipelines.api") / "pages").iterdir()}


class ReviewedFace(BaseModel):
    """A face, and why it shows whom it shows; its picture is `/face-crops/{id}/image/`."""

    crop_id: int
    image_id: int
    session_id: int
    state: FaceState
    student_id: int | None = Field(description="Of a face that is unsure, the candidate.")
    similarity: float | None
    confirmed: bool = Field(description="A person has said whom it shows, or that it shows nobody.")
    why: str


class ReviewedSession(BaseModel):
    """A session of the class."""

    session_id: int
    name: str
    held_on: date | None
    counts: dict[str, int]
    expected_false_present: float


class ReviewAnswer(BaseModel):
    """What there is to look at of a class by its active model, and the questions that only a person can answer."""

    class_id: int
    class_name: str
    model: str
    threshold: float
    left: int = Field(description="Questions whose answers settle a cell of the register.")
    sessions: list[ReviewedSession]
    students: list[StudentReview]
    cells: list[Cell]
    questions: list[Question] = Field(description="The one whose answer settles most cells first.")
    faces: list[ReviewedFace] = Field(description="Every face, those of portraits included.")


@router.get("/{id}/review/", response_model=ReviewAnswer, responses=documented(404))
def get_review(class_id: ClassId, browse: Browse, context: Context) -> Response:
    """All that the review page shows of a class: students with their faces, the register with evidence, open questions."""
    found = read_review(context, browse.class_(class_id).name)
    answer = ReviewAnswer(
        class_id=found.class_id,
        class_name=found.class_name,
        model=found.model,
        threshold=found.threshold,
        left=found.left,
        sessions=[ReviewedSession.model_validate(session, from_attributes=True) for session in found.sessions],
        students=found.students,
        cells=found.cells,
        questions=found.questions,
        faces=[_face(found, face) for face in found.faces().values()],
    )
    # As text: FastAPI would check each of its parts again, which took as long as reading them.
    return Response(answer.model_dump_json(), media_type="application/json")


def _face(found: Review, face: Face) -> ReviewedFace:
    return ReviewedFace(
        crop_id=face.crop_id,
        image_id=face.image_id,
        session_id=face.session_id,
        state=face.state,
        student_id=face.student_id,
        similarity=face.similarity,
        confirmed=face.decider is not None and face.decider.by == "person",
        why=explain_face(found, face),
    )


@pages.get("/{class_name}")
def review_page(class_name: str) -> Response:  # noqa: ARG001 - the page reads the class from its own address
    """The page, the same for every class: it holds no data, and asks the API for them."""
    return _file("review.html")


@pages.get("/files/{name}")
def review_file(name: str) -> Response:
    """A script or style of the page."""
    return _file(name)


def _file(name: str) -> Response:
    if name not in _FILES:
        raise UnknownIdError(f"There is no file {name} of the review page.")
    media_type = _MEDIA_TYPES[f".{name.rpartition('.')[2]}"]
    return Response(_FILES[name], media_type=media_type, headers={"Content-Security-Policy": POLICY})
