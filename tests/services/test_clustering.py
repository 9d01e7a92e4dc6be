"""The clustering operations on made vectors in a real database, and the rules of who owns a cluster."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.database import catalog, crops
from pipelines.database.clusters import ClusterCrop
from pipelines.errors import ClassBusyError, ParameterError, UnknownIdError, WeightsError
from pipelines.faces.clustering import FREE, agglomerative_clusters
from pipelines.partitions import parse_session_key
from pipelines.services.attendance import AttendanceService
from pipelines.services.clustering import (
    FaceCropClusteringService,
    as_decided,
    cluster_owners,
    decide_crops,
    people_left_without,
    students_emptied,
    students_to_remember,
    unknown_people,
)
from pipelines.services.context import default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService


@pytest.fixture
def service(database):
    return FaceCropClusteringService("dlib")


@pytest.fixture
def world(database, embedded_class):
    return World(database, embedded_class)


class World:
    """The made class `m` with the words that people say about it."""

    def __init__(self, database, made):
        self.database = database
        self.made = made

    def session(self, name: str, photos: list[list[str]], **options) -> tuple[int, dict[tuple[int, str], int]]:
        made = self.made.session(f"m__{name}", photos, **options)
        with self.database.connection() as connection:
            return catalog.find_session(connection, parse_session_key(f"m__{name}")).id, made

    @property
    def class_id(self) -> int:
        with self.database.connection() as connection:
            return catalog.find_class(connection, "m")

    def student(self, name: str) -> int:
        """A named student, made where absent."""
        with self.database.connection() as connection:
            return catalog.ensure_named_student(connection, catalog.find_class(connection, "m"), name)

    def say(self, kind: str, crop_id: int, name: str) -> None:
        """What a person says about a crop and a student."""
        student_id = self.student(name)
        with self.database.connection() as connection:
            class_id = catalog.find_class(connection, "m")
            connection.execute(
                "INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by) VALUES (%s, %s, %s, %s, 'test')",
                [class_id, kind, crop_id, student_id],
            )

    def assign(self, crop_id: int, name: str, state: str = "assigned", model: str = "dlib") -> None:
        """An automatic assignment, as another operation leaves it."""
        student_id = self.student(name)
        with self.database.connection() as connection:
            connection.execute(
                """INSERT INTO assignments (crop_id, model, state, student_id, decided_by)
                VALUES (%s, %s, %s, %s, 'knn')
                ON CONFLICT (crop_id, model) DO UPDATE SET state = excluded.state, student_id = excluded.student_id""",
                [crop_id, model, state, student_id],
            )

    def rename(self, old: str, new: str) -> None:
        with self.database.connection() as connection:
            done = connection.execute("UPDATE students SET name = %s, provisional = false WHERE name = %s", [new, old])
            assert done.rowcount == 1

    def query(self, sql: str) -> list[tuple]:
        with self.database.connection() as connection:
            return connection.execute(sql).fetchall()

    def names(self) -> list[str]:
        return [name for (name,) in self.query("SELECT name FROM students ORDER BY id")]

    def state(self) -> list[list[tuple]]:
        """Everything that the operations write."""
        return [
            self.query(f"SELECT {columns} ORDER BY 1, 2")
            for columns in (
                "id, name FROM students",
                "crop_id, model, state, student_id, decided_by, decided_at FROM assignments",
                "c.id, m.crop_id, c.session_id, c.class_id, c.model, c.label, c.student_id "
                "FROM clusters c JOIN cluster_members m ON m.cluster_id = c.id",
                "session_id, student_id, model, status, crops FROM attendance",
                "id, next_cluster FROM sessions",
            )
        ]

    def review(self, crop_id: int) -> str | None:
        """The student that a crop needs a review for."""
        rows = self.query(
            "SELECT s.name FROM assignments a JOIN students s ON s.id = a.student_id "
            f"WHERE a.crop_id = {crop_id} AND a.state = 'needs_review'"
        )
        return rows[0][0] if rows else None

    def copy_vector(self, source: int, target: int) -> None:
        with self.database.connection() as connection:
            connection.execute(
                "UPDATE embeddings_dlib SET embedding = (SELECT embedding FROM embeddings_dlib WHERE crop_id = %s) "
                "WHERE crop_id = %s",
                [source, target],
            )


# Sessions


def test_a_session_becomes_clusters_and_provisional_students(world, service, identities_of):
    session_id, made = world.session("1", [["ann", "bob"], ["ann", "cem"], ["ann"]])
    answer = service.cluster_session_crops(session_id)
    assert answer.model_dump() == {
        "status": "success",
        "session_id": session_id,
        "session_name": "1",
        "clusters_found": 3,
        "students_created": 3,
        "crops_assigned": 5,
        "cluster_sizes": {"0": 3, "1": 1, "2": 1},
        "max_clusters_reached": False,
        "students_emptied": [],
        "cosine_threshold": pytest.approx(0.93),
        "errors": 0,
    }
    names = identities_of(made)
    assert {names[i, "ann"] for i in range(3)} == {"Class_m_Session_1_Cluster_1"}
    assert names[0, "bob"] == "Class_m_Session_1_Cluster_2"
    assert names[1, "cem"] == "Class_m_Session_1_Cluster_3"
    evidence = world.query("SELECT crop_id, decided_by, cosine_similarity, similarity, run_id FROM assignments")
    for crop_id, decided_by, cosine, similarity, _ in evidence:
        assert decided_by == "cluster"
        if crop_id in {made[0, "bob"], made[1, "cem"]}:
            assert (cosine, similarity) == (None, None)
        else:
            assert 0.95 < cosine < 1
            assert similarity > 0.5


def test_the_run_is_recorded_with_what_it_wrote(world, service):
    session_id, _ = world.session("1", [["ann"]])
    service.cluster_session_crops(session_id, run_id="a run")
    assert world.query("SELECT run_id FROM assignments") == [("a run",)]


@pytest.mark.parametrize("include_identified", [None, False, True])
def test_the_same_call_again_changes_nothing(world, service, include_identified):
    session_id, made = world.session("1", [["ann", "bob"], ["ann", "cem"]])
    world.session("2", [["ann", "dan"]])
    world.say("confirm", made[0, "bob"], "Bob")
    world.say("unassign", made[1, "cem"], "Bob")
    world.say("not_this_student", made[0, "ann"], "Bob")

    def call():
        if include_identified is None:
            return service.cluster_session_crops(session_id)
        return service.cluster_class_crops(world.class_id, include_identified=include_identified)

    assert call().crops_assigned > 0
    first = call()
    before = world.state()
    second = call()
    assert (first.students_created, first.crops_assigned) == (second.students_created, second.crops_assigned) == (0, 0)
    assert world.state() == before


def test_only_usable_crops_of_present_photos_that_are_not_refused_take_part(world, service, identities_of):
    session_id, made = world.session("1", [["ann"], ["bob"], ["cem"], ["blur"]], unusable=frozenset({"blur"}))
    with world.database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path = 'm/1/1.jpg'")
        connection.execute("UPDATE images SET refused_reason = 'broken' WHERE path = 'm/1/2.jpg'")
    assert service.cluster_session_crops(session_id).cluster_sizes == {"0": 1}
    names = identities_of(made)
    assert [key for key, name in names.items() if name] == [(0, "ann")]
    again = service.cluster_class_crops(world.class_id, include_identified=True)
    assert again.cluster_sizes == {"0": 1}


def test_portraits_take_part_only_when_confirmed_and_name_the_clusters_of_their_class(world, service, identities_of):
    students = world.made.enrol("m", "ann", "bob")
    with world.database.connection() as connection:
        connection.execute("DELETE FROM decisions WHERE student_id = %s", [students["bob"]])
    _, made = world.session("1", [["ann", "bob"]])
    # Without what is identified the portraits are no part of it: bob's is not confirmed, ann's is.
    assert service.cluster_class_crops(world.class_id, create_students=False).cluster_sizes == {"0": 1, "1": 1}
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert sorted(answer.cluster_sizes.values()) == [1, 2]
    assert identities_of(made) == {(0, "ann"): "ann", (0, "bob"): "Class_m_Cluster_1"}


def test_an_enrolment_session_clusters_its_confirmed_portraits(world, service):
    students = world.made.enrol("m", "ann", "bob")
    with world.database.connection() as connection:
        connection.execute("DELETE FROM decisions WHERE student_id = %s", [students["bob"]])
        session = catalog.find_session(connection, parse_session_key("m__enrol"))
    answer = service.cluster_session_crops(session.id)
    assert (answer.cluster_sizes, answer.students_created, answer.crops_assigned) == ({"0": 1}, 0, 0)


def test_a_photo_never_has_one_person_twice(world, service, identities_of):
    session_id, made = world.session("1", [["ann", "poster"]])
    world.copy_vector(made[0, "ann"], made[0, "poster"])
    assert service.cluster_session_crops(session_id).clusters_found == 2
    assert len(set(identities_of(made).values())) == 2


@pytest.mark.parametrize(("bound", "clusters", "reached"), [(1, 1, True), (2, 2, True), (3, 3, True), (4, 4, False)])
def test_max_clusters_merges_people_and_says_so(world, bound, clusters, reached):
    session_id, _ = world.session("1", [["ann", "bob"], ["cem"], ["dan"]])
    for call in (
        lambda service: service.cluster_session_crops(session_id, create_students=False),
        lambda service: service.cluster_class_crops(world.class_id, create_students=False),
    ):
        answer = call(FaceCropClusteringService("dlib", max_clusters=bound))
        assert (answer.clusters_found, answer.max_clusters_reached) == (clusters, reached)


@pytest.fixture(params=["session", "class", "class with identified"])
def operation(request, world):
    """A clustering operation on the world's one session, as answer = operation(session_id, max_clusters)."""

    def run(session_id: int, max_clusters: int):
        service = FaceCropClusteringService("dlib", max_clusters=max_clusters)
        if request.param == "session":
            return service.cluster_session_crops(session_id)
        return service.cluster_class_crops(world.class_id, include_identified="with" in request.param)

    return run


