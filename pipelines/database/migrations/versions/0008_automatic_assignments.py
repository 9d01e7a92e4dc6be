"""Assignments that follow from what runs found and from the decisions in force, whatever was undone in which order."""

from alembic import op

revision = "0008"
down_revision = "0007"

VIEWS = """
-- An undo of what is undone already is refused, so that of a decision's undos only the last one can be in force: whether
-- it is shows in the number of steps from one to the next. No recursion, and each undo is visited once: a chain of 150
-- took 0.9 s when the undone were looked for from every undo in it.
CREATE OR REPLACE FUNCTION is_undone(decision bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    WITH RECURSIVE steps AS (
        SELECT decision AS id, false AS undone
        UNION ALL SELECT u.id, NOT s.undone FROM steps s
        CROSS JOIN LATERAL (SELECT id FROM decisions WHERE undoes = s.id ORDER BY id DESC LIMIT 1) u
    )
    SELECT count(*) % 2 = 0 FROM steps
$$;

CREATE OR REPLACE VIEW undone_decisions AS
SELECT DISTINCT u.undoes AS id FROM decisions u JOIN decisions d ON d.id = u.undoes
WHERE d.kind <> 'undo' AND is_undone(d.id);

-- The last that people say of who a crop shows. A crop is of one class; that both are named lets a query about one class
-- leave the decisions about all others alone.
CREATE VIEW latest_words AS
SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, id AS decision_id, kind, student_id, decided_by, decided_at,
    reason, run_id
FROM decisions_in_force WHERE kind IN ('confirm', 'assign', 'unassign', 'not_a_face') AND crop_id IS NOT NULL
ORDER BY class_id, crop_id, id DESC;

CREATE OR REPLACE VIEW confirmed_crops AS
SELECT w.class_id, w.crop_id, coalesce(s.merged_into, s.id) AS student_id, w.decision_id
FROM latest_words w JOIN students s ON s.id = w.student_id
WHERE w.kind IN ('confirm', 'assign') AND NOT EXISTS (
    SELECT 1 FROM decisions_in_force r JOIN students t ON t.id = r.student_id
    WHERE r.crop_id = w.crop_id AND r.kind = 'not_this_student' AND r.id > w.decision_id
    AND coalesce(t.merged_into, t.id) = coalesce(s.merged_into, s.id)
);

CREATE OR REPLACE VIEW unassigned_crops AS
SELECT class_id, crop_id FROM latest_words WHERE kind IN ('unassign', 'not_a_face');

CREATE OR REPLACE VIEW not_faces AS
SELECT class_id, crop_id FROM latest_words WHERE kind = 'not_a_face';
"""

# Those of 0005.
OLD_VIEWS = """
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
CREATE OR REPLACE VIEW unassigned_crops AS
SELECT class_id, crop_id FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, kind
    FROM decisions_in_force WHERE kind IN ('confirm', 'assign', 'unassign', 'not_a_face') AND crop_id IS NOT NULL
    ORDER BY class_id, crop_id, id DESC
) d WHERE d.kind IN ('unassign', 'not_a_face');
CREATE OR REPLACE VIEW not_faces AS
SELECT class_id, crop_id FROM (
    SELECT DISTINCT ON (class_id, crop_id) class_id, crop_id, kind
    FROM decisions_in_force WHERE kind IN ('confirm', 'assign', 'unassign', 'not_a_face') AND crop_id IS NOT NULL
    ORDER BY class_id, crop_id, id DESC
) d WHERE d.kind = 'not_a_face';
DROP VIEW latest_words;
CREATE OR REPLACE VIEW undone_decisions AS
SELECT DISTINCT undoes AS id FROM decisions WHERE undoes IS NOT NULL AND NOT is_undone(id);
CREATE OR REPLACE FUNCTION is_undone(decision bigint) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM decisions u WHERE u.undoes = decision AND NOT is_undone(u.id));
END $$;
"""

_CONTENT = """crop_id bigint NOT NULL REFERENCES face_crops ON DELETE CASCADE,
    model text NOT NULL,
    state text,
    student_id bigint REFERENCES students ON DELETE SET NULL,
    decided_by text,
    cosine_similarity real,
    similarity real,
    runner_up_id bigint REFERENCES students ON DELETE SET NULL,
    runner_up_cosine_similarity real,
    run_id text,
    decided_at timestamptz"""

_COLUMNS = """crop_id, model, state, student_id, decided_by, cosine_similarity, similarity, runner_up_id,
    runner_up_cosine_similarity, run_id, decided_at"""

