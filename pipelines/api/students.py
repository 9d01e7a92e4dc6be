"""Students: who there is, their names and faces, somebody new, two who are one, one who is two, visitors."""

from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from pipelines.api.common import (
    Browse,
    CropsBody,
    Decisions,
    FreeStudentId,
    FromJson,
    ManyCrops,
    Name,
    PageQuery,
    Reason,
    ReasonBody,
    Runs,
    StudentId,
)
from pipelines.api.errors import documented
from pipelines.services.browse import BrowseService, DecidedStudent, PageOf, StudentItem
from pipelines.services.decisions import CropsDecisionAnswer, HideAnswer, MergeAnswer, RenameAnswer, SplitAnswer
from pipelines.services.parameters import Id

router = APIRouter(prefix="/students", tags=["students"])

ERRORS = documented(400, 404, 409, 413)


class StudentQuery(PageQuery):
    """Which students."""

    class_id: Id | None = Field(default=None, description="Only students of this class.")
    provisional: bool | None = Field(default=None, description="Only students without (true) or with a name (false).")


class NewName(BaseModel):
    """What a student is called, and why."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "Ada Lovelace"}]})

    name: Name
    reason: Reason = None


NameBody = Annotated[NewName, FromJson, Body()]


class Merge(BaseModel):
    """Who the student is, and why."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"into_student_id": 2}]})

    into_student_id: Id
    reason: Reason = None


MergeBody = Annotated[Merge, FromJson, Body()]


class OfNewStudent(ManyCrops):
    """Which face crops are a new student's, and whose."""

    name: Name | None = Field(default=None, description="The new student's; absent: they are provisional.")


NewStudentBody = Annotated[OfNewStudent, FromJson, Body()]


@router.get("/", responses=documented())
def list_students(browse: Browse, query: Annotated[StudentQuery, Query()]) -> PageOf[StudentItem]:
    """Students; one who was merged into another is not there any more."""
    return browse.students(query.limit, query.offset, query.class_id, query.provisional)


@router.post("/", responses=ERRORS)
def create_student(new: NewStudentBody, browse: Browse, decisions: Decisions, runs: Runs) -> CropsDecisionAnswer:
    """Say that these crops, which show nobody, show a person who is a new student: one decision."""
    runs.check_free(lambda: browse.class_names_of_crops(new.crop_ids))
    return decisions.create_student(new.crop_ids, new.name, new.reason)


@router.get("/{id}/", responses=documented(404))
def get_student(student_id: StudentId, browse: Browse) -> StudentItem:
    """One student."""
    return browse.student(student_id)


@router.patch("/{id}/", responses=ERRORS)
def rename_student(student_id: FreeStudentId, new: NameBody, browse: Browse, decisions: Decisions) -> DecidedStudent:
    """Give a student a name, who is then no longer provisional; one who was merged stands for the one who was kept."""
    return _decided(browse, decisions.rename(student_id, new.name, new.reason))


@router.post("/{id}/merge/", responses=ERRORS)
def merge_student(student_id: FreeStudentId, merge: MergeBody, browse: Browse, decisions: Decisions) -> DecidedStudent:
    """Say that this student is another one, who gets all crops and is answered."""
    return _decided(browse, decisions.merge(student_id, merge.into_student_id, merge.reason))


@router.post("/{id}/confirm-crops/", responses=ERRORS)
def confirm_crops(student_id: FreeStudentId, crops: CropsBody, decisions: Decisions) -> CropsDecisionAnswer:
    """Say that all these crops show this student: one decision."""
    return decisions.assign_crops(crops.crop_ids, student_id, crops.reason)


@router.post("/{id}/split/", responses=ERRORS)
def split_student(student_id: FreeStudentId, split: NewStudentBody, decisions: Decisions) -> SplitAnswer:
    """Say that these crops of this student show another person, who is a new student."""
    return decisions.split(split.crop_ids, split.name, split.reason, student_id=student_id)


@router.post("/{id}/hide/", responses=ERRORS)
def hide_student(student_id: FreeStudentId, why: ReasonBody, browse: Browse, decisions: Decisions) -> DecidedStudent:
    """Say that this student is a visitor: in no register, and their face is nobody else's."""
    return _decided(browse, decisions.hide(student_id, why.reason))


def _decided(browse: BrowseService, answer: RenameAnswer | MergeAnswer | HideAnswer) -> DecidedStudent:
    student = browse.student(answer.student_id, follow_merges=True)
    return DecidedStudent(**student.model_dump(), decision_id=answer.decision_id)