def test_one_cluster_puts_a_photos_best_face_first_and_the_others_into_review(world, operation, identities_of):
    session_id, made = world.session("1", [["bob", "ann", "cem"], ["ann"], ["ann"]])
    answer = operation(session_id, 1)
    assert (answer.clusters_found, answer.max_clusters_reached) == (1, True)
    assert (answer.students_created, answer.crops_assigned) == (1, 3)
    names = identities_of(made)
    # ann's face is the one most like the others of the cluster, which are hers, though bob's has the lower id.
    (student,) = {names[i, "ann"] for i in range(3)}
    assert names[0, "bob"] is names[0, "cem"] is None
    assert world.review(made[0, "bob"]) == world.review(made[0, "cem"]) == student
    before = world.state()
    for _ in range(2):
        again = operation(session_id, 1)
        assert (again.students_created, again.crops_assigned) == (0, 0)
        # Those in doubt are nobody new the next time either; without the identified ones they are the only cluster.
        assert [*world.state()[:2], *world.state()[3:]] == [*before[:2], *before[3:]]


def named_people(world, **names: str) -> dict[tuple[int, str], int]:
    """A session with a photo of each person; those called Class_... are provisional."""
    _, made = world.session("1", [["ann"], ["ann"], ["bob"], ["cem"]])
    for (_, who), crop_id in made.items():
        world.assign(crop_id, names[who])
    with world.database.connection() as connection:
        connection.execute("UPDATE students SET provisional = true WHERE name LIKE 'Class_%'")
    return made


def test_nobody_loses_their_name_because_max_clusters_merges_people(world, identities_of):
    made = named_people(world, ann="Ann", bob="Bob", cem="Class_m_Session_1_Cluster_1")
    squeezed = FaceCropClusteringService("dlib", max_clusters=1)
    for _ in range(2):
        answer = squeezed.cluster_class_crops(world.class_id, include_identified=True)
        assert (answer.clusters_found, answer.max_clusters_reached, answer.students_emptied) == (1, True, [])
        assert identities_of(made) == {(0, "ann"): "Ann", (1, "ann"): "Ann", (2, "bob"): "Bob", (3, "cem"): "Ann"}
        assert answer.students_created == 0


def test_no_new_student_is_made_of_named_people_whom_max_clusters_has_merged(world, identities_of):
    made = named_people(world, ann="Ann", bob="Bob", cem="Bob")
    squeezed = FaceCropClusteringService("dlib", max_clusters=1)
    answer = squeezed.cluster_class_crops(world.class_id, include_identified=True)
    assert (answer.max_clusters_reached, answer.students_created, answer.crops_assigned) == (True, 0, 0)
    assert identities_of(made) == {(0, "ann"): "Ann", (1, "ann"): "Ann", (2, "bob"): "Bob", (3, "cem"): "Bob"}
    assert world.names() == ["Ann", "Bob"]


def test_the_answer_names_the_students_whom_clustering_has_left_without_a_face(world, service, identities_of):
    _, made = world.session("1", [["ann"], ["ann"], ["ann"]])
    for place, name in enumerate(["Ann", "Ann", "Bob"]):
        world.assign(made[place, "ann"], name)
    planned = service.cluster_class_crops(world.class_id, include_identified=True, assign_crops=False)
    assert planned.students_emptied == []
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert (answer.max_clusters_reached, answer.students_emptied) == (False, ["Bob"])
    assert set(identities_of(made).values()) == {"Ann"}
    assert service.cluster_class_crops(world.class_id, include_identified=True).students_emptied == []


def test_the_assets_put_a_photos_other_faces_of_one_cluster_into_review_too(world, identities_of):
    _, made = world.session("1", [["ann", "bob"], ["ann"]])
    key = parse_session_key("m__1")
    version = world.made.version
    report = SessionClusteringService(world.database, "dlib", version).cluster_session(
        key, ClusteringConfig(max_clusters=1)
    )
    assert (report.clusters, report.max_clusters_reached) == (1, True)
    assigned = SessionAssignmentService(world.database, "dlib", version).assign_session(key, AssignmentConfig())
    assert (assigned.assigned, assigned.needs_review, assigned.students_created) == (2, 1, 1)
    names = identities_of(made)
    assert names[0, "ann"] == names[1, "ann"] == world.review(made[0, "bob"])


def test_the_assets_make_nobody_new_of_faces_in_doubt_however_often_they_run(world):
    world.session("1", [["ann", "bob", "cem"]])
    key, version = parse_session_key("m__1"), world.made.version
    created = []
    for _ in range(3):
        SessionClusteringService(world.database, "dlib", version).cluster_session(key, ClusteringConfig(max_clusters=1))
        report = SessionAssignmentService(world.database, "dlib", version).assign_session(key, AssignmentConfig())
        created.append((report.students_created, report.assigned, report.needs_review))
    assert created == [(1, 1, 2), (0, 1, 2), (0, 1, 2)]


def test_a_bound_that_photos_and_people_can_meet_puts_no_two_faces_of_a_photo_together(world, operation, identities_of):
    session_id, made = world.session("1", [["ann", "bob"], ["cem", "dan"]])
    answer = operation(session_id, 2)
    assert (answer.clusters_found, answer.max_clusters_reached, answer.crops_assigned) == (2, True, 4)
    names = identities_of(made)
    assert names[0, "ann"] != names[0, "bob"]
    assert names[1, "cem"] != names[1, "dan"]


