"""Decisions that can be undone, new kinds of them, manual attendance."""

from alembic import op

revision = "0005"
down_revision = "0004"

# What is in force decides; `is_undone` is recursive, for an undo can be undone.
VIEWS = """
CREATE FUNCTION is_undone(decision bigint) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM decisions u WHERE u.undoes = decision AND NOT is_undone(u.id));
END $$;

CREATE VIEW undone_decisions AS
SELECT DISTINCT undoes AS id FROM decisions WHERE undoes IS NOT NULL AND NOT is_undone(id);

-- A part goes with the decision it is part of.
CREATE VIEW decisions_in_force AS
SELECT d.* FROM decisions d
WHERE d.kind <> 'undo'
AND NOT EXISTS (SELECT 1 FROM undone_decisions u WHERE u.id = d.id)
AND NOT EXISTS (SELECT 1 FROM undone_decisions u WHERE u.id = d.part_of);

-- Who a crop shows, until a later decision takes that student off it. A crop is of one class; that both are named lets a
-- query about one class leave the decisions about all others alone.
CREATE OR REPLACE VIEW confirmed_crops AS
SELECT d.class_id, d.crop_id, coalesce(s.merged_into, s.id) AS student_id, d.id AS decision_id
FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, student_id, id, kind
    FROM decisions_in_force WHERE kind IN ('confirm', 'assign', 'unassign', 'not_a_face') AND crop_id IS NOT NULL
    ORDER BY class_id, crop_id, id DESC
) d JOIN students s ON s.id = d.student_id
WHERE d.kind IN ('confirm', 'assign') AND NOT EXISTS (
    SELECT 1 FROM decisions_in_force r JOIN students t ON t.id = r.student_id
    WHERE r.crop_id = d.crop_id AND r.kind = 'not_this_student' AND r.id > d.id
    AND coalesce(t.merged_into, t.id) = coalesce(s.merged_into, s.id)
);

-- Crops that a person has taken a student off, or said to be no face, and not given to anybody since.
CREATE OR REPLACE VIEW unassigned_crops AS
SELECT class_id, crop_id FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, kind
    FROM decisions_in_force WHERE kind IN ('confirm', 'assign', 'unassign', 'not_a_face') AND crop_id IS NOT NULL
    ORDER BY class_id, crop_id, id DESC
) d WHERE d.kind IN ('unassign', 'not_a_face');

-- Those of them that show no face at all: no run takes them into account.
CREATE VIEW not_faces AS
SELECT class_id, crop_id FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, kind
    FROM decisions_in_force WHERE kind IN ('confirm', 'assign', 'unassign', 'not_a_face') AND crop_id IS NOT NULL
    ORDER BY class_id, crop_id, id DESC
) d WHERE d.kind = 'not_a_face';

-- Whom a crop does not show, until a later confirmation says that it does.
CREATE OR REPLACE VIEW rejected_students AS
SELECT DISTINCT d.crop_id, coalesce(s.merged_into, s.id) AS student_id
FROM decisions_in_force d JOIN students s ON s.id = d.student_id
WHERE d.kind = 'not_this_student' AND NOT EXISTS (
    SELECT 1 FROM decisions_in_force c JOIN students t ON t.id = c.student_id
    WHERE c.crop_id = d.crop_id AND c.kind IN ('confirm', 'assign') AND c.id > d.id
    AND coalesce(t.merged_into, t.id) = coalesce(s.merged_into, s.id)
);

-- What a person says of a student in a session, whatever the photos show.
CREATE VIEW manual_attendance AS
SELECT session_id, student_id, status, note, decided_by, decided_at, decision_id FROM (
    SELECT DISTINCT ON (d.session_id, coalesce(s.merged_into, s.id)) d.session_id,
        coalesce(s.merged_into, s.id) AS student_id, d.status, d.reason AS note, d.decided_by, d.decided_at,
        d.id AS decision_id
    FROM decisions_in_force d JOIN students s ON s.id = d.student_id
    WHERE d.kind = 'attendance'
    ORDER BY d.session_id, coalesce(s.merged_into, s.id), d.id DESC
) latest WHERE status IS NOT NULL;
"""

