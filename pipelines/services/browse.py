"""What there is: classes, sessions, photos, face crops and students, for whoever looks around."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, WithJsonSchema

from pipelines.database import browse
from pipelines.errors import UnknownIdError
from pipelines.resources.database import Database
from pipelines.services.attendance import AttendanceService
from pipelines.services.decision_log import DecisionLog, read_decisions

# Without an offset it is no "date-time" as JSON Schema has it (RFC 3339), and strict clients refused every dated photo.
LocalTime = Annotated[datetime, WithJsonSchema({"type": "string", "examples": ["2026-09-07T10:00:00"]})]


class ClassItem(BaseModel):
    """A class."""

    id: int
    name: str
    active_model: str | None = Field(description="The model whose attendance counts; none before the first run.")
    session_count: int
    student_count: int


class SessionItem(BaseModel):
    """A session of a class; the enrolment, which holds the portraits, is one too."""

    id: int
    class_id: int
    name: str
    is_enrolment: bool
    held_on: date | None
    image_count: int
    face_crop_count: int


class ImageItem(BaseModel):
    """A photo."""

    id: int
    session_id: int
    class_id: int
    path: str = Field(description="Where it lies below the photo root.")
    width: int | None
    height: int | None
    size_bytes: int
    taken_at: LocalTime | None = Field(
        description="By the photo's EXIF data, in the camera's own time, of no known zone."
    )
    student_id: int | None = Field(description="Whose portrait it is.")
    refused_reason: str | None = Field(description="Why it cannot be used.")
    searched: bool = Field(description="Whether it was searched for faces.")
    face_crop_count: int


class FaceCropItem(BaseModel):
    """A face in a photo, and who it shows: what a person has confirmed, else what the class's active model says."""

    id: int
    image_id: int
    session_id: int
    class_id: int
    x: float = Field(description="Left side of the box, in pixels of the photo.")
    y: float
    width: float
    height: float
    confidence: float
    sharpness: float
    yaw: float = Field(description="Degrees of turn.")
    usable: bool = Field(description="Good enough to be clustered.")
    unusable_reasons: list[str]
    student_id: int | None
    student_name: str | None
    provisional: bool | None = Field(description="Whether no person has named the student yet.")
    confirmed: bool
    state: Literal["assigned", "needs_review", "no_match"] | None = Field(description="None before any run.")
    decided_by: Literal["person", "knn", "cluster"] | None
    similarity: float | None
    cosine_similarity: float | None
    candidate_id: int | None = Field(description="The likeliest student of a crop that needs a review.")
    candidate_name: str | None


class DecidedFaceCrop(FaceCropItem):
    """A face crop after a decision about it."""

    decision_id: int = Field(description="Of the decision, which can be undone.")


class StudentItem(BaseModel):
    """A student."""

    id: int
    class_id: int
    name: str
    provisional: bool = Field(description="No person has named the student yet.")
    hidden: bool = Field(description="A visitor, as a person has said: in no register.")
    student_number: str | None
    email: str | None
    face_crop_count: int


class DecidedStudent(StudentItem):
    """A student after a decision about them."""

    decision_id: int = Field(description="Of the decision, which can be undone.")


class SessionRegister(BaseModel):
    """Who was there in one session."""

    session: str
    held_on: date | None
    counts: dict[str, int]
    attendance: dict[str, str] = Field(
        description="present, absent, excused, unsure or unknown, by the student's name."
    )


class RegisterAnswer(BaseModel):
    """Who was there: a class's sessions by date."""

    class_id: int
    class_name: str
    model: str
    sessions: list[SessionRegister]


Item = TypeVar("Item", bound=BaseModel)


class PageOf(BaseModel, Generic[Item]):
    """A part of a list in the order of ids; total: the length of the whole list."""

    total: int
    limit: int
    offset: int
    results: list[Item]


