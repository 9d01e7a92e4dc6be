"""Which sessions' attendance each lineage has derived, if with no student in it."""

from alembic import op

revision = "0007"
down_revision = "0006"

UPGRADE = """
-- Attendance itself cannot tell: a session whose last row has gone would never be derived again. Nor can
-- lineage_sessions: single operations derive attendance, too, and have not decided who all faces are.
CREATE TABLE registered_sessions (
    session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
    model text NOT NULL,
    PRIMARY KEY (session_id, model)
);
INSERT INTO registered_sessions
SELECT session_id, model FROM attendance WHERE decision_id IS NULL
UNION SELECT l.session_id, l.model FROM lineage_sessions l JOIN sessions s ON s.id = l.session_id WHERE NOT s.is_enrolment;
"""


def upgrade() -> None:
    """Add the table; sessions that have attendance or were assigned count."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP TABLE registered_sessions")
