"""Which model counts for a class since when, and which sessions each model's lineage has processed."""

from alembic import op

revision = "0003"
down_revision = "0002"

UPGRADE = """
-- Append-only, as decisions are. A class's first model is adopted and not switched to.
CREATE TABLE model_switches (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    old_model text NOT NULL,
    new_model text NOT NULL CHECK (new_model <> old_model),
    switched_by text NOT NULL,
    reason text NOT NULL,
    -- Confirmed crops that the new model takes for somebody else, and sessions that its lineage lacked: both were named
    -- to the person, who switched all the same.
    accepted_crops bigint[] NOT NULL DEFAULT '{}',
    missing_sessions text[] NOT NULL DEFAULT '{}',
    run_id text,
    switched_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON model_switches (class_id);

-- When a model's lineage last decided who a session's faces are. Neither assignments, which keep the time of their last
-- change and which single operations write too, nor attendance, of which an empty session has none, can tell.
CREATE TABLE lineage_sessions (
    session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
    model text NOT NULL,
    assigned_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, model)
);
INSERT INTO lineage_sessions (session_id, model) SELECT DISTINCT session_id, model FROM attendance;

-- Nameless students whom only other lineages than the one that counts have made: while a model is on trial, and once it
-- is retired, they are in no list of the class.
CREATE VIEW students_of_other_lineages AS
SELECT s.class_id, s.id AS student_id
FROM students s JOIN classes c ON c.id = s.class_id
WHERE s.provisional AND s.merged_into IS NULL
AND (
    EXISTS (SELECT 1 FROM assignments a WHERE a.student_id = s.id AND a.model <> c.active_model)
    OR EXISTS (SELECT 1 FROM clusters k WHERE k.student_id = s.id AND k.model <> c.active_model)
)
AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.student_id = s.id AND a.model = c.active_model)
AND NOT EXISTS (SELECT 1 FROM clusters k WHERE k.student_id = s.id AND k.model = c.active_model)
AND NOT EXISTS (SELECT 1 FROM attendance t WHERE t.student_id = s.id AND t.model = c.active_model)
AND NOT EXISTS (SELECT 1 FROM decisions d WHERE s.id IN (d.student_id, d.other_student_id));
"""


def upgrade() -> None:
    """Add the tables and the view; a session that has attendance in a lineage counts as processed by it."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them; the active models stay as they are."""
    op.execute("DROP VIEW students_of_other_lineages")
    op.execute("DROP TABLE lineage_sessions")
    op.execute("DROP TABLE model_switches")
