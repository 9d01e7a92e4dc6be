"""Identity decisions on made vectors in a real database: who is who, again and again, in any order, at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.database import catalog, clusters
from pipelines.database.clusters import Scope
from pipelines.partitions import parse_session_key
from pipelines.services.attendance import AttendanceService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.session_assignment import AssignmentConfig, AssignmentReport, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService


@pytest.fixture
def process(database):
    """Cluster and assign a session, as the assets do."""

    def run(key: str, model: str = "dlib", config: AssignmentConfig | None = None) -> AssignmentReport:
        parsed = parse_session_key(key)
        SessionClusteringService(database, model, "v").cluster_session(parsed, ClusteringConfig())
        return SessionAssignmentService(database, model, "v").assign_session(parsed, config or AssignmentConfig())

    return run


def student_names(database, class_name: str) -> list[str]:
    with database.connection() as connection:
        class_id = catalog.find_class(connection, class_name)
        return [
            n for (n,) in connection.execute("SELECT name FROM students WHERE class_id = %s ORDER BY id", [class_id])
        ]


def test_unknown_people_become_provisional_students_named_after_class_session_and_cluster(
    made_class, process, identities_of
):
    crops = made_class.session("Math101__1", [["ann", "bob"], ["ann", "cem"]])
    report = process("Math101__1")
    names = identities_of(crops)
    assert report.students_created == 3
    assert names[0, "ann"] == names[1, "ann"]
    assert {names[0, "ann"], names[0, "bob"], names[1, "cem"]} == {
        f"Class_Math101_Session_1_Cluster_{n}" for n in (1, 2, 3)
    }


def test_a_later_session_finds_the_same_people_again(made_class, process, identities_of):
    first, second = made_class.session("m__1", [["ann", "bob"]]), made_class.session("m__2", [["bob", "ann", "cem"]])
    process("m__1")
    assert process("m__2").students_created == 1
    before, after = identities_of(first), identities_of(second)
    assert (before[0, "ann"], before[0, "bob"]) == (after[0, "ann"], after[0, "bob"])


def test_running_again_changes_nothing(made_class, database, process):
    made_class.enrol("m", "ann")
    made_class.session("m__1", [["ann", "bob"], ["ann", "dan"]])
    made_class.session("m__2", [["bob", "dan"]])
    for key in ("m__enrol", "m__1", "m__2"):
        process(key)
    names = student_names(database, "m")
    for _ in range(2):
        for key in ("m__2", "m__1", "m__enrol"):
            assert process(key).changed == 0
    assert student_names(database, "m") == names


def test_portraits_give_names_and_a_guest_stays_unknown(made_class, process, identities_of):
    made_class.enrol("m", "ann", "bob")
    crops = made_class.session("m__1", [["ann", "guest"], ["bob"]])
    process("m__enrol")
    process("m__1")
    names = identities_of(crops)
    assert (names[0, "ann"], names[1, "bob"]) == ("ann", "bob")
    assert names[0, "guest"] == "Class_m_Session_1_Cluster_1"


def test_portraits_that_come_later_absorb_provisional_students(made_class, database, process, identities_of):
    crops = made_class.session("m__1", [["ann", "bob"]])
    later = made_class.session("m__2", [["ann", "bob"]])
    process("m__1")
    process("m__2")
    made_class.enrol("m", "ann")
    for key in ("m__enrol", "m__1", "m__2"):
        process(key)
    assert identities_of(crops)[0, "ann"] == identities_of(later)[0, "ann"] == "ann"
    assert student_names(database, "m") == ["Class_m_Session_1_Cluster_2", "ann"] or student_names(database, "m") == [
        "Class_m_Session_1_Cluster_1",
        "ann",
    ]


def test_numbers_of_provisional_students_are_never_used_again(made_class, database, process):
    made_class.session("m__1", [["ann"]])
    process("m__1")
    made_class.enrol("m", "ann")
    process("m__1")
    assert student_names(database, "m") == ["ann"]
    with database.connection() as connection:
        connection.execute("DELETE FROM decisions")
        connection.execute("DELETE FROM assignments")
    process("m__1")
    assert "Class_m_Session_1_Cluster_2" in student_names(database, "m")


@pytest.mark.parametrize("order", [("1", "2", "3"), ("3", "1", "2"), ("2", "3", "1")])
def test_the_order_of_sessions_does_not_decide_who_is_one_person(made_class, process, identities_of, order):
    crops = {
        number: made_class.session(f"m__{number}", [["ann", "bob"], ["cem", extra]])
        for number, extra in (("1", "dan"), ("2", "eve"), ("3", "dan"))
    }
    for number in order:
        process(f"m__{number}")
    who = {}
    for made in crops.values():
        for (_, person), name in identities_of(made).items():
            assert name is not None
            who.setdefault(person, set()).add(name)
    assert all(len(names) == 1 for names in who.values()), who
    assert len(set.union(*who.values())) == 5


def test_two_sessions_processed_at_once_do_not_make_a_person_twice(made_class, database, process):
    keys = [f"m__{n}" for n in range(6)]
    for key in keys:
        made_class.session(key, [["ann", "bob", "cem"]])
    with ThreadPoolExecutor(6) as pool:
        reports = list(pool.map(process, keys))
    assert sum(report.students_created for report in reports) == 3
    assert len(student_names(database, "m")) == 3


def test_a_photo_shows_nobody_twice(made_class, process, identities_of, database):
    made_class.enrol("m", "ann")
    crops = made_class.session("m__1", [["ann", "poster"]])
    with database.connection() as connection:
        # A poster of ann hangs on the wall: its face is as near to her portrait as her own.
        connection.execute(
            """UPDATE embeddings_dlib SET embedding = (SELECT embedding FROM embeddings_dlib WHERE crop_id = %s)
            WHERE crop_id = %s""",
            [crops[0, "ann"], crops[0, "poster"]],
        )
    report = process("m__1")
    assert (report.assigned, report.needs_review) == (1, 1)
    assert list(identities_of(crops).values()).count("ann") == 1


def test_an_unusable_crop_is_recognised_but_never_becomes_a_new_student(made_class, process, identities_of):
    made_class.enrol("m", "ann")
    crops = made_class.session("m__1", [["ann", "blur"]], unusable=frozenset({"ann", "blur"}))
    report = process("m__1")
    assert report.students_created == 0
    assert identities_of(crops) == {(0, "ann"): "ann", (0, "blur"): None}


def test_a_new_model_keeps_the_names_that_people_gave(made_class, database, process, identities_of):
    crops = made_class.session("m__1", [["ann", "bob"]])
    process("m__1")
    with database.connection() as connection:
        connection.execute(
            "UPDATE students SET name = 'Ann', provisional = false WHERE id = "
            "(SELECT student_id FROM assignments WHERE crop_id = %s)",
            [crops[0, "ann"]],
        )
    made_class.embed_again("arcface", crops)
    assert process("m__1", "arcface").students_created == 0
    assert identities_of(crops, "arcface") == identities_of(crops, "dlib")
    assert identities_of(crops, "arcface")[0, "ann"] == "Ann"


def test_max_clusters_says_when_it_merges_people(made_class, database):
    made_class.session("m__1", [["ann"], ["bob"], ["cem"]])
    service = SessionClusteringService(database, "dlib", "v")
    key = parse_session_key("m__1")
    assert not service.cluster_session(key, ClusteringConfig()).max_clusters_reached
    bounded = service.cluster_session(key, ClusteringConfig(max_clusters=2))
    assert (bounded.clusters, bounded.max_clusters_reached) == (2, True)


def test_dbscan_leaves_a_lone_face_as_noise_without_a_student(made_class, database, identities_of):
    crops = made_class.session("m__1", [["ann", "bob"], ["ann"]])
    key = parse_session_key("m__1")
    report = SessionClusteringService(database, "dlib", "v").cluster_session(key, ClusteringConfig(algorithm="dbscan"))
    assert (report.clusters, report.noise) == (1, 1)
    SessionAssignmentService(database, "dlib", "v").assign_session(key, AssignmentConfig())
    assert identities_of(crops)[0, "bob"] is None


def test_a_wrong_portrait_that_is_replaced_is_put_right_everywhere(made_class, database, process, identities_of):
    students = made_class.enrol("m", "ann", "bob")
    with database.connection() as connection:
        # The portraits were mixed up.
        connection.execute(
            "UPDATE decisions SET student_id = CASE student_id WHEN %(a)s THEN %(b)s ELSE %(a)s END",
            {"a": students["ann"], "b": students["bob"]},
        )
    sessions = {key: made_class.session(key, [["ann", "bob"], ["ann"]]) for key in ("m__1", "m__2")}
    for key in sessions:
        process(key)
    assert identities_of(sessions["m__1"])[0, "ann"] == "bob"
    with database.connection() as connection:
        connection.execute(
            "UPDATE decisions SET student_id = CASE student_id WHEN %(a)s THEN %(b)s ELSE %(a)s END",
            {"a": students["ann"], "b": students["bob"]},
        )
    for key in sessions:
        process(key)
    for made in sessions.values():
        assert identities_of(made) == {(0, "ann"): "ann", (0, "bob"): "bob", (1, "ann"): "ann"}


def test_a_student_whose_portraits_are_removed_keeps_their_past_and_one_never_seen_leaves_the_register(
    made_class, database, process, identities_of
):
    made_class.enrol("m", "ann", "typo")
    sessions = [made_class.session("m__1", [["ann"]]), made_class.session("m__2", [["ann"]])]
    for key in ("m__enrol", "m__1", "m__2"):
        process(key)
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE student_id IS NOT NULL")
    for key in ("m__enrol", "m__1", "m__2"):
        process(key)
    assert [identities_of(made)[0, "ann"] for made in sessions] == ["ann", "ann"]
    with database.connection() as connection:
        assert catalog.named_students(connection, catalog.find_class(connection, "m"), "dlib") == ["ann"]


def test_people_who_were_merged_come_apart_with_better_parameters(made_class, database, identities_of):
    crops = made_class.session("m__1", [["ann"], ["bob"], ["cem"]])
    key = parse_session_key("m__1")
    for bound, people in ((1, 1), (None, 3)):
        SessionClusteringService(database, "dlib", "v").cluster_session(key, ClusteringConfig(max_clusters=bound))
        SessionAssignmentService(database, "dlib", "v").assign_session(key, AssignmentConfig())
        assert len(set(identities_of(crops).values())) == people


def copy_vector(database, source: int, target: int) -> None:
    with database.connection() as connection:
        connection.execute(
            "UPDATE embeddings_dlib SET embedding = (SELECT embedding FROM embeddings_dlib WHERE crop_id = %s) "
            "WHERE crop_id = %s",
            [source, target],
        )


def test_dbscan_does_not_put_a_student_twice_into_a_photo(made_class, database, identities_of):
    crops = made_class.session("m__1", [["ann", "poster"]])
    copy_vector(database, crops[0, "ann"], crops[0, "poster"])
    key = parse_session_key("m__1")
    SessionClusteringService(database, "dlib", "v").cluster_session(key, ClusteringConfig(algorithm="dbscan"))
    report = SessionAssignmentService(database, "dlib", "v").assign_session(key, AssignmentConfig())
    assert (report.assigned, report.needs_review) == (1, 1)
    assert sorted(str(name) for name in identities_of(crops).values()) == ["Class_m_Session_1_Cluster_1", "None"]


def clustered(database, crops: dict[tuple[int, str], int]) -> None:
    """Put all crops of session m__1 into one cluster."""
    with database.connection() as connection:
        session = catalog.find_session(connection, parse_session_key("m__1"))
        clusters.write_clusters(
            connection, Scope(session.class_id, session.id), "dlib", dict.fromkeys(crops.values(), 0)
        )


@pytest.mark.parametrize(("near", "joined"), [(1, False), (2, True)])
def test_a_cluster_joins_a_student_only_when_most_of_it_matched(
    made_class, database, identities_of, near: int, joined: bool
):
    made_class.enrol("m", "ann")
    people = ["ann"] * near + ["guest"] * (4 - near)
    crops = {(i, name): made_class.session("m__1", [[]] * i + [[name]])[i, name] for i, name in enumerate(people)}
    clustered(database, crops)
    SessionAssignmentService(database, "dlib", "v").assign_session(parse_session_key("m__1"), AssignmentConfig())
    guests = {name for (_, person), name in identities_of(crops).items() if person == "guest"}
    assert guests == {"ann" if joined else "Class_m_Session_1_Cluster_1"}


def test_a_clusters_face_does_not_join_a_student_who_is_in_its_photo_already(made_class, database, identities_of):
    made_class.enrol("m", "ann")
    crops = made_class.session("m__1", [["ann", "poster"], ["ann"]])
    clustered(database, crops)
    SessionAssignmentService(database, "dlib", "v").assign_session(parse_session_key("m__1"), AssignmentConfig())
    names = identities_of(crops)
    assert (names[0, "ann"], names[1, "ann"]) == ("ann", "ann")
    assert names[0, "poster"] != "ann"


def test_a_crop_that_lost_its_vector_no_longer_counts(made_class, database, process, identities_of):
    made_class.enrol("m", "ann")
    crops = made_class.session("m__1", [["ann"]], unusable=frozenset({"ann"}))
    process("m__1")
    assert identities_of(crops)[0, "ann"] == "ann"
    with database.connection() as connection:
        connection.execute("DELETE FROM embeddings_dlib WHERE crop_id = %s", [crops[0, "ann"]])
    process("m__1")
    assert identities_of(crops)[0, "ann"] is None


def test_removed_and_unusable_crops_are_no_evidence_for_others(made_class, database, process, identities_of):
    made_class.session("m__1", [["ann", "bob"]])
    process("m__1")
    later = made_class.session("m__2", [["ann", "bob"]])
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path LIKE 'm/1/%'")
    assert process("m__2").gallery == 0
    assert set(identities_of(later).values()).isdisjoint({"Class_m_Session_1_Cluster_1", "Class_m_Session_1_Cluster_2"})


def test_a_doubtful_face_makes_its_student_unsure_and_a_removed_photo_absent(made_class, database, process):
    made_class.enrol("m", "ann", "bob")
    crops = made_class.session("m__1", [["ann"], ["doubt"]])
    with database.connection() as connection:
        portraits = dict(
            connection.execute(
                "SELECT st.name, c.crop_id FROM confirmed_crops c JOIN students st ON st.id = c.student_id"
            ).fetchall()
        )
    # As near to bob's portrait as to ann's: bob's is the same vector.
    copy_vector(database, portraits["ann"], portraits["bob"])
    copy_vector(database, portraits["ann"], crops[1, "doubt"])
    process("m__1")
    service = AttendanceService(database, "dlib")
    service.register_session(parse_session_key("m__1"))
    assert "unsure" in service.register("m").cells.values()
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path LIKE 'm/1/%'")
    process("m__1")
    service.register_session(parse_session_key("m__1"))
    # Without a photo nobody was looked for.
    assert service.register("m").cells == {}


def test_students_that_were_made_without_assignments_are_the_ones_a_run_assigns(embedded_class, database):
    embedded_class.session("m__1", [["ann", "bob"], ["ann"]])
    with database.connection() as connection:
        session_id = catalog.find_session(connection, parse_session_key("m__1")).id
    FaceCropClusteringService("dlib").cluster_session_crops(session_id, assign_crops=False)
    made = student_names(database, "m")
    assert len(made) == 2
    service = SessionAssignmentService(database, "dlib", embedded_class.version)
    assert service.assign_session(parse_session_key("m__1"), AssignmentConfig()).students_created == 0
    assert student_names(database, "m") == made


def test_students_that_were_made_for_the_class_without_assignments_are_the_ones_a_run_assigns(embedded_class, database):
    embedded_class.session("m__1", [["ann", "bob"], ["ann"]])
    embedded_class.session("m__2", [["ann"]])
    with database.connection() as connection:
        class_id = catalog.find_class(connection, "m")
    FaceCropClusteringService("dlib").cluster_class_crops(class_id, assign_crops=False)
    made = student_names(database, "m")
    assert len(made) == 2
    for key in (parse_session_key("m__1"), parse_session_key("m__2")):
        SessionClusteringService(database, "dlib", embedded_class.version).cluster_session(key, ClusteringConfig())
        service = SessionAssignmentService(database, "dlib", embedded_class.version)
        assert service.assign_session(key, AssignmentConfig()).students_created == 0
    assert student_names(database, "m") == made