@pytest.mark.parametrize("whole_class", [False, True])
def test_confirmed_names_outlive_one_cluster(world, identities_of, whole_class):
    session_id, made = world.session("1", [["ann", "bob", "cem"], ["cem"]])
    world.say("confirm", made[0, "ann"], "Ann")
    world.say("confirm", made[0, "bob"], "Bob")
    service = FaceCropClusteringService("dlib", max_clusters=1)
    if whole_class:
        answer = service.cluster_class_crops(world.class_id, include_identified=True)
    else:
        answer = service.cluster_session_crops(session_id)
    # As many clusters as confirmed students, and nobody twice in a photo.
    assert (answer.clusters_found, answer.max_clusters_reached, answer.students_created) == (2, True, 0)
    names = identities_of(made)
    assert (names[0, "ann"], names[0, "bob"], names[0, "cem"]) == ("Ann", "Bob", None)
    assert world.review(made[0, "cem"]) == names[1, "cem"]
    assert names[1, "cem"] in {"Ann", "Bob"}


def test_without_the_identified_crops_one_cluster_leaves_them_alone(world, identities_of):
    _, made = world.session("1", [["ann", "bob", "cem"], ["bob"]])
    world.say("confirm", made[0, "ann"], "Ann")
    answer = FaceCropClusteringService("dlib", max_clusters=1).cluster_class_crops(world.class_id)
    assert (answer.cluster_sizes, answer.max_clusters_reached, answer.crops_assigned) == ({"0": 3}, True, 2)
    names = identities_of(made)
    # What is confirmed takes no part, so it is this operation that writes nothing about it.
    assert names == {(0, "ann"): None, (0, "bob"): names[1, "bob"], (0, "cem"): None, (1, "bob"): names[1, "bob"]}
    assert world.review(made[0, "cem"]) == names[1, "bob"] == "Class_m_Cluster_1"


