"""Plans of clustering a class anew, which a person looks at before they are applied."""

from alembic import op

revision = "0006"
down_revision = "0005"

UPGRADE = """
-- `state` is a hash of all that the plan was made from; `changes` is what applying it does, and must do exactly.
CREATE TABLE reclustering_plans (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    model text NOT NULL,
    version text NOT NULL,
    parameters jsonb NOT NULL,
    state text NOT NULL,
    changes jsonb NOT NULL,
    run_id text,
    planned_at timestamptz NOT NULL DEFAULT now(),
    applied_by text,
    applied_at timestamptz,
    reason text
);
CREATE INDEX ON reclustering_plans (class_id);
"""


def upgrade() -> None:
    """Add the table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop it; what was applied stays applied."""
    op.execute("DROP TABLE reclustering_plans")
