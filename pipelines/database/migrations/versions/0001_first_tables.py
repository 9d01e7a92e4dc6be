"""Classes, sessions, photos, face crops, embeddings, clusters, assignments, decisions, attendance."""

from alembic import op

revision = "0001"
down_revision = None

TABLES = """
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE classes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    active_model text,
    photo_root text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE sessions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    name text NOT NULL,
    is_enrolment boolean NOT NULL DEFAULT false,
    held_on date,
    -- The number of the next provisional student named after this session; a number is never reused.
    next_cluster integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (class_id, name)
);

CREATE TABLE students (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    name text NOT NULL,
    -- True until a person names the student; then a cluster of unknown crops has become somebody.
    provisional boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (class_id, name)
);

CREATE TABLE images (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
    sha256 text NOT NULL,
    path text NOT NULL,
    size_bytes bigint NOT NULL,
    width integer,
    height integer,
    taken_at timestamp,
    -- Whose portrait this is; NULL in an ordinary session.
    student_id bigint REFERENCES students ON DELETE SET NULL,
    refused_reason text,
    -- The detector's version string once the photo was searched for faces.
    searched_with text,
    removed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (session_id, sha256)
);

CREATE TABLE face_crops (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    image_id bigint NOT NULL REFERENCES images ON DELETE CASCADE,
    x real NOT NULL,
    y real NOT NULL,
    width real NOT NULL,
    height real NOT NULL,
    -- x1, y1 .. x5, y5: eyes, nose, mouth corners, the image-left one of each pair first.
    landmarks real[] NOT NULL CHECK (cardinality(landmarks) = 10),
    confidence real NOT NULL,
    sharpness real NOT NULL,
    yaw real NOT NULL,
    unusable_reasons text[] NOT NULL DEFAULT '{}',
    usable boolean GENERATED ALWAYS AS (cardinality(unusable_reasons) = 0) STORED,
    crop_path text,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON face_crops (image_id);

CREATE TABLE decisions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class_id bigint NOT NULL REFERENCES classes ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('confirm')),
    crop_id bigint REFERENCES face_crops ON DELETE CASCADE,
    student_id bigint REFERENCES students ON DELETE CASCADE,
    decided_by text NOT NULL,
    reason text,
    run_id text,
    decided_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON decisions (crop_id);
CREATE INDEX ON decisions (class_id);

CREATE VIEW confirmed_crops AS
SELECT DISTINCT ON (crop_id) crop_id, student_id, id AS decision_id
FROM decisions
WHERE kind = 'confirm'
ORDER BY crop_id, id DESC;

CREATE TABLE clusters (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
    model text NOT NULL,
    label integer NOT NULL,
    UNIQUE (session_id, model, label)
);

CREATE TABLE cluster_members (
    cluster_id bigint NOT NULL REFERENCES clusters ON DELETE CASCADE,
    crop_id bigint NOT NULL REFERENCES face_crops ON DELETE CASCADE,
    PRIMARY KEY (cluster_id, crop_id)
);
CREATE INDEX ON cluster_members (crop_id);

CREATE TABLE assignments (
    crop_id bigint NOT NULL REFERENCES face_crops ON DELETE CASCADE,
    model text NOT NULL,
    state text NOT NULL CHECK (state IN ('assigned', 'no_match', 'needs_review')),
    student_id bigint REFERENCES students ON DELETE CASCADE,
    decided_by text NOT NULL CHECK (decided_by IN ('person', 'knn', 'cluster')),
    cosine_similarity real,
    similarity real,
    runner_up_id bigint REFERENCES students ON DELETE SET NULL,
    runner_up_cosine_similarity real,
    run_id text,
    decided_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (crop_id, model),
    CHECK ((state = 'no_match') = (student_id IS NULL))
);
CREATE INDEX ON assignments (student_id);

CREATE TABLE attendance (
    session_id bigint NOT NULL REFERENCES sessions ON DELETE CASCADE,
    model text NOT NULL,
    student_id bigint NOT NULL REFERENCES students ON DELETE CASCADE,
    status text NOT NULL CHECK (status IN ('present', 'absent', 'unsure')),
    crops integer NOT NULL,
    similarity real,
    PRIMARY KEY (session_id, model, student_id)
);
"""

# One table per model: a vector of the wrong dimension is a type error. PLAIN storage keeps a 512-D vector in its row;
# the default moves it out of line and made exact scans 2 to 11 times slower.
EMBEDDINGS = """
CREATE TABLE embeddings_{model} (
    crop_id bigint NOT NULL REFERENCES face_crops ON DELETE CASCADE,
    version text NOT NULL,
    embedding vector({dimension}) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (crop_id, version)
);
ALTER TABLE embeddings_{model} ALTER COLUMN embedding SET STORAGE PLAIN;
"""


def upgrade() -> None:
    """Create every table."""
    op.execute(TABLES)
    for model, dimension in {"facenet": 128, "arcface": 512, "facenet512": 512, "dlib": 128}.items():
        op.execute(EMBEDDINGS.format(model=model, dimension=dimension))


def downgrade() -> None:
    """Drop every table; all data is lost."""
    # Those of models that people have added too, which no revision has made.
    vectors = op.get_bind().exec_driver_sql(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND starts_with(tablename, 'embeddings_')"
    )
    for table in ("attendance", "assignments", "cluster_members", "clusters", *vectors.scalars().all()):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP VIEW confirmed_crops")
    for table in ("decisions", "face_crops", "images", "students", "sessions", "classes"):
        op.execute(f"DROP TABLE {table}")