@pytest.mark.parametrize(
    ("scale", "similarity", "clusters"),
    [
        # Cosine distances: 0.03 between crops of one person, 0.6 to 0.7 between people, 0.07 verifies.
        ("calibrated", 0.0, 1),
        ("calibrated", 0.5, 2),
        ("calibrated", 0.99, 4),
        ("calibrated", 1.0, 4),
        ("cosine", 0.0, 1),
        ("cosine", 0.5, 2),
        ("cosine", 0.93, 2),
        ("cosine", 0.999, 4),
        ("cosine", 1.0, 4),
    ],
)
def test_the_threshold_means_what_its_scale_says(world, scale, similarity, clusters):
    session_id, made = world.session("1", [["ann"], ["ann"], ["bob"], ["bob"]])
    angles = np.arccos([1, 0.97, 0.35, 0.125])
    vectors = np.zeros((4, 128), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    with world.database.connection() as connection:
        crops.write_embeddings(connection, "dlib", world.made.version, list(made.values()), vectors)
    service = FaceCropClusteringService("dlib", similarity_threshold=similarity, similarity_scale=scale)
    assert service.cluster_session_crops(session_id, create_students=False).clusters_found == clusters


def test_create_students_false_stores_clusters_and_nothing_else(world, service):
    session_id, made = world.session("1", [["ann", "bob"], ["ann"]])
    world.assign(made[0, "ann"], "Ann")
    before = world.state()
    answer = service.cluster_session_crops(session_id, create_students=False)
    assert (answer.clusters_found, answer.students_created, answer.crops_assigned) == (2, 0, 0)
    after = world.state()
    assert len(after[2]) == 3
    assert [*after[:2], *after[3:]] == [*before[:2], *before[3:]]
    service.cluster_class_crops(world.class_id, create_students=False, include_identified=True)
    rows = world.query(
        "SELECT session_id, label, count(*) FROM clusters c JOIN cluster_members ON cluster_id = id "
        "GROUP BY session_id, label ORDER BY session_id NULLS LAST, label"
    )
    assert rows == [(session_id, 0, 2), (session_id, 1, 1), (None, 0, 2), (None, 1, 1)]
    assert [*world.state()[:2], *world.state()[3:]] == [*before[:2], *before[3:]]


def test_a_student_without_crops_outlives_clustering_the_class(world, service):
    session_id, _ = world.session("1", [["ann"]])
    service.cluster_session_crops(session_id, assign_crops=False)
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert world.names() == ["Class_m_Session_1_Cluster_1", "Class_m_Cluster_1"]
    assert service.cluster_session_crops(session_id).students_created == 0


def test_students_whom_a_person_has_merged_stay_one(world, service, identities_of):
    session_id, made = world.session("1", [["ann", "mask"], ["ann"], ["mask"]])
    service.cluster_session_crops(session_id)
    names = identities_of(made)
    ids = dict(world.query("SELECT name, id FROM students"))
    kept = names[1, "ann"]
    DecisionService(decided_by="a teacher").merge(ids[kept], ids[names[2, "mask"]])
    kept = identities_of(made)[1, "ann"]
    _, later = world.session("2", [["ann"], ["mask"]])
    for _ in range(2):
        service.cluster_class_crops(world.class_id, include_identified=True)
        assert identities_of(made)[1, "ann"] == identities_of(made)[2, "mask"] == kept
        # In the photo that shows both, one face is in doubt.
        assert sorted(map(str, (identities_of(made)[0, who] for who in ("ann", "mask")))) == sorted([kept, "None"])
        assert set(identities_of(later).values()) == {kept}


def again_changes_nothing(world, service) -> None:
    before = world.state()
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert (answer.students_created, answer.crops_assigned) == (0, 0)
    assert world.state() == before


def test_a_merge_of_unlike_faces_outlives_clustering_with_another_session(world, service, identities_of):
    one, first = world.session("1", [["ann"], ["mask"]])
    service.cluster_session_crops(one)
    two, second = world.session("2", [["mask"]])
    service.cluster_session_crops(two)
    ids = dict(world.query("SELECT name, id FROM students"))
    kept = identities_of(first)[0, "ann"]
    DecisionService("a teacher").merge(ids[identities_of(first)[1, "mask"]], ids[kept])
    # As many masked faces are hers as another provisional student's.
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert {*identities_of(first).values(), *identities_of(second).values()} == {kept}
    again_changes_nothing(world, service)


def test_a_merged_students_crops_stay_though_more_of_their_cluster_are_others(world, service, identities_of):
    session_id, first = world.session("1", [["ann"], ["mask"]])
    service.cluster_session_crops(session_id)
    ids = dict(world.query("SELECT name, id FROM students"))
    kept = identities_of(first)[0, "ann"]
    DecisionService("a teacher").merge(ids[identities_of(first)[1, "mask"]], ids[kept])
    _, second = world.session("2", [["mask"], ["mask"]])
    for place in second.values():
        world.assign(place, "Cem")
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert set(identities_of(first).values()) == {kept}
    assert set(identities_of(second).values()) == {"Cem"}
    again_changes_nothing(world, service)
    # Unless a person says otherwise.
    DecisionService("a teacher").reject(first[1, "mask"], ids[kept])
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert identities_of(first) == {(0, "ann"): kept, (1, "mask"): "Cem"}


def test_what_a_bad_run_gave_a_merged_student_after_the_merge_follows_its_cluster(world, service, identities_of):
    one, first = world.session("1", [["ann"], ["mask"], ["bob"]])
    service.cluster_session_crops(one)
    ids = dict(world.query("SELECT name, id FROM students"))
    kept, bob = identities_of(first)[0, "ann"], identities_of(first)[2, "bob"]
    DecisionService("a teacher").merge(ids[identities_of(first)[1, "mask"]], ids[kept])
    DecisionService("a teacher").rename(ids[kept], "Ann")
    _, second = world.session("2", [["bob"], ["bob"], ["mask"]])
    for crop_id in second.values():
        world.assign(crop_id, "Ann")
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert identities_of(first) == {(0, "ann"): "Ann", (1, "mask"): "Ann", (2, "bob"): bob}
    assert identities_of(second) == {(0, "bob"): bob, (1, "bob"): bob, (2, "mask"): "Ann"}
    again_changes_nothing(world, service)


def test_a_merge_outlives_clustering_in_a_lineage_that_began_after_it(world, service, facenet, identities_of):
    one, made = world.session("1", [["ann"], ["mask"]])
    service.cluster_session_crops(one)
    with world.database.connection() as connection:
        connection.execute("UPDATE classes SET active_model = 'dlib'")
    ids = dict(world.query("SELECT name, id FROM students"))
    kept = identities_of(made)[0, "ann"]
    DecisionService("a teacher").merge(ids[identities_of(made)[1, "mask"]], ids[kept])
    facenet(made)
    for _ in range(2):
        FaceCropClusteringService("facenet").cluster_class_crops(world.class_id, include_identified=True)
        assert set(identities_of(made, "facenet").values()) == {kept}


def test_a_merge_outlives_clustering_though_it_was_undone_and_said_again(world, service, identities_of):
    session_id, made = world.session("1", [["ann"], ["mask"]])
    service.cluster_session_crops(session_id)
    ids = dict(world.query("SELECT name, id FROM students"))
    kept = identities_of(made)[0, "ann"]
    people = DecisionService("a teacher")
    merge = people.merge(ids[identities_of(made)[1, "mask"]], ids[kept])
    undo = people.undo(merge.decision_id)
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert len(set(identities_of(made).values())) == 2
    people.undo(undo.decision_id)
    again_changes_nothing(world, service)
    assert set(identities_of(made).values()) == {kept}


def test_merged_students_who_share_every_photo_stay_one_with_a_face_in_doubt(world, service, identities_of):
    session_id, made = world.session("1", [["ann", "mask"], ["ann", "mask"]])
    service.cluster_session_crops(session_id)
    ids = dict(world.query("SELECT name, id FROM students"))
    kept = identities_of(made)[0, "ann"]
    DecisionService("a teacher").merge(ids[identities_of(made)[0, "mask"]], ids[kept])
    before = identities_of(made), {world.review(crop_id) for crop_id in made.values()}
    assert before[1] == {kept, None}
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert (identities_of(made), {world.review(crop_id) for crop_id in made.values()}) == before
    assert world.names() == sorted(ids)
    again_changes_nothing(world, service)


@pytest.mark.parametrize("photos", [[["ann", "guest"], ["ann", "guest"]], [["ann"], ["guest"]]])
def test_a_guest_who_was_merged_into_a_named_student_does_not_come_back(world, service, identities_of, photos):
    ids = world.made.enrol("m", "ann")
    _, made = world.session("1", photos)
    service.cluster_class_crops(world.class_id, include_identified=True)
    guest = world.query(f"SELECT student_id FROM assignments WHERE crop_id = {made[1, 'guest']}")[0][0]
    DecisionService("a teacher").merge(guest, ids["ann"])
    before = identities_of(made)
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert identities_of(made) == before
    # Where a photo shows both, the guest's face is in doubt, and still hers.
    assert "ann" in {before[1, "guest"], world.review(made[1, "guest"])}
    assert world.names() == ["ann", "Class_m_Cluster_1"]
    again_changes_nothing(world, service)


@pytest.mark.parametrize("whole_class", [False, True])
def test_students_made_without_assignments_are_remembered_and_used_later(world, service, identities_of, whole_class):
    session_id, made = world.session("1", [["ann", "bob"], ["ann"]])

    def call(**options):
        if whole_class:
            return service.cluster_class_crops(world.class_id, **options)
        return service.cluster_session_crops(session_id, **options)

    first = call(assign_crops=False)
    assert (first.students_created, first.crops_assigned) == (2, 0)
    assert world.query("SELECT 1 FROM assignments") == []
    names = world.names()
    # Neither the same call nor one that only clusters forgets them.
    assert call(assign_crops=False).students_created == 0
    assert call(create_students=False).students_created == 0
    last = call()
    assert (last.students_created, last.crops_assigned) == (0, 3)
    assert world.names() == names
    assert identities_of(made)[0, "ann"] == identities_of(made)[1, "ann"] == names[0]


def test_a_session_uses_the_students_that_were_made_for_its_class_without_assignments(world, service, identities_of):
    one, first = world.session("1", [["ann", "bob"]])
    two, second = world.session("2", [["ann"]])
    service.cluster_class_crops(world.class_id, assign_crops=False)
    names = world.names()
    for session_id in (one, two):
        assert service.cluster_session_crops(session_id).students_created == 0
    assert world.names() == names
    assert identities_of(first) == {(0, "ann"): names[0], (0, "bob"): names[1]}
    assert identities_of(second) == {(0, "ann"): names[0]}


def test_what_a_session_remembers_comes_before_what_its_class_does(world, service, identities_of):
    session_id, made = world.session("1", [["ann"]])
    service.cluster_session_crops(session_id, assign_crops=False)
    service.cluster_class_crops(world.class_id, assign_crops=False)
    assert world.names() == ["Class_m_Session_1_Cluster_1", "Class_m_Cluster_1"]
    service.cluster_session_crops(session_id)
    assert identities_of(made)[0, "ann"] == "Class_m_Session_1_Cluster_1"


def test_a_remembered_student_who_was_merged_stands_for_the_one_that_is_left(world, service, identities_of):
    session_id, made = world.session("1", [["ann"]])
    service.cluster_session_crops(session_id, assign_crops=False)
    ann = world.student("Ann")
    with world.database.connection() as connection:
        connection.execute("UPDATE students SET merged_into = %s WHERE provisional", [ann])
    assert service.cluster_session_crops(session_id).students_created == 0
    assert identities_of(made)[0, "ann"] == "Ann"


def test_confirmed_crops_name_their_cluster_and_keep_their_names(world, service, identities_of):
    session_id, made = world.session("1", [["ann"], ["ann"], ["bob"], ["bob"]])
    world.say("confirm", made[0, "ann"], "Ann")
    world.say("confirm", made[2, "bob"], "Ann")
    answer = service.cluster_session_crops(session_id)
    # A person says that both are Ann: then they are one cluster, however far apart they look.
    assert answer.cluster_sizes["0"] >= 2
    names = identities_of(made)
    assert names[0, "ann"] == names[2, "bob"] == "Ann"
    assert answer.crops_assigned == 2
    assert Counter(by for (by,) in world.query("SELECT decided_by FROM assignments")) == {"person": 2, "cluster": 2}


def test_two_confirmed_students_are_split_even_if_they_look_alike(world, service, identities_of):
    session_id, made = world.session("1", [["ann"], ["ann"], ["ann"]], distance=0.0)
    world.say("confirm", made[0, "ann"], "Ann")
    world.say("confirm", made[1, "ann"], "Twin")
    for answer in (
        service.cluster_session_crops(session_id),
        service.cluster_class_crops(world.class_id, include_identified=True),
    ):
        assert answer.clusters_found == 2
        names = identities_of(made)
        assert (names[0, "ann"], names[1, "ann"]) == ("Ann", "Twin")
        assert names[2, "ann"] in {"Ann", "Twin"}


@pytest.mark.parametrize(("known", "owner"), [(["Ann", "Ann", "Bob"], "Ann"), (["Ann", "Bob"], None), ([], None)])
def test_a_session_cluster_is_whose_most_of_its_crops_are(world, service, identities_of, known, owner):
    session_id, made = world.session("1", [["x"]] * (len(known) + 2))
    for i, name in enumerate(known):
        world.assign(made[i, "x"], name)
    answer = service.cluster_session_crops(session_id)
    names = identities_of(made)
    # Those that had a student keep it.
    assert [names[i, "x"] for i in range(len(known))] == known
    assert {names[i, "x"] for i in (len(known), len(known) + 1)} == {owner or "Class_m_Session_1_Cluster_1"}
    assert (answer.crops_assigned, answer.students_created) == (2, 0 if owner else 1)


def test_assignments_of_another_model_or_that_need_a_review_are_nobodys(world, service, identities_of):
    session_id, made = world.session("1", [["x"], ["y"]])
    world.assign(made[0, "x"], "Ann", model="facenet")
    world.assign(made[1, "y"], "Bob", state="needs_review")
    assert service.cluster_session_crops(session_id).students_created == 2
    assert set(identities_of(made).values()) == {"Class_m_Session_1_Cluster_1", "Class_m_Session_1_Cluster_2"}


def test_a_student_owns_the_cluster_with_most_of_their_crops_alone(world, service, identities_of):
    session_id, made = world.session("1", [["x"], ["x"], ["x"], ["y"], ["y"]])
    for place in ((0, "x"), (1, "x"), (3, "y")):
        world.assign(made[place], "Ann")
    answer = service.cluster_session_crops(session_id)
    names = identities_of(made)
    assert (names[2, "x"], names[3, "y"], names[4, "y"]) == ("Ann", "Ann", "Class_m_Session_1_Cluster_1")
    assert (answer.crops_assigned, answer.students_created) == (2, 1)


def test_a_cluster_whose_crops_all_have_a_student_makes_no_other(world, service):
    session_id, made = world.session("1", [["x"], ["x"], ["y"]])
    for place in made:
        world.assign(made[place], "Ann")
    answer = service.cluster_session_crops(session_id)
    assert (answer.clusters_found, answer.students_created, answer.crops_assigned) == (2, 0, 0)


def test_a_photo_that_shows_the_student_already_needs_a_review(world, service, identities_of):
    # The blurred face was recognised, the sharp one next to it looks the same: a poster.
    session_id, made = world.session("1", [["blur", "x"], ["x"]], unusable=frozenset({"blur"}))
    world.assign(made[0, "blur"], "Ann")
    world.assign(made[1, "x"], "Ann")
    answer = service.cluster_session_crops(session_id)
    assert (answer.crops_assigned, answer.students_created) == (0, 0)
    assert world.review(made[0, "x"]) == "Ann"
    assert identities_of(made) == {(0, "blur"): "Ann", (0, "x"): None, (1, "x"): "Ann"}


def test_a_rejected_student_never_comes_back(world, service, identities_of):
    session_id, made = world.session("1", [["x"], ["x"], ["x"], ["y"]])
    world.assign(made[0, "x"], "Ann")
    world.assign(made[3, "y"], "Bob")
    world.say("not_this_student", made[1, "x"], "Ann")
    world.say("not_this_student", made[3, "y"], "Bob")
    for call in (
        lambda: service.cluster_session_crops(session_id),
        lambda: service.cluster_class_crops(world.class_id, include_identified=True),
    ):
        call()
        names = identities_of(made)
        assert (names[0, "x"], names[1, "x"], names[2, "x"]) == ("Ann", None, "Ann")
        # Alone in its cluster it is somebody new.
        assert names[3, "y"] == "Class_m_Session_1_Cluster_1"
    # Without the identified ones it is a person of its own.
    assert service.cluster_class_crops(world.class_id).students_created == 1
    assert identities_of(made)[1, "x"] == "Class_m_Cluster_1"


def test_a_crop_that_a_person_has_unassigned_stays_nobodys(world, service, identities_of):
    session_id, made = world.session("1", [["x"], ["x"], ["y"]])
    world.say("unassign", made[1, "x"], "Ann")
    world.say("unassign", made[2, "y"], "Ann")
    for call in (
        lambda: service.cluster_session_crops(session_id),
        lambda: service.cluster_class_crops(world.class_id),
        lambda: service.cluster_class_crops(world.class_id, include_identified=True),
    ):
        call()
        names = identities_of(made)
        assert names[0, "x"] is not None
        assert names[1, "x"] is names[2, "y"] is None
    # Nobody is made for a cluster that has no crop to give.
    assert world.names() == ["Ann", "Class_m_Session_1_Cluster_1"]


def test_numbers_are_never_used_again_and_taken_names_are_passed_over(world, service):
    session_id, _ = world.session("1", [["ann"]])
    world.student("Class_m_Session_1_Cluster_2")
    world.student("Class_m_Cluster_1")
    with world.database.connection() as connection:
        connection.execute("DELETE FROM assignments")
    service.cluster_session_crops(session_id)
    with world.database.connection() as connection:
        connection.execute("DELETE FROM students WHERE provisional")
    service.cluster_session_crops(session_id)
    assert world.names() == ["Class_m_Session_1_Cluster_2", "Class_m_Cluster_1", "Class_m_Session_1_Cluster_3"]
    for expected in ("Class_m_Cluster_2", "Class_m_Cluster_3"):
        with world.database.connection() as connection:
            connection.execute("DELETE FROM students WHERE provisional")
        service.cluster_class_crops(world.class_id)
        assert world.names()[-1] == expected


def test_the_former_clusters_of_this_scope_and_model_are_replaced_and_no_others(world, service):
    session_id, made = world.session("1", [["ann"], ["bob"]])
    world.made.embed_again("arcface", made)
    service.cluster_session_crops(session_id, create_students=False)
    service.cluster_class_crops(world.class_id, create_students=False)
    with world.database.connection() as connection:
        connection.execute(
            "INSERT INTO clusters (class_id, session_id, model, label) VALUES (%s, %s, 'arcface', 7)",
            [world.class_id, session_id],
        )
    FaceCropClusteringService("dlib", max_clusters=1).cluster_session_crops(session_id, create_students=False)
    rows = world.query("SELECT session_id, model, label FROM clusters ORDER BY session_id NULLS LAST, model, label")
    assert rows == [(session_id, "arcface", 7), (session_id, "dlib", 0), (None, "dlib", 0), (None, "dlib", 1)]


# Classes


def test_a_class_without_its_identified_crops_gives_the_rest_to_new_students(world, service, identities_of):
    _, first = world.session("1", [["ann", "bob"], ["cem"]])
    _, second = world.session("2", [["ann", "bob"], ["dan"]])
    world.assign(first[0, "ann"], "Ann")
    world.say("confirm", first[1, "cem"], "Cem")
    answer = service.cluster_class_crops(world.class_id)
    assert answer.model_dump() == {
        "status": "success",
        "class_id": world.class_id,
        "class_name": "m",
        "clusters_found": 3,
        "students_created": 3,
        "crops_assigned": 4,
        "cluster_sizes": {"0": 2, "1": 1, "2": 1},
        "max_clusters_reached": False,
        "students_emptied": [],
        "cosine_threshold": pytest.approx(0.93),
        "errors": 0,
    }
    # ann's other crop has no student: it becomes somebody, though Ann looks the same.
    assert identities_of(first) == {(0, "ann"): "Ann", (0, "bob"): "Class_m_Cluster_1", (1, "cem"): None}
    assert identities_of(second) == {
        (0, "ann"): "Class_m_Cluster_2",
        (0, "bob"): "Class_m_Cluster_1",
        (1, "dan"): "Class_m_Cluster_3",
    }
    again = service.cluster_class_crops(world.class_id)
    assert (again.clusters_found, again.students_created, again.crops_assigned) == (0, 0, 0)


def test_clustering_a_class_anew_brings_its_sessions_together(world, service, identities_of):
    one, first = world.session("1", [["ann", "bob"], ["ann"]])
    two, second = world.session("2", [["ann", "bob"], ["ann", "bob"], ["ann", "eve"]])
    service.cluster_session_crops(one)
    service.cluster_session_crops(two)
    world.rename("Class_m_Session_1_Cluster_1", "Ann")
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert (answer.clusters_found, answer.students_created) == (3, 0)
    names = {
        **{("1", *k): v for k, v in identities_of(first).items()},
        **{("2", *k): v for k, v in identities_of(second).items()},
    }
    # Ann was given a name, so hers stays, though the second session has more crops of her.
    assert {v for k, v in names.items() if k[2] == "ann"} == {"Ann"}
    # Of two without a name the one with most of the crops is left; nobody is kept who has none.
    assert {v for k, v in names.items() if k[2] == "bob"} == {"Class_m_Session_2_Cluster_2"}
    assert world.names() == ["Ann", "Class_m_Session_2_Cluster_2", "Class_m_Session_2_Cluster_3"]
    assert answer.crops_assigned == 4


def test_sessions_of_equally_many_crops_become_a_student_of_the_class(world, service, identities_of):
    made = {}
    for name in ("1", "2", "3"):
        session_id, made[name] = world.session(name, [["ann"], ["ann"]])
        service.cluster_session_crops(session_id)
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert (answer.students_created, answer.crops_assigned) == (1, 6)
    assert world.names() == ["Class_m_Cluster_1"]
    assert {name for crops_of in made.values() for name in identities_of(crops_of).values()} == {"Class_m_Cluster_1"}


def test_confirmed_names_stay_and_wrong_assignments_follow_their_cluster(world, service, identities_of):
    _, made = world.session("1", [["ann", "bob"], ["ann", "bob"], ["ann", "bob"]])
    world.say("confirm", made[0, "ann"], "Ann")
    world.say("confirm", made[0, "bob"], "Bob")
    for i, (first, second) in enumerate([("Ann", "Bob"), ("Bob", "Ann"), ("Guest", "Bob")]):
        world.assign(made[i, "ann"], first)
        world.assign(made[i, "bob"], second)
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert identities_of(made) == {
        **{(i, "ann"): "Ann" for i in range(3)},
        **{(i, "bob"): "Bob" for i in range(3)},
    }
    # The swapped pair and the guest; what a person has said is not counted.
    assert (answer.crops_assigned, answer.students_created) == (3, 0)
    # A named student is never deleted.
    assert "Guest" in world.names()


def test_people_who_were_taken_for_one_come_apart(world, service, identities_of):
    session_id, made = world.session("1", [["ann"], ["ann"], ["bob"]])
    FaceCropClusteringService("dlib", max_clusters=1).cluster_session_crops(session_id)
    assert len(set(identities_of(made).values())) == 1
    service.cluster_class_crops(world.class_id, include_identified=True)
    names = identities_of(made)
    assert names[0, "ann"] == names[1, "ann"] == "Class_m_Session_1_Cluster_1"
    assert names[2, "bob"] == "Class_m_Cluster_1"


def test_moved_crops_go_only_when_crops_are_to_be_assigned(world, service, identities_of):
    _, made = world.session("1", [["x"], ["x"], ["x"]])
    for i, name in enumerate(("Ann", "Ann", "Bob")):
        world.assign(made[i, "x"], name)
    before = world.state()
    assert service.cluster_class_crops(world.class_id, assign_crops=False, include_identified=True).crops_assigned == 0
    assert world.state()[:2] == before[:2]
    assert service.cluster_class_crops(world.class_id, include_identified=True).crops_assigned == 1
    assert set(identities_of(made).values()) == {"Ann"}


def test_attendance_follows(world, service):
    one, first = world.session("1", [["ann"], ["bob"]])
    two, _ = world.session("2", [["ann"]])
    world.assign(first[0, "ann"], "Bob")
    world.assign(first[1, "bob"], "Ann")
    attendance = AttendanceService(world.database, "dlib")
    attendance.register_session(parse_session_key("m__1"))
    world.say("confirm", first[0, "ann"], "Ann")
    world.say("not_this_student", first[1, "bob"], "Ann")
    world.say("not_this_student", first[1, "bob"], "Bob")
    service.cluster_session_crops(one)
    register = attendance.register("m")
    assert register.sessions == ["1"]
    assert register.cells == {
        ("Ann", "1"): "present",
        ("Bob", "1"): "absent",
        ("Class_m_Session_1_Cluster_1", "1"): "unknown",
    }
    service.cluster_class_crops(world.class_id)
    assert {session for (session,) in world.query("SELECT DISTINCT session_id FROM attendance")} == {one, two}


@pytest.fixture
def meanwhile(monkeypatch):
    """Does something while the first call of the clustering itself runs; counts the calls."""
    calls: list[int] = []

    def run(act) -> list[int]:
        def clusters(vectors, *args, **options):
            calls.append(len(vectors))
            if len(calls) == 1:
                act()
            return agglomerative_clusters(vectors, *args, **options)

        monkeypatch.setattr("pipelines.services.clustering.agglomerative_clusters", clusters)
        return calls

    return run


def test_people_may_decide_while_the_clusters_are_computed(world, service, identities_of, meanwhile):
    _, made = world.session("1", [["ann"], ["ann"], ["bob"]])
    ann = world.student("Ann")
    teacher = DecisionService("a teacher", context=replace(default_context(), lock_patience_s=0))
    calls = meanwhile(lambda: teacher.assign(made[0, "ann"], ann))
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    # What they say in between counts.
    assert calls == [3, 3]
    assert answer.students_created == 1
    assert identities_of(made) == {(0, "ann"): "Ann", (1, "ann"): "Ann", (2, "bob"): "Class_m_Cluster_1"}


@pytest.mark.parametrize("change", ["vector", "photo", "new"])
def test_crops_that_come_or_go_while_the_clusters_are_computed_count(world, service, meanwhile, change):
    _, made = world.session("1", [["ann"], ["ann"], ["bob"]])

    def act() -> None:
        with world.database.connection() as connection:
            if change == "vector":
                connection.execute("DELETE FROM embeddings_dlib WHERE crop_id = %s", [made[0, "ann"]])
            elif change == "photo":
                connection.execute("UPDATE images SET removed_at = now() WHERE path = 'm/1/0.jpg'")
        if change == "new":
            world.made.session("m__2", [["ann"]])

    calls = meanwhile(act)
    answer = service.cluster_class_crops(world.class_id)
    left = 4 if change == "new" else 2
    assert calls == [3, left]
    assert (sum(answer.cluster_sizes.values()), answer.crops_assigned) == (left, left)
    assert answer.errors == (change == "vector")


def test_what_nobody_changes_meanwhile_is_clustered_once(world, service, meanwhile):
    _, made = world.session("1", [["ann"], ["bob"]])
    world.say("confirm", made[0, "ann"], "Ann")
    calls = meanwhile(lambda: None)
    service.cluster_class_crops(world.class_id, include_identified=True)
    assert calls == [2]


@pytest.mark.parametrize("options", [{}, {"include_identified": True}, {"create_students": False}])
def test_another_model_begins_with_the_students_that_the_class_has(world, service, identities_of, facenet, options):
    session_id, first = world.session("1", [["ann", "bob"], ["ann"]])
    two, second = world.session("2", [["ann"]])
    service.cluster_session_crops(session_id)
    service.cluster_session_crops(two)
    service.cluster_class_crops(world.class_id, include_identified=True)
    names = world.names()
    for made in (first, second):
        facenet(made)
    answer = FaceCropClusteringService("facenet").cluster_class_crops(world.class_id, **options)
    assert (answer.students_created, world.names()) == (0, names)
    stored = identities_of(first, "facenet"), identities_of(second, "facenet")
    if options.get("create_students", True):
        assert stored == (identities_of(first), identities_of(second))
        sessions = world.query("SELECT DISTINCT session_id FROM attendance WHERE model = 'facenet' ORDER BY 1")
        assert sessions == [(session_id,), (two,)]
    else:
        assert world.query("SELECT 1 FROM assignments WHERE model = 'facenet'") == []


def test_two_calls_at_once_never_make_a_person_twice(world, service):
    session_id, _ = world.session("1", [["ann", "bob"], ["ann", "cem"]])
    world.session("2", [["ann", "bob"]])
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.cluster_class_crops(world.class_id), range(6)))
    assert sum(answer.students_created for answer in answers) == 3
    assert sum(answer.crops_assigned for answer in answers) == 6
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: service.cluster_session_crops(session_id), range(6)))
    assert sum(answer.students_created for answer in answers) == 0
    assert len(world.names()) == 3