# One row per assignment took the place of one per decision that changed it: a list of what each had found could not be
# taken apart in any order, for what a later decision does depends on what it finds.
TABLES = f"""
DROP TRIGGER keep_displaced_assignment ON assignments;
DROP FUNCTION keep_displaced_assignment();

-- What a decision wrote has the time of that decision; what a run wrote last, as the first decision after it found it.
CREATE TEMP TABLE found ON COMMIT DROP AS
SELECT DISTINCT ON (d.crop_id, d.model) d.crop_id, d.model, d.state, d.student_id, d.decided_by, d.cosine_similarity,
    d.similarity, d.runner_up_id, d.runner_up_cosine_similarity, d.run_id, d.decided_at
FROM displaced_assignments d JOIN decisions_in_force f ON f.id = d.decision_id
JOIN assignments a ON (a.crop_id, a.model) = (d.crop_id, d.model)
WHERE NOT EXISTS (SELECT 1 FROM decisions e WHERE e.decided_at = d.decided_at)
AND (a.decided_at = d.decided_at OR EXISTS (SELECT 1 FROM decisions e WHERE e.decided_at = a.decided_at))
ORDER BY d.crop_id, d.model, d.decided_at DESC NULLS LAST, d.decision_id;
DROP TABLE displaced_assignments;

-- The assignments that do not stand as the last run left them, because of what people said: as it left them. Without a
-- state there was none. With the decisions in force it is all that an assignment follows from.
CREATE TABLE displaced_assignments (
    {_CONTENT},
    PRIMARY KEY (crop_id, model)
);
CREATE INDEX ON displaced_assignments (student_id);
INSERT INTO displaced_assignments ({_COLUMNS}) SELECT {_COLUMNS} FROM found;

CREATE FUNCTION keep_displaced_assignment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO displaced_assignments (crop_id, model) VALUES (NEW.crop_id, NEW.model) ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO displaced_assignments ({_COLUMNS})
        VALUES (OLD.crop_id, OLD.model, OLD.state, OLD.student_id, OLD.decided_by, OLD.cosine_similarity,
            OLD.similarity, OLD.runner_up_id, OLD.runner_up_cosine_similarity, OLD.run_id, OLD.decided_at)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION forget_displaced_assignment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM displaced_assignments
    WHERE (crop_id, model) = (coalesce(NEW.crop_id, OLD.crop_id), coalesce(NEW.model, OLD.model));
    RETURN NULL;
END $$;
-- While a transaction has attendansee.following on, it makes assignments follow what people say; else it is a run.
CREATE TRIGGER keep_displaced_assignment AFTER INSERT OR UPDATE OR DELETE ON assignments
FOR EACH ROW WHEN (current_setting('attendansee.following', true) = 'on')
EXECUTE FUNCTION keep_displaced_assignment();
CREATE TRIGGER forget_displaced_assignment AFTER INSERT OR UPDATE OR DELETE ON assignments
FOR EACH ROW WHEN (current_setting('attendansee.following', true) IS DISTINCT FROM 'on')
EXECUTE FUNCTION forget_displaced_assignment();
"""  # noqa: S608 - only constants are put in

# What a run found goes to the first decision in force about the crop; where there is none, it is lost.
OLD_TABLES = f"""
DROP TRIGGER keep_displaced_assignment ON assignments;
DROP TRIGGER forget_displaced_assignment ON assignments;
DROP FUNCTION keep_displaced_assignment();
DROP FUNCTION forget_displaced_assignment();
CREATE TEMP TABLE found ON COMMIT DROP AS SELECT {_COLUMNS} FROM displaced_assignments;
DROP TABLE displaced_assignments;
CREATE TABLE displaced_assignments (
    decision_id bigint NOT NULL REFERENCES decisions ON DELETE CASCADE,
    {_CONTENT},
    PRIMARY KEY (decision_id, crop_id, model)
);
CREATE INDEX ON displaced_assignments (crop_id, model);
CREATE INDEX ON displaced_assignments (student_id);
INSERT INTO displaced_assignments (decision_id, {_COLUMNS})
SELECT first.decision_id, found.* FROM found JOIN (
    SELECT crop_id, min(coalesce(part_of, id)) AS decision_id FROM decisions_in_force
    WHERE crop_id IS NOT NULL GROUP BY crop_id
) first USING (crop_id);

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
"""  # noqa: S608 - as above


def upgrade() -> None:
    """Keep what runs found once for each assignment; one view of what people say last of a crop."""
    op.execute(VIEWS)
    op.execute(TABLES)


def downgrade() -> None:
    """Go back; what a merge alone has changed cannot be put back any more."""
    op.execute(OLD_TABLES)
    op.execute(OLD_VIEWS)
