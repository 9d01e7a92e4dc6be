"""The thresholds that hold for a class: those that a person adopted for it, else the model's own."""

from dataclasses import replace

from psycopg import Connection

from pipelines.database import calibrations
from pipelines.resources.embedding.registry import ModelSpec, get_spec


def class_spec(connection: Connection, model_name: str, class_id: int, *, version: str | None = None) -> ModelSpec:
    """The model with the thresholds that hold for a class; raises ModelError for an unknown model.

    Adopting a calibration replaces the distance up to which a crop is assigned, and the calibrated scale. How faces are
    clustered before anybody asks who they are stays the model's: that is a mean over pairs, not a search.

    version: of the vectors that the thresholds are for; where it is given, those that were measured on others do not
    hold.
    """
    spec = get_spec(model_name)
    adopted = calibrations.adopted_calibration(connection, class_id, model_name)
    if adopted is None or version not in (None, adopted.version):
        return spec
    return replace(
        spec,
        assignment_distance=adopted.operating_distance,
        verification_threshold=adopted.verification_distance,
        similarity_slope=adopted.slope,
    )


def cosine_in_use(distance: float) -> float | None:
    """A threshold on cosine distance as a cosine similarity for an answer; None where not even equal vectors reach it."""
    return 1 - distance if distance >= 0 else None
