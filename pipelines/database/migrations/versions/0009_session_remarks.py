"""What people should know of a session's files that no photo's row can say."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column; sessions get their remarks when they are registered again."""
    op.execute("ALTER TABLE sessions ADD COLUMN remarks text[] NOT NULL DEFAULT '{}'")


def downgrade() -> None:
    """Drop it."""
    op.execute("ALTER TABLE sessions DROP COLUMN remarks")
