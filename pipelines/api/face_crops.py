"""Face crops: who they show, how they look, which are like them, and what people say about them."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from pipelines.api.common import (
    Browse,
    Context,
    CropId,
    CropsBody,
    Decisions,
    FreeCropId,
    FromJson,
    PageQuery,
    Reason,
    ReasonBody,
    Runs,
)
from pipelines.api.errors import documented
from pipelines.errors import PhotoStoreError, UnknownIdError
from pipelines.services.answers import SimilarCropsAnswer
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.browse import BrowseService, DecidedFaceCrop, FaceCropItem, PageOf
from pipelines.services.decisions import CropDecisionAnswer, CropsDecisionAnswer
from pipelines.services.parameters import Id, ModelName

router = APIRouter(prefix="/face-crops", tags=["face crops"])

ERRORS = documented(400, 404, 409, 413)


class FaceCropQuery(PageQuery):
    """Which face crops."""

    class_id: Id | None = Field(default=None, description="Only crops of this class.")
    session_id: Id | None = Field(default=None, description="Only crops of this session.")
    image_id: Id | None = Field(default=None, description="Only crops of this photo.")
    student_id: Id | None = Field(default=None, description="Only crops that show this student.")
    identified: bool | None = Field(default=None, description="Only crops with (true) or without (false) a student.")


class SimilarQuery(BaseModel):
    """How many similar crops, by which model."""

    limit: int = Field(default=10, ge=1, le=200, description="Of the identified and of the others, at most so many.")
    embedding_model: ModelName | None = Field(default=None, description="Absent: the class's active model.")


class StudentChoice(BaseModel):
    """Which student, and why."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"student_id": 1}]})

    student_id: Id
    reason: Reason = None


StudentBody = Annotated[StudentChoice, FromJson, Body()]


@router.get("/", responses=documented())
def list_face_crops(browse: Browse, query: Annotated[FaceCropQuery, Query()]) -> PageOf[FaceCropItem]:
    """Face crops of photos that are there and usable, with who they show."""
    return browse.face_crops(**query.model_dump())


@router.get("/not-a-face/", include_in_schema=False)
async def no_mark_to_read() -> None:
    """The path is no face crop called `not-a-face`."""
    raise HTTPException(405)


@router.get("/{id}/", responses=documented(404))
def get_face_crop(crop_id: CropId, browse: Browse) -> FaceCropItem:
    """One face crop, with who it shows."""
    return browse.face_crop(crop_id)


_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "The picture."}
}


@router.get("/{id}/image/", response_class=Response, responses={**_JPEG, **documented(404)})
def get_face_crop_image(crop_id: CropId, browse: Browse, context: Context) -> Response:
    """The picture of a face crop; nobody may keep it (`Cache-Control: private, no-store`)."""
    path = browse.crop_path(crop_id)
    try:
        if path is not None:
            return Response(context.store.read_crop(path), media_type="image/jpeg")
    except PhotoStoreError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    raise UnknownIdError(f"There is no picture of the face crop {crop_id}: process its session again.")


@router.get("/{id}/similar/", responses=documented(404, 409))
def get_similar_face_crops(
    crop_id: CropId, browse: Browse, context: Context, query: Annotated[SimilarQuery, Query()]
) -> SimilarCropsAnswer:
    """The crops of the class that are most like this one, those with a student and those without apart."""
    crop = browse.face_crop(crop_id)
    model = query.embedding_model or browse.class_(crop.class_id).active_model or context.settings.model
    return FaceCropAssignmentService(model, context=context).similar_crops(crop_id, query.limit)


# The answers to decisions are read whether or not the photo has been removed meanwhile: what was stored is no 404.


@router.put("/{id}/student/", responses=ERRORS)
def assign_student(crop_id: FreeCropId, student: StudentBody, browse: Browse, decisions: Decisions) -> DecidedFaceCrop:
    """Say that the crop shows this student; no later run says otherwise."""
    return _decided(browse, crop_id, decisions.assign(crop_id, student.student_id, student.reason))


@router.delete("/{id}/student/", responses=ERRORS)
def unassign_student(
    crop_id: FreeCropId, browse: Browse, decisions: Decisions, reason: Annotated[Reason, Query()] = None
) -> DecidedFaceCrop:
    """Take the student off the crop; no later run gives it one, until a person does."""
    return _decided(browse, crop_id, decisions.unassign(crop_id, reason))


@router.post("/{id}/reject/", responses=ERRORS)
def reject_student(crop_id: FreeCropId, student: StudentBody, browse: Browse, decisions: Decisions) -> DecidedFaceCrop:
    """Say that the crop does not show this student; no later run says that it does."""
    return _decided(browse, crop_id, decisions.reject(crop_id, student.student_id, student.reason))


@router.post("/{id}/not-a-face/", responses=ERRORS)
def mark_not_a_face(crop_id: FreeCropId, why: ReasonBody, browse: Browse, decisions: Decisions) -> DecidedFaceCrop:
    """Say that the crop shows no face: no later run takes it into account, until a person assigns it."""
    return _decided(browse, crop_id, decisions.not_a_face([crop_id], why.reason))


@router.post("/not-a-face/", responses=ERRORS)
def mark_not_faces(crops: CropsBody, browse: Browse, decisions: Decisions, runs: Runs) -> CropsDecisionAnswer:
    """Say that none of these crops shows a face: one decision."""
    runs.check_free(lambda: browse.class_names_of_crops(crops.crop_ids))
    return decisions.not_a_face(crops.crop_ids, crops.reason)


def _decided(browse: BrowseService, crop_id: int, answer: CropDecisionAnswer | CropsDecisionAnswer) -> DecidedFaceCrop:
    crop = browse.face_crop(crop_id, of_removed_too=True)
    return DecidedFaceCrop(**crop.model_dump(), decision_id=answer.decision_id)
