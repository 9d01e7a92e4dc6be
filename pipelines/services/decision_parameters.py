"""The parameters of what people decide: one class each for jobs."""

from typing import Any, Literal

from pydantic import Field

from pipelines.services.decisions import MAX_CROPS
from pipelines.services.parameters import Id, Parameters

REASON: Any = Field(default=None, description="Why, for those who look at the decision later.")
_CROP_IDS: Any = Field(min_length=1, max_length=MAX_CROPS, description="Ids of the face crops, of one class.")


class UndoDecision(Parameters):
    """Which decision does not count any more."""

    decision_id: Id = Field(description="Id of the decision; of an undo, what that took back counts again.")
    reason: str | None = REASON


class ConfirmCrops(Parameters):
    """Which face crops show which student."""

    crop_ids: list[Id] = _CROP_IDS
    student_id: Id = Field(description="Id of the student whom they show.")
    reason: str | None = REASON


class MarkNotAFace(Parameters):
    """Which face crops show no face."""

    crop_ids: list[Id] = _CROP_IDS
    reason: str | None = REASON


class SplitStudent(Parameters):
    """Which faces of a student are another person's."""

    student_id: Id = Field(description="Id of the student whose faces they are now.")
    crop_ids: list[Id] = _CROP_IDS
    name: str | None = Field(default=None, description="Name of the new student; without one they are provisional.")
    reason: str | None = REASON


class CreateStudent(Parameters):
    """Which faces, which show nobody, are a new student's."""

    crop_ids: list[Id] = _CROP_IDS
    name: str | None = Field(default=None, description="Name of the new student; without one they are provisional.")
    reason: str | None = REASON


class HideStudent(Parameters):
    """Who is a visitor."""

    student_id: Id = Field(description="Id of the student.")
    reason: str | None = REASON


class MarkAttendance(Parameters):
    """Whether a student was in a session."""

    session_id: Id = Field(description="Id of the session.")
    student_id: Id = Field(description="Id of the student.")
    status: Literal["present", "absent", "excused", "photos"] = Field(
        description="photos: what the photos show counts again."
    )
    note: str | None = Field(default=None, description="Kept with it, such as who has excused the student.")