TABLES = """
ALTER TABLE decisions
    DROP CONSTRAINT decisions_kind_check,
    ADD CONSTRAINT decisions_kind_check CHECK (kind IN (
        'confirm', 'assign', 'unassign', 'not_this_student', 'not_a_face',
        'rename', 'merge', 'split', 'hide', 'attendance', 'undo'
    )),
    -- Of `attendance`; without a status what the photos say counts again.
    ADD COLUMN session_id bigint REFERENCES sessions ON DELETE CASCADE,
    ADD COLUMN status text CHECK (status IN ('present', 'absent', 'excused')),
    -- Which decision an `undo` takes back.
    ADD COLUMN undoes bigint REFERENCES decisions ON DELETE CASCADE,
    -- A split assigns its crops, a merge confirms anew what it would have lost, and a confirmation without a crop stands
    -- for many: one undo takes back all.
    ADD COLUMN part_of bigint REFERENCES decisions ON DELETE CASCADE,
    ADD CONSTRAINT decisions_undo_check CHECK ((kind = 'undo') = (undoes IS NOT NULL));
CREATE INDEX ON decisions (undoes) WHERE undoes IS NOT NULL;
CREATE INDEX ON decisions (part_of) WHERE part_of IS NOT NULL;
CREATE INDEX ON decisions (session_id) WHERE session_id IS NOT NULL;

-- name, provisional, merged_into and hidden follow from what a student was before the first decision about them, kept
-- here when that is made, and from the decisions in force. A hidden student is a visitor: in no register, and their face
-- is known, so that it is nobody else's.
ALTER TABLE students
    ADD COLUMN hidden boolean NOT NULL DEFAULT false,
    ADD COLUMN original_name text,
    ADD COLUMN original_provisional boolean;
UPDATE students s SET original_name = first.old_name,
    original_provisional = first.old_name ~ '^Class_.+_Cluster_[0-9]+$'
FROM (
    SELECT DISTINCT ON (student_id) student_id, old_name FROM (
        SELECT id, CASE kind WHEN 'merge' THEN other_student_id ELSE student_id END AS student_id, old_name
        FROM decisions WHERE kind IN ('rename', 'merge')
    ) named ORDER BY student_id, id
) first WHERE first.student_id = s.id;

-- The assignments that a decision has changed, as they were before: where it is undone, and no later decision or run has
-- decided otherwise, they count again. Without a state there was none.
CREATE TABLE displaced_assignments (
    decision_id bigint NOT NULL REFERENCES decisions ON DELETE CASCADE,
    crop_id bigint NOT NULL REFERENCES face_crops ON DELETE CASCADE,
    model text NOT NULL,
    state text,
    student_id bigint REFERENCES students ON DELETE SET NULL,
    decided_by text,
    cosine_similarity real,
    similarity real,
    runner_up_id bigint REFERENCES students ON DELETE SET NULL,
    runner_up_cosine_similarity real,
    run_id text,
    decided_at timestamptz,
    PRIMARY KEY (decision_id, crop_id, model)
);
CREATE INDEX ON displaced_assignments (crop_id, model);
CREATE INDEX ON displaced_assignments (student_id);

-- While a transaction names a decision in the setting attendansee.decision, changes are that decision's.
CREATE FUNCTION keep_displaced_assignment() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    decision bigint := current_setting('attendansee.decision', true);
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO displaced_assignments (decision_id, crop_id, model)
        VALUES (decision, NEW.crop_id, NEW.model) ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO displaced_assignments (decision_id, crop_id, model, state, student_id, decided_by,
            cosine_similarity, similarity, runner_up_id, runner_up_cosine_similarity, run_id, decided_at)
        VALUES (decision, OLD.crop_id, OLD.model, OLD.state, OLD.student_id, OLD.decided_by,
            OLD.cosine_similarity, OLD.similarity, OLD.runner_up_id, OLD.runner_up_cosine_similarity, OLD.run_id,
            OLD.decided_at) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_displaced_assignment AFTER INSERT OR UPDATE OR DELETE ON assignments
FOR EACH ROW WHEN (current_setting('attendansee.decision', true) <> '')
EXECUTE FUNCTION keep_displaced_assignment();

ALTER TABLE attendance
    DROP CONSTRAINT attendance_status_check,
    ADD CONSTRAINT attendance_status_check CHECK (status IN ('present', 'absent', 'unsure', 'excused')),
    -- The person's decision that the status is; NULL where it follows from the photos.
    ADD COLUMN decision_id bigint REFERENCES decisions ON DELETE SET NULL;
"""