# What is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_clusters": 0}, r"max_clusters.*1 to 200"),
        ({"max_clusters": 201}, r"max_clusters.*1 to 200"),
        ({"max_clusters": "5"}, "max_clusters"),
        ({"similarity_threshold": -0.01}, r"similarity_threshold.*0.* to 1"),
        ({"similarity_threshold": 1.01}, r"similarity_threshold.*0.* to 1"),
        ({"similarity_threshold": float("nan")}, "similarity_threshold"),
        ({"embedding_model": "vgg"}, "embedding_model.*facenet"),
        ({"similarity_scale": "percent"}, "similarity_scale"),
    ],
)
def test_wrong_parameters_are_refused_with_their_range(database, wrong, said):
    with pytest.raises(ParameterError, match=said):
        FaceCropClusteringService(**{"embedding_model": "dlib", **wrong})
    for bounds in ({"max_clusters": 1, "similarity_threshold": 0}, {"max_clusters": 200, "similarity_threshold": 1.0}):
        FaceCropClusteringService("dlib", **bounds)


def test_wrong_options_of_a_call_are_refused(world, service):
    session_id, _ = world.session("1", [["ann"]])
    with pytest.raises(ParameterError, match="create_students"):
        service.cluster_session_crops(session_id, create_students="yes")
    with pytest.raises(ParameterError, match="include_identified"):
        service.cluster_class_crops(world.class_id, include_identified=1)


