"""Thresholds for a class from the identities that people confirmed in it, and their adoption by a person."""

from datetime import datetime
from typing import Any, Literal

import numpy as np
from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import calibrations, catalog, crops
from pipelines.errors import ConflictError, ParameterError
from pipelines.faces.calibration import Calibration, CalibrationError, Searches, calibrate, search_gallery
from pipelines.resources.database import Database
from pipelines.services.context import ServiceContext
from pipelines.services.decisions import clean_reason
from pipelines.services.parameters import Id, ModelName, Parameters
from pipelines.services.thresholds import class_spec


class CalibrationConfig(Parameters):
    """What a class is calibrated for."""

    fpir: float = Field(
        default=0.01,
        ge=0.0001,
        le=0.5,
        allow_inf_nan=False,
        description="False-positive identification rate: the share of faces of people who are not enrolled that may be "
        "taken for a student.",
    )


class AdoptCalibration(Parameters):
    """Which thresholds are to hold, and why."""

    calibration_id: Id = Field(description="Id of the calibration, as its metadata gives it.")
    reason: str = Field(description="Why its thresholds are adopted; kept for good.")


class ResetCalibration(Parameters):
    """Where the model's own thresholds are to hold again."""

    class_name: str = Field(description="Name of the class.")
    embedding_model: ModelName = Field(description="Embedding model whose thresholds are meant.")
    reason: str | None = Field(default=None, description="Why; kept for good.")


class CalibrationReport(BaseModel):
    """What the confirmed identities of a class say about a model's thresholds; distances are cosine distances.

    Intervals (low, high) are of 95 % confidence for independent searches; crops of one person are not, so that few
    students tell less than they seem to. What could not be found is null, and `result` says why.
    """

    result: str
    class_name: str
    embedding_model: str
    version: str = Field(description="Version of the vectors that were compared.")
    calibration_id: int | None = Field(default=None, description="What adopt_calibration takes.")
    confirmed_crops: int
    crops_without_vector: int = Field(description="Confirmed crops that could not be compared.")
    students: int
    impostor_comparisons: int = Field(description="Crops searched for among the crops of all other students.")
    genuine_comparisons: int = Field(description="Crops searched for that have a crop of the same student elsewhere.")
    fpir_asked: float
    operating_distance: float | None = None
    fpir: float | None = Field(default=None, description="Impostor comparisons that found somebody.")
    fpir_low: float | None = None
    fpir_high: float | None = None
    tpir: float | None = Field(default=None, description="Genuine comparisons that found the right student first.")
    tpir_low: float | None = None
    tpir_high: float | None = None
    verification_threshold: float | None = Field(default=None, description="Where the calibrated scale has 0.5.")
    slope: float | None = Field(default=None, description="Of the calibrated scale, per unit of distance.")
    in_use_operating_distance: float
    in_use_verification_threshold: float
    in_use_fpir: float | None = Field(description="The same rates at the threshold that holds now.")
    in_use_tpir: float | None
    last_adopted_calibration_id: int | None = Field(
        default=None, description="The calibration that a person adopted last; null: the model's own thresholds."
    )
    last_adopted_operating_distance: float | None = Field(
        default=None, description="Its threshold, in use unless it was measured on another version of the vectors."
    )
    last_adopted_by: str | None = None
    last_adopted_reason: str | None = None
    last_adopted_at: datetime | None = None


class AdoptionAnswer(BaseModel):
    """The thresholds that hold from the next run on."""

    status: Literal["success"] = "success"
    adoption_id: int
    class_name: str
    embedding_model: str
    calibration_id: int | None = Field(description="null: the model's own thresholds.")
    assignment_distance: float
    verification_threshold: float
    similarity_slope: float | None = Field(description="null: the model's own scale.")


def calibrate_class(
    database: Database, class_name: str, model_name: str, version: str, fpir: float, run_id: str | None = None
) -> tuple[CalibrationReport, Searches]:
    """Find thresholds in the class's confirmed crops by one model's vectors and store them, for a person to adopt.

    version: of the vectors. Nothing is stored where no thresholds can be found. Raises AttendanseeError for a class that
    is not there.
    """
    with database.connection() as connection:
        class_id = catalog.find_class(connection, class_name)
        spec = class_spec(connection, model_name, class_id, version=version)
        adopted = _last_adopted(connection, class_id, model_name)
        confirmed = {crop.crop_id: crop for crop in calibrations.read_confirmed(connection, class_id)}
        ids, vectors = crops.read_embeddings(connection, model_name, version, confirmed, spec.dimension)
    compared = [confirmed[crop_id] for crop_id in ids]
    searches = search_gallery(
        vectors,
        np.array([crop.student_id for crop in compared], np.int64),
        np.array([crop.photo for crop in compared], np.int64),
    )
    in_use = 1 - spec.assignment_distance
    report = CalibrationReport(
        result="",
        class_name=class_name,
        embedding_model=model_name,
        version=version,
        confirmed_crops=len(confirmed),
        crops_without_vector=len(confirmed) - len(ids),
        students=len(np.unique(searches.students)),
        impostor_comparisons=len(searches.impostor),
        genuine_comparisons=len(searches.genuine),
        fpir_asked=fpir,
        in_use_operating_distance=spec.assignment_distance,
        in_use_verification_threshold=spec.verification_threshold,
        in_use_fpir=searches.false_positives(in_use).share if len(searches.impostor) else None,
        in_use_tpir=searches.true_positives(in_use).share if len(searches.genuine) else None,
        **adopted,
    )
    try:
        found = calibrate(searches, fpir)
    except CalibrationError as error:
        return report.model_copy(update={"result": str(error)}), searches
    with database.connection() as connection:
        calibration_id = calibrations.insert_calibration(
            connection, found, class_id=class_id, model=model_name, version=version, fpir=fpir, run_id=run_id
        )
    return report.model_copy(update={"calibration_id": calibration_id, **_figures(found, searches)}), searches


