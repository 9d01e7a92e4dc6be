"""Thresholds that were measured on a class's confirmed identities, and which of them people adopted."""

from alembic import op

revision = "0004"
down_revision = "0003"

UPGRADE = """
-- Cosine distances, and the slope of the calibrated scale per unit of distance. `version` is that of the vectors.
CREATE TABLE calibrations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    model text NOT NULL,
    version text NOT NULL,
    operating_distance double precision NOT NULL CHECK (operating_distance > 0 AND operating_distance < 2),
    verification_distance double precision NOT NULL CHECK (verification_distance > 0 AND verification_distance < 2),
    slope double precision NOT NULL CHECK (slope > 0),
    -- The false-positive identification rate that was asked for, and what was seen at the operating distance.
    fpir double precision NOT NULL CHECK (fpir > 0 AND fpir < 1),
    impostor_comparisons integer NOT NULL,
    false_positives integer NOT NULL,
    genuine_comparisons integer NOT NULL,
    true_positives integer NOT NULL,
    run_id text,
    calibrated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON calibrations (class_id);

-- Append-only, as decisions are: the latest row of a class and model counts, without a calibration the model's own
-- thresholds.
CREATE TABLE calibration_adoptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    model text NOT NULL,
    calibration_id bigint REFERENCES calibrations,
    adopted_by text NOT NULL,
    reason text,
    run_id text,
    adopted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON calibration_adoptions (class_id, model, id);
"""


def upgrade() -> None:
    """Add both tables."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop both: every class goes back to its model's own thresholds."""
    op.execute("DROP TABLE calibration_adoptions")
    op.execute("DROP TABLE calibrations")