def test_ids_that_are_not_there_are_named(service):
    with pytest.raises(UnknownIdError, match=r"There is no session 17\."):
        service.cluster_session_crops(17)
    with pytest.raises(UnknownIdError, match=r"There is no class 17\."):
        service.cluster_class_crops(17)


def test_missing_weights_are_told_before_any_work(world, tmp_path):
    session_id, _ = world.session("1", [["ann"]])
    context = default_context()
    models = context.models.model_copy(update={"deepface_folder": str(tmp_path)})
    service = FaceCropClusteringService("arcface", context=replace(context, models=models))
    before = world.state()
    with pytest.raises(WeightsError):
        service.cluster_session_crops(session_id)
    with pytest.raises(WeightsError):
        service.cluster_class_crops(world.class_id)
    assert world.state() == before


def test_a_class_that_somebody_else_decides_about_is_busy(world):
    session_id, _ = world.session("1", [["ann"]])
    service = FaceCropClusteringService("dlib", context=replace(default_context(), lock_patience_s=0.1))
    with world.database.connection() as other:
        catalog.lock_class(other, world.class_id)
        with pytest.raises(ClassBusyError):
            service.cluster_session_crops(session_id)
        with pytest.raises(ClassBusyError):
            service.cluster_class_crops(world.class_id)
    assert service.cluster_session_crops(session_id).students_created == 1