DOWNGRADE = """
ALTER TABLE attendance
    DROP CONSTRAINT attendance_status_check,
    DROP COLUMN decision_id;
UPDATE attendance SET status = 'absent' WHERE status = 'excused';
ALTER TABLE attendance
    ADD CONSTRAINT attendance_status_check CHECK (status IN ('present', 'absent', 'unsure'));

DROP TRIGGER keep_displaced_assignment ON assignments;
DROP FUNCTION keep_displaced_assignment();
DROP TABLE displaced_assignments;
CREATE TEMP TABLE surviving ON COMMIT DROP AS SELECT id FROM decisions_in_force;
DROP VIEW manual_attendance;
DROP VIEW not_faces;
CREATE OR REPLACE VIEW confirmed_crops AS
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
CREATE OR REPLACE VIEW unassigned_crops AS
SELECT class_id, crop_id FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, kind
    FROM decisions WHERE kind IN ('confirm', 'unassign') ORDER BY class_id, crop_id, id DESC
) d WHERE d.kind = 'unassign';
CREATE OR REPLACE VIEW rejected_students AS
SELECT DISTINCT d.crop_id, coalesce(s.merged_into, s.id) AS student_id
FROM decisions d JOIN students s ON s.id = d.student_id
WHERE d.kind = 'not_this_student' AND NOT EXISTS (
    SELECT 1 FROM decisions c JOIN students t ON t.id = c.student_id
    WHERE c.crop_id = d.crop_id AND c.kind = 'confirm' AND c.id > d.id
    AND coalesce(t.merged_into, t.id) = coalesce(s.merged_into, s.id)
);
DROP VIEW decisions_in_force;
DROP VIEW undone_decisions;
DROP FUNCTION is_undone(bigint);
-- What was undone never happened, the parts of a split stay without it, and a crop that is no face is nobody's.
UPDATE decisions d SET part_of = NULL FROM surviving s WHERE s.id = d.id;
DELETE FROM decisions d WHERE kind IN ('undo', 'split', 'hide', 'attendance') OR (crop_id IS NULL AND kind = 'confirm')
    OR NOT EXISTS (SELECT 1 FROM surviving WHERE surviving.id = d.id);
UPDATE decisions SET kind = 'confirm' WHERE kind = 'assign';
UPDATE decisions SET kind = 'unassign' WHERE kind = 'not_a_face';
ALTER TABLE decisions
    DROP CONSTRAINT decisions_undo_check,
    DROP CONSTRAINT decisions_kind_check,
    ADD CONSTRAINT decisions_kind_check
        CHECK (kind IN ('confirm', 'unassign', 'not_this_student', 'rename', 'merge')),
    DROP COLUMN session_id, DROP COLUMN status, DROP COLUMN undoes, DROP COLUMN part_of;
ALTER TABLE students DROP COLUMN hidden, DROP COLUMN original_name, DROP COLUMN original_provisional;
"""


def upgrade() -> None:
    """Widen decisions, students and attendance."""
    op.execute(TABLES)
    op.execute(VIEWS)


def downgrade() -> None:
    """Go back; what was undone is lost, and so are splits (but not whose the crops are), visitors, manual attendance."""
    op.execute(DOWNGRADE)
