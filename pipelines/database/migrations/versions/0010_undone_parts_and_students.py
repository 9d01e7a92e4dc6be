"""What an undo has confirmed anew goes with it where that undo is undone; who is listed nowhere any more."""

from alembic import op

revision = "0010"
down_revision = "0009"

UNDONE = """
CREATE OR REPLACE VIEW undone_decisions AS
SELECT DISTINCT u.undoes AS id FROM decisions u JOIN decisions d ON d.id = u.undoes
WHERE {} AND is_undone(d.id);
"""
# An undo that has parts counts too, for its parts look here: they stayed in force once it was undone, and nothing could
# take them back. Of the others only what they undo matters, and chains of undos are left out.
WITH_PARTS = "(d.kind <> 'undo' OR EXISTS (SELECT 1 FROM decisions p WHERE p.part_of = d.id))"

# Whom a person has made and undone again: their row stays, for the decisions name it and may count again.
EMPTIED = """
CREATE VIEW emptied_students AS
SELECT s.class_id, s.id AS student_id
FROM students s
WHERE s.provisional AND s.merged_into IS NULL
AND EXISTS (SELECT 1 FROM decisions d WHERE s.id IN (d.student_id, d.other_student_id))
AND NOT EXISTS (SELECT 1 FROM decisions_in_force d WHERE s.id IN (d.student_id, d.other_student_id))
AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.student_id = s.id)
AND NOT EXISTS (SELECT 1 FROM clusters k WHERE k.student_id = s.id)
AND NOT EXISTS (SELECT 1 FROM students m WHERE m.merged_into = s.id);
"""


def upgrade() -> None:
    """List undos that have parts among what is undone; a view of students who hold nothing any more."""
    op.execute(UNDONE.format(WITH_PARTS))
    op.execute(EMPTIED)


def downgrade() -> None:
    """Leave all undos out; drop the view."""
    op.execute("DROP VIEW emptied_students")
    op.execute(UNDONE.format("d.kind <> 'undo'"))