def test_a_crop_that_cannot_be_embedded_stays_out_and_is_logged(world, service, identities_of, caplog, tmp_path):
    session_id, made = world.session("1", [["ann"], ["bob"]])
    with world.database.connection() as connection:
        catalog.record_photo_root(connection, "m", str(tmp_path))
        connection.execute("DELETE FROM embeddings_dlib WHERE crop_id = %s", [made[1, "bob"]])
    answer = service.cluster_session_crops(session_id)
    assert answer.cluster_sizes == {"0": 1}
    assert identities_of(made)[1, "bob"] is None
    assert (answer.status, answer.errors) == ("partial", 1)
    with world.database.connection() as connection:
        connection.execute("DELETE FROM embeddings_dlib")
    answer = service.cluster_class_crops(world.class_id, include_identified=True)
    assert (answer.status, answer.errors, answer.clusters_found) == ("error", 2, 0)
    assert f"1 of 2 crops have no vector and stay out of the clusters: ids [{made[1, 'bob']}]" in caplog.text


@pytest.mark.parametrize("photos", [[], [[]]])
def test_nothing_to_cluster_is_no_error(world, service, photos):
    session_id, _ = world.session("1", [*photos, ["blur"]], unusable=frozenset({"blur"}))
    for answer in (service.cluster_session_crops(session_id), service.cluster_class_crops(world.class_id)):
        assert (answer.clusters_found, answer.cluster_sizes, answer.max_clusters_reached) == (0, {}, False)
        assert answer.status == "success"


# The owner rule, without a database


def crop(number: int, *, photo: int | None = None, confirmed: int | None = None, has: int | None = None, **more):
    image_id = number if photo is None else photo
    return ClusterCrop(
        *(number, image_id, 1, True, confirmed, has, more.pop("doubted", None), more.pop("merged", None)),
        *(more.pop("unassigned", False), more.pop("rejected", [])),
    )


@pytest.mark.parametrize(
    ("groups", "options", "owners"),
    [
        ([[crop(1)], []], {}, [None, None]),
        # A person's word counts, whatever the others are.
        ([[crop(1, confirmed=7), crop(2, has=8), crop(3, has=8)]], {}, [7]),
        # More than half of those that have a student.
        ([[crop(1, has=8), crop(2), crop(3)]], {}, [8]),
        ([[crop(1, has=8), crop(2, has=9)]], {}, [None]),
        ([[crop(1, has=8), crop(2, has=9), crop(3, has=9)]], {}, [9]),
        # One cluster a student: the one with more of their crops, then the first.
        ([[crop(1, has=8)], [crop(2, has=8), crop(3, has=8)]], {}, [None, 8]),
        ([[crop(1, has=8)], [crop(2, has=8)]], {}, [8, None]),
        ([[crop(1, has=8), crop(2, has=8)], [crop(3, confirmed=8)]], {}, [None, 8]),
        # What was rejected or taken off is no evidence.
        ([[crop(1, has=8, rejected=[8])], [crop(2, has=9, unassigned=True)]], {}, [None, None]),
        # A name comes before a number, once.
        ([[crop(1, has=8), crop(2, has=9)]], {"named": {8}}, [8]),
        ([[crop(1, has=8), crop(2, has=9), crop(3, has=9)]], {"named": {8}}, [8]),
        ([[crop(1, has=8), crop(2, has=9)]], {"named": {8, 9}}, [None]),
        ([[crop(1, has=8), crop(2, has=9), crop(3, has=9)], [crop(4, has=8), crop(5, has=8)]], {"named": {8}}, [9, 8]),
        # Of whom a person has said that two are one, there may be two clusters.
        ([[crop(1, has=8, merged=8)], [crop(2, has=8, merged=8), crop(3, has=8)]], {}, [8, 8]),
        # Those that hold a crop which was theirs before, and no others.
        ([[crop(1, has=8, merged=8)], [crop(2, has=8), crop(3, has=8)]], {}, [8, None]),
        ([[crop(1, has=8, merged=8)], [crop(2, has=8), crop(3, has=8)]], {"named": {8}}, [8, None]),
        ([[crop(1, has=8, merged=8)], [crop(2)]], {"remembered": {2: 8}}, [8, None]),
        # They have the clusters of which no other student has more, and faces in doubt count.
        ([[crop(1, has=8), crop(2, has=9, merged=9)]], {}, [9]),
        ([[crop(1, has=8), crop(2, has=8), crop(3, has=9, merged=9)]], {}, [8]),
        ([[crop(1, has=7), crop(2, has=6), crop(3, has=9, merged=9), crop(4, has=9)]], {}, [9]),
        ([[crop(1, has=8), crop(2, has=9, merged=9)]], {"named": {8}}, [8]),
        ([[crop(1, doubted=8, merged=8), crop(2)]], {}, [8]),
        ([[crop(1, doubted=8), crop(2)]], {}, [None]),
        ([[crop(1, doubted=8, merged=8, rejected=[8]), crop(2)]], {}, [None]),
        # Memory comes last, and of several former clusters the one with most common crops.
        ([[crop(1), crop(2), crop(3)]], {"remembered": {1: 5, 2: 6, 3: 6}}, [6]),
        ([[crop(1), crop(2)], [crop(3)]], {"remembered": {1: 5, 2: 5, 3: 5}}, [5, None]),
        ([[crop(1, has=8), crop(2)]], {"remembered": {1: 5, 2: 5}}, [8]),
        ([[crop(1, has=8)], [crop(2)]], {"remembered": {2: 8}}, [8, None]),
        ([[crop(1, rejected=[5])], [crop(2, unassigned=True)]], {"remembered": {1: 5, 2: 6}}, [None, None]),
    ],
)
def test_whose_a_cluster_is(groups, options, owners):
    assert cluster_owners(groups, **options) == owners


