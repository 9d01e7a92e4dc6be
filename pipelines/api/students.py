"""Students: who there is, their names, and two who are one."""

from typing import Annotated

from fastapi import APIRouter, Body, Query
from pydantic import BaseModel, ConfigDict, Field

from pipelines.api.common import Browse, Decisions, FreeStudentId, FromJson, Name, PageQuery, StudentId
from pipelines.api.errors import documented
from pipelines.services.browse import PageOf, StudentItem
from pipelines.services.parameters import Id

router = APIRouter(prefix="/students", tags=["students"])

ERRORS = documented(400, 404, 409, 413)


class StudentQuery(PageQuery):
    """Which students."""

    class_id: Id | None = Field(default=None, description="Only students of this class.")
    provisional: bool | None = Field(default=None, description="Only students without (true) or with a name (false).")


class NewName(BaseModel):
    """What a student is called."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"name": "Ada Lovelace"}]})

    name: Name


NameBody = Annotated[NewName, FromJson, Body()]


class Merge(BaseModel):
    """Who the student is."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"into_student_id": 2}]})

    into_student_id: Id


MergeBody = Annotated[Merge, FromJson, Body()]


@router.get("/", responses=documented())
def list_students(browse: Browse, query: Annotated[StudentQuery, Query()]) -> PageOf[StudentItem]:
    """Students; one who was merged into another is not there any more."""
    return browse.students(query.limit, query.offset, query.class_id, query.provisional)


@router.get("/{id}/", responses=documented(404))
def get_student(student_id: StudentId, browse: Browse) -> StudentItem:
    """One student."""
    return browse.student(student_id)


@router.patch("/{id}/", responses=ERRORS)
def rename_student(student_id: FreeStudentId, new: NameBody, browse: Browse, decisions: Decisions) -> StudentItem:
    """Give a student a name, who is then no longer provisional; one who was merged stands for the one who was kept."""
    return browse.student(decisions.rename(student_id, new.name).student_id, follow_merges=True)


@router.post("/{id}/merge/", responses=ERRORS)
def merge_student(student_id: FreeStudentId, merge: MergeBody, browse: Browse, decisions: Decisions) -> StudentItem:
    """Say that this student is another one, who gets all crops and is answered."""
    return browse.student(decisions.merge(student_id, merge.into_student_id).student_id, follow_merges=True)
