"""Decisions other than confirm, merged students, roster fields, clusters of a whole class."""

from alembic import op

revision = "0002"
down_revision = "0001"

UPGRADE = """
ALTER TABLE classes ADD COLUMN next_cluster integer NOT NULL DEFAULT 1;

-- A merged student stays as a row, so that decisions about it keep their meaning; it is in no list any more, and its
-- name and number are free again. merged_into is never a merged student itself: chains are flattened.
ALTER TABLE students
    ADD COLUMN merged_into bigint REFERENCES students ON DELETE CASCADE,
    ADD COLUMN student_number text,
    ADD COLUMN email text;
ALTER TABLE students DROP CONSTRAINT students_class_id_name_key;
CREATE UNIQUE INDEX students_class_id_name_key ON students (class_id, name) WHERE merged_into IS NULL;
CREATE UNIQUE INDEX students_class_id_student_number_key ON students (class_id, student_number)
    WHERE merged_into IS NULL AND student_number IS NOT NULL;
CREATE INDEX ON students (merged_into) WHERE merged_into IS NOT NULL;

ALTER TABLE decisions
    DROP CONSTRAINT decisions_kind_check,
    ADD CONSTRAINT decisions_kind_check
        CHECK (kind IN ('confirm', 'unassign', 'not_this_student', 'rename', 'merge')),
    -- Whom a student was merged into.
    ADD COLUMN other_student_id bigint REFERENCES students ON DELETE CASCADE,
    -- Of a rename the student's names; of a merge those of the student who is kept.
    ADD COLUMN old_name text,
    ADD COLUMN new_name text;

-- Who a crop shows, until a later decision takes that student off it. A crop is of one class; that both are named lets a
-- query about one class leave the decisions about all others alone.
DROP VIEW confirmed_crops;
CREATE VIEW confirmed_crops AS
SELECT d.class_id, d.crop_id, coalesce(s.merged_into, s.id) AS student_id, d.id AS decision_id
FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, student_id, id, kind
    FROM decisions WHERE kind IN ('confirm', 'unassign') ORDER BY class_id, crop_id, id DESC
) d JOIN students s ON s.id = d.student_id
WHERE d.kind = 'confirm' AND NOT EXISTS (
    SELECT 1 FROM decisions r JOIN students t ON t.id = r.student_id
    WHERE r.crop_id = d.crop_id AND r.kind = 'not_this_student' AND r.id > d.id
    AND coalesce(t.merged_into, t.id) = coalesce(s.merged_into, s.id)
);

-- Crops that a person has taken a student off and not given to anybody since.
CREATE VIEW unassigned_crops AS
SELECT class_id, crop_id FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, kind
    FROM decisions WHERE kind IN ('confirm', 'unassign') ORDER BY class_id, crop_id, id DESC
) d WHERE d.kind = 'unassign';

-- Whom a crop does not show, until a later confirmation says that it does.
CREATE VIEW rejected_students AS
SELECT DISTINCT d.crop_id, coalesce(s.merged_into, s.id) AS student_id
FROM decisions d JOIN students s ON s.id = d.student_id
WHERE d.kind = 'not_this_student' AND NOT EXISTS (
    SELECT 1 FROM decisions c JOIN students t ON t.id = c.student_id
    WHERE c.crop_id = d.crop_id AND c.kind = 'confirm' AND c.id > d.id
    AND coalesce(t.merged_into, t.id) = coalesce(s.merged_into, s.id)
);

-- Clusters of a whole class have no session. `student_id` is who the cluster was made into, where somebody asked for
-- students without assignments.
ALTER TABLE clusters
    ADD COLUMN class_id bigint REFERENCES classes ON DELETE CASCADE,
    ADD COLUMN student_id bigint REFERENCES students ON DELETE SET NULL,
    ALTER COLUMN session_id DROP NOT NULL;
UPDATE clusters c SET class_id = s.class_id FROM sessions s WHERE s.id = c.session_id;
ALTER TABLE clusters ALTER COLUMN class_id SET NOT NULL;
CREATE UNIQUE INDEX ON clusters (class_id, model, label) WHERE session_id IS NULL;
"""

DOWNGRADE = """
DELETE FROM clusters WHERE session_id IS NULL;
ALTER TABLE clusters DROP COLUMN class_id, DROP COLUMN student_id, ALTER COLUMN session_id SET NOT NULL;
-- What counts of the confirmations stays, told of the students who were kept.
DELETE FROM decisions d WHERE kind = 'confirm' AND NOT EXISTS (
    SELECT 1 FROM confirmed_crops c WHERE c.decision_id = d.id
);
DROP VIEW rejected_students;
DROP VIEW unassigned_crops;
DROP VIEW confirmed_crops;
CREATE VIEW confirmed_crops AS
SELECT DISTINCT ON (crop_id) crop_id, student_id, id AS decision_id
FROM decisions WHERE kind = 'confirm' ORDER BY crop_id, id DESC;
DELETE FROM decisions WHERE kind <> 'confirm';
ALTER TABLE decisions
    DROP CONSTRAINT decisions_kind_check,
    ADD CONSTRAINT decisions_kind_check CHECK (kind IN ('confirm')),
    DROP COLUMN other_student_id, DROP COLUMN old_name, DROP COLUMN new_name;
UPDATE decisions d SET student_id = s.merged_into FROM students s WHERE s.id = d.student_id AND s.merged_into IS NOT NULL;
UPDATE images i SET student_id = s.merged_into FROM students s WHERE s.id = i.student_id AND s.merged_into IS NOT NULL;
DELETE FROM students WHERE merged_into IS NOT NULL;
DROP INDEX students_class_id_name_key;
ALTER TABLE students DROP COLUMN merged_into, DROP COLUMN student_number, DROP COLUMN email,
    ADD CONSTRAINT students_class_id_name_key UNIQUE (class_id, name);
ALTER TABLE classes DROP COLUMN next_cluster;
"""


def upgrade() -> None:
    """Widen decisions, students and clusters."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Go back; decisions other than the confirmations that count, and clusters of classes, are lost."""
    op.execute(DOWNGRADE)