def test_two_crops_of_a_photo_may_swap_their_students():
    a, b = crop(1, photo=1, has=8), crop(2, photo=1, has=9)
    assert decide_crops([a, b], [[a], [b]], [9, 8], move=True) == {1: ("assigned", 9), 2: ("assigned", 8)}
    assert decide_crops([a, b], [[a], [b]], [9, 8], move=False) == {}


def test_a_moved_crop_needs_a_review_where_its_photo_shows_the_student():
    a, b = crop(1, photo=1, has=8), crop(2, photo=1, has=9)
    assert decide_crops([a, b], [[a]], [9], move=True) == {1: ("needs_review", 9)}


def test_a_crop_of_a_student_whom_others_were_merged_into_does_not_follow_its_cluster():
    group = [crop(1, has=8, merged=8), crop(2, doubted=8, merged=8), crop(3, has=9), crop(4)]
    assert decide_crops(group, [group], [7], move=True) == {3: ("assigned", 7), 4: ("assigned", 7)}
    assert unknown_people([group[:2], group[2:]], [None, None], move=True) == [1]


STUDENTS = range(1, 5)
MERGED = {2, 3}


@st.composite
def photos_of_crops(draw):
    """Crops as the operations may find them: the machine has put no student twice into a photo."""
    made: list[ClusterCrop] = []
    for photo in range(draw(st.integers(1, 5))):
        shown: set[int] = set()
        for _ in range(draw(st.integers(1, 3))):
            confirmed = draw(st.one_of(st.none(), st.none(), st.sampled_from(STUDENTS)))
            has = None if confirmed else draw(st.one_of(st.none(), st.sampled_from(STUDENTS)))
            doubted = draw(st.one_of(st.none(), st.sampled_from(STUDENTS)))
            rejected = draw(st.lists(st.sampled_from(STUDENTS), max_size=2, unique=True))
            fresh = crop(
                *[len(made) + 1],
                photo=photo,
                confirmed=confirmed,
                has=None if has in shown or has in rejected else has,
                unassigned=not confirmed and draw(st.integers(0, 5)) == 0,
                rejected=rejected,
            )
            if fresh.assigned_student_id is None:
                fresh = replace(fresh, doubted_student_id=doubted)
            given = fresh.assigned_student_id or fresh.doubted_student_id
            if given in MERGED and draw(st.booleans()):
                fresh = replace(fresh, merged_student_id=given)
            fresh = replace(fresh, clusterable=draw(st.integers(0, 5)) > 0)
            shown.add(fresh.student_id)
            made.append(fresh)
    confirmed_in = {(c.image_id, c.confirmed_student_id) for c in made if c.confirmed_student_id}
    return [
        replace(c, assigned_student_id=None, merged_student_id=None)
        if (c.image_id, c.assigned_student_id) in confirmed_in
        else c
        for c in made
    ]


@given(
    everyone=photos_of_crops(),
    seed=st.integers(0, 999),
    threshold=st.floats(0, 2),
    move=st.booleans(),
    reached=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_what_always_holds(everyone, seed, threshold, move, reached):
    taking_part = [c for c in everyone if c.clusterable]
    vectors = np.random.default_rng(seed).normal(size=(len(taking_part), 3)).astype(np.float32)
    labels = agglomerative_clusters(
        vectors,
        threshold,
        np.array([c.image_id for c in taking_part], np.int64),
        np.array([c.confirmed_student_id or FREE for c in taking_part], np.int64),
    ).labels
    named = {1, 2} if move else set()

    def run(everyone, remembered):
        by_id = {c.id: c for c in everyone}
        groups = [
            [by_id[c.id] for c, own in zip(taking_part, labels, strict=True) if own == label]
            for label in range(max(labels, default=-1) + 1)
        ]
        owners = cluster_owners(groups, named=named, remembered=remembered)
        staying = named & people_left_without(everyone, groups, owners, move) if reached else set()
        unknown = unknown_people(groups, owners, move, staying)
        for label in unknown:
            owners[label] = 100 + label
        decided = decide_crops(everyone, groups, owners, move, staying)
        (after,) = as_decided([everyone], decided)
        evident = cluster_owners(as_decided(groups, decided), named=named)
        told = students_to_remember(owners, evident)
        remembered = {c.id: told[label] for label, group in enumerate(groups) for c in group if label in told}
        return after, owners, unknown, decided, remembered

    after, owners, unknown, decided, remembered = run(everyone, {})
    if reached:
        assert named.isdisjoint(students_emptied(everyone, decided))
    known = [owner for owner in owners if owner is not None and owner not in MERGED]
    assert len(known) == len(set(known))
    for old, new in zip(everyone, after, strict=True):
        assert new.confirmed_student_id == old.confirmed_student_id
        if old.confirmed_student_id is not None or old.unassigned:
            assert old.id not in decided
        if old.id in decided:
            assert decided[old.id][1] not in old.rejected
            assert move or old.student_id is None
            assert old.kept_student_id in (None, decided[old.id][1])
    by_machine = [(c.image_id, c.student_id) for c in after if c.student_id and c.confirmed_student_id is None]
    by_person = {(c.image_id, c.confirmed_student_id) for c in after if c.confirmed_student_id}
    assert len(by_machine) == len(set(by_machine))
    assert by_person.isdisjoint(by_machine)

    # Again: nobody new, and nothing but what still needs its review.
    again, _, unknown, decided, _ = run(after, remembered)
    assert unknown == []
    assert again == after
    assert {state for state, _ in decided.values()} <= {"needs_review"}


# Embedding on the way


def test_vectors_are_made_for_crops_that_have_none(world, service, monkeypatch):
    """The network itself is tested with its photos; here: it is asked for exactly what is missing, before the lock."""
    session_id, made = world.session("1", [["ann"], ["bob"], ["blur"]], unusable=frozenset({"blur"}))
    with world.database.connection() as connection:
        vectors = dict(connection.execute("SELECT crop_id, embedding FROM embeddings_dlib").fetchall())
        connection.execute("DELETE FROM embeddings_dlib")
    asked = []

    def embed_missing(self, crop_ids):
        asked.extend(crop_ids)
        with world.database.connection() as connection:
            given_vectors = np.stack([vectors[crop_id].to_numpy() for crop_id in crop_ids])
            crops.write_embeddings(connection, "dlib", self.version, list(crop_ids), given_vectors)
        return {}

    monkeypatch.setattr("pipelines.services.embedding.EmbeddingService.embed_missing", embed_missing)
    assert service.cluster_session_crops(session_id).crops_assigned == 2
    assert sorted(asked) == sorted([made[0, "ann"], made[1, "bob"]])