@dataclass(frozen=True)
class BrowseService:
    """Reads pages of lists, and single things by id; raises UnknownIdError for an id that is not there."""

    database: Database

    def classes(self, limit: int, offset: int) -> PageOf[ClassItem]:
        """All classes."""
        with self.database.connection() as connection:
            return _page(ClassItem, browse.classes(connection, limit, offset), limit, offset)

    def class_(self, class_id: int) -> ClassItem:
        """One class."""
        with self.database.connection() as connection:
            return ClassItem(**_found("class", class_id, browse.class_row(connection, class_id)))

    def sessions(self, limit: int, offset: int, class_id: int | None = None) -> PageOf[SessionItem]:
        """Sessions of one class or of all."""
        with self.database.connection() as connection:
            return _page(SessionItem, browse.sessions(connection, limit, offset, class_id=class_id), limit, offset)

    def session(self, session_id: int) -> SessionItem:
        """One session."""
        with self.database.connection() as connection:
            return SessionItem(**_found("session", session_id, browse.session_row(connection, session_id)))

    def images(self, limit: int, offset: int, session_id: int | None = None) -> PageOf[ImageItem]:
        """Photos of one session or of all."""
        with self.database.connection() as connection:
            return _page(ImageItem, browse.images(connection, limit, offset, session_id=session_id), limit, offset)

    def image(self, image_id: int) -> ImageItem:
        """One photo."""
        with self.database.connection() as connection:
            return ImageItem(**_found("photo", image_id, browse.image_row(connection, image_id)))

    def face_crops(self, limit: int, offset: int, **filters: Any) -> PageOf[FaceCropItem]:
        """Face crops; filters: class_id, session_id, image_id, student_id, identified."""
        with self.database.connection() as connection:
            return _page(FaceCropItem, browse.face_crops(connection, limit, offset, **filters), limit, offset)

    def face_crop(self, crop_id: int, *, of_removed_too: bool = False) -> FaceCropItem:
        """One face crop; of_removed_too: of a photo that was removed or refused as well."""
        return FaceCropItem(**self._face_crop(crop_id, of_removed_too))

    def crop_path(self, crop_id: int) -> str | None:
        """Where the photo store keeps a crop's picture, for `PhotoStore.read_crop`."""
        return self._face_crop(crop_id)["crop_path"]

    def _face_crop(self, crop_id: int, of_removed_too: bool = False) -> browse.Row:
        with self.database.connection() as connection:
            row = browse.face_crop_row(connection, crop_id, of_removed_too=of_removed_too)
            return _found("face crop", crop_id, row)

    def class_names_of_crops(self, crop_ids: Sequence[int]) -> set[str]:
        """Names of the classes of those face crops that are there."""
        with self.database.connection() as connection:
            return browse.class_names_of_crops(connection, crop_ids)

    def class_names_of_student(self, student_id: int) -> set[str]:
        """The name of a student's class; empty where there is no such student."""
        with self.database.connection() as connection:
            return browse.class_names_of_student(connection, student_id)

    def class_names_of_session(self, session_id: int) -> set[str]:
        """The name of a session's class; empty where there is no such session."""
        with self.database.connection() as connection:
            return browse.class_names_of_session(connection, session_id)

    def class_names_of_decision(self, decision_id: int) -> set[str]:
        """The name of the class that a decision is about; empty where there is no such decision."""
        with self.database.connection() as connection:
            return browse.class_names_of_decision(connection, decision_id)

    def decisions(self, class_id: int, limit: int, offset: int) -> DecisionLog:
        """What people have decided about a class, the newest first."""
        with self.database.connection() as connection:
            return read_decisions(connection, class_id, limit, offset)

    def students(
        self, limit: int, offset: int, class_id: int | None = None, provisional: bool | None = None
    ) -> PageOf[StudentItem]:
        """Students of one class or of all, without those who were merged into another."""
        with self.database.connection() as connection:
            page = browse.students(connection, limit, offset, class_id=class_id, provisional=provisional)
            return _page(StudentItem, page, limit, offset)

    def student(self, student_id: int, *, follow_merges: bool = False) -> StudentItem:
        """One student; of one who was merged into another, that other (follow_merges) or an error that names them."""
        with self.database.connection() as connection:
            row = browse.student_row(connection, student_id)
            if row is None and (other := browse.merged_into(connection, student_id)):
                if follow_merges:
                    return StudentItem(**_found("student", other, browse.student_row(connection, other)))
                raise UnknownIdError(f"The student {student_id} was merged into the student {other}.")
            return StudentItem(**_found("student", student_id, row))

    def register(self, class_id: int, default_model: str) -> RegisterAnswer:
        """The register of a class by its active model; default_model: for a class that has none yet."""
        of_class = self.class_(class_id)
        model = of_class.active_model or default_model
        register = AttendanceService(self.database, model).register(of_class.name)
        return RegisterAnswer(
            class_id=class_id,
            class_name=of_class.name,
            model=model,
            sessions=[
                SessionRegister(
                    session=session,
                    held_on=register.dates[session],
                    counts=register.counts(session),
                    attendance=register.attendance(session),
                )
                for session in register.sessions
            ],
        )


def _page(kind: type[Item], page: browse.Page, limit: int, offset: int) -> PageOf[Item]:
    return PageOf(total=page.total, limit=limit, offset=offset, results=[kind(**row) for row in page.rows])


def _found(kind: str, identity: int, row: browse.Row | None) -> browse.Row:
    if row is None:
        raise UnknownIdError(f"There is no {kind} {identity}.")
    return row