def _last_adopted(connection: Connection, class_id: int, model_name: str) -> dict[str, Any]:
    """What a report says of the last adoption; nothing where there was none."""
    adoption = calibrations.last_adoption(connection, class_id, model_name)
    if adoption is None:
        return {}
    return {
        "last_adopted_calibration_id": adoption.calibration_id,
        "last_adopted_operating_distance": class_spec(connection, model_name, class_id).assignment_distance,
        "last_adopted_by": adoption.adopted_by,
        "last_adopted_reason": adoption.reason,
        "last_adopted_at": adoption.adopted_at,
    }


def _figures(found: Calibration, searches: Searches) -> dict[str, float | str]:
    """What a calibration adds to its report."""
    figures: dict[str, float | str] = {
        "operating_distance": found.operating_distance,
        "verification_threshold": found.verification_distance,
        "slope": found.slope,
    }
    for name, rate in (("fpir", found.fpir), ("tpir", found.tpir)):
        low, high = rate.interval
        figures |= {name: rate.share, f"{name}_low": low, f"{name}_high": high}
    taken = np.unique(searches.students[searches.non_mated >= 1 - found.operating_distance])
    figures["result"] = (
        f"up to a distance of {found.operating_distance:.4f}, {found.fpir.times} of {found.fpir.searches} faces searched "
        f"for among all other students found somebody (faces of {len(taken)} students), and {found.tpir.times} of "
        f"{found.tpir.searches} found their own student first"
    )
    return figures


def adopt_calibration(
    context: ServiceContext, calibration_id: int, reason: str, *, adopted_by: str, run_id: str | None = None
) -> AdoptionAnswer:
    """Let a calibration's thresholds hold for its class and model from the next run on; what is decided stays.

    Raises UnknownIdError for a calibration that is not there, ParameterError without a reason, and ConflictError where
    the vectors that it was measured on are not those in use any more.
    """
    cleaned = clean_reason(reason)
    if cleaned is None:
        raise ParameterError("The reason is empty: say why these thresholds are adopted.")
    with context.database.connection() as connection:
        calibration = calibrations.find_calibration(connection, calibration_id)
        version = context.models.version(calibration.model)
        if calibration.version != version:
            raise ConflictError(
                f"Calibration {calibration_id} was measured on vectors of the version {calibration.version}, and those of "
                f"{version} are in use: calibrate the class anew."
            )
        return _adopt(connection, calibration.class_id, calibration.model, calibration_id, cleaned, adopted_by, run_id)


def reset_calibration(
    context: ServiceContext,
    class_name: str,
    model_name: str,
    reason: str | None = None,
    *,
    adopted_by: str,
    run_id: str | None = None,
) -> AdoptionAnswer:
    """Let the model's own thresholds hold for the class again, from the next run on."""
    with context.database.connection() as connection:
        class_id = catalog.find_class(connection, class_name)
        return _adopt(connection, class_id, model_name, None, clean_reason(reason), adopted_by, run_id)


def _adopt(
    connection: Connection,
    class_id: int,
    model_name: str,
    calibration_id: int | None,
    reason: str | None,
    adopted_by: str,
    run_id: str | None,
) -> AdoptionAnswer:
    """Record the adoption and say what holds now."""
    adoption_id = calibrations.append_adoption(
        connection, class_id, model_name, calibration_id, adopted_by=adopted_by, reason=reason, run_id=run_id
    )
    spec = class_spec(connection, model_name, class_id)
    return AdoptionAnswer(
        adoption_id=adoption_id,
        class_name=catalog.class_by_id(connection, class_id),
        embedding_model=model_name,
        calibration_id=calibration_id,
        assignment_distance=spec.assignment_distance,
        verification_threshold=spec.verification_threshold,
        similarity_slope=spec.similarity_slope,
    )
