"""The assignment operations on made vectors in a real database."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipelines.database import crops
from pipelines.errors import ClassBusyError, ParameterError, UnknownIdError, WeightsError
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.partitions import parse_session_key
from pipelines.resources.embedding.registry import get_spec
from pipelines.services.assignment import FaceCropAssignmentService, _nearest
from pipelines.services.attendance import AttendanceService
from pipelines.services.context import default_context
from pipelines.services.decisions import DecisionService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService

SPEC = get_spec("dlib")


def service(**parameters) -> FaceCropAssignmentService:
    return FaceCropAssignmentService("dlib", **parameters)


def ids(database, key: str) -> tuple[int, int]:
    """(class id, session id)."""
    parsed = parse_session_key(key)
    with database.connection() as connection:
        return connection.execute(
            "SELECT c.id, s.id FROM sessions s JOIN classes c ON c.id = s.class_id WHERE c.name = %s AND s.name = %s",
            parsed,
        ).fetchone()


def stored(database) -> list[tuple]:
    """Everything that an assignment may write."""
    with database.connection() as connection:
        return [
            connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("assignments", "students", "attendance", "decisions", "clusters", "classes")
        ]


def place(database, made_class, crop_id: int, vector: np.ndarray) -> None:
    """Give a crop this vector."""
    with database.connection() as connection:
        unit = (vector / np.linalg.norm(vector)).astype(np.float32)
        crops.write_embeddings(connection, "dlib", made_class.version, [crop_id], unit[None])


def at(*cosines: float) -> np.ndarray:
    """A unit vector with these first coordinates, so these cosines to the first axes."""
    vector = np.zeros(SPEC.dimension)
    vector[: len(cosines)] = cosines
    vector[len(cosines)] = np.sqrt(1 - vector @ vector)
    return vector


def test_one_crop_is_assigned_and_the_answer_says_by_whom(embedded_class, database, identities_of):
    students = embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann", "cem"]])
    answer = service().assign_crop(made[0, "ann"])
    assert (answer.status, answer.student_id, answer.student_name) == ("assigned", students["ann"], "ann")
    assert [n.student_name for n in answer.k_nearest] == ["ann", "bob"]
    nearest = answer.k_nearest[0]
    assert nearest.cosine_similarity == pytest.approx(answer.cosine_similarity)
    assert nearest.similarity == pytest.approx(SPEC.calibrated(nearest.cosine_similarity)) == answer.similarity
    assert answer.confidence == pytest.approx(answer.similarity)
    assert identities_of(made) == {(0, "ann"): "ann", (0, "cem"): None}

    again = service().assign_crop(made[0, "ann"])
    assert (again.status, again.student_name) == ("already_assigned", "ann")
    nobody = service().assign_crop(made[0, "cem"])
    assert (nobody.status, nobody.student_id, nobody.confidence) == ("no_match", None, None)
    assert [n.student_name for n in nobody.k_nearest].count("ann") == 2, (
        "the crop that was just assigned is gallery now"
    )


def test_a_suggestion_writes_nothing(embedded_class, database):
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann", "cem"]])
    before = stored(database)
    class_id, session_id = ids(database, "m__1")
    assert service().assign_crop(made[0, "ann"], auto_commit=False).status == "assigned"
    assert service().assign_session_crops(session_id, auto_commit=False).assigned == 1
    assert service().assign_class_crops(class_id, auto_commit=False).assigned == 1
    assert stored(database) == before


def test_a_session_and_then_its_class(embedded_class, database, identities_of):
    embedded_class.enrol("m", "ann", "bob")
    first = embedded_class.session("m__1", [["ann", "cem"], ["bob"]])
    second = embedded_class.session("m__2", [["bob"]])
    other = embedded_class.session("n__1", [["ann"]])
    class_id, session_id = ids(database, "m__1")

    answer = service().assign_session_crops(session_id)
    assert (answer.status, answer.session_id, answer.total_crops) == ("success", session_id, 3)
    assert (answer.assigned, answer.no_match, answer.needs_review, answer.errors) == (2, 1, 0, 0)
    assert answer.parameters.model_dump() == {
        "embedding_model": "dlib",
        "similarity_scale": "calibrated",
        "k": 5,
        "similarity_threshold": 0.6,
        "use_voting": True,
        "auto_commit": True,
    }
    assert [r.crop_id for r in answer.results] == sorted(first.values())
    assert identities_of(second) == {(0, "bob"): None}

    answer = service().assign_class_crops(class_id)
    assert (answer.class_id, answer.total_crops, answer.assigned, answer.no_match) == (class_id, 2, 1, 1)
    assert identities_of(second) == {(0, "bob"): "bob"}
    assert identities_of(other) == {(0, "ann"): None}, "another class's people are nobody here"
    before = stored(database)
    again = service().assign_class_crops(class_id)
    assert (again.total_crops, again.assigned, again.no_match) == (1, 0, 1)
    assert stored(database) == before


def test_the_register_follows(embedded_class, database):
    embedded_class.enrol("m", "ann", "bob")
    embedded_class.session("m__1", [["ann"]])
    service().assign_session_crops(ids(database, "m__1")[1])
    register = AttendanceService(database, "dlib").register("m")
    assert register.cells == {("ann", "1"): "present", ("bob", "1"): "absent"}


@pytest.fixture
def three_against_one(embedded_class, database):
    """A probe on the first axis; ann's crop is its nearest, bob's three are a little farther."""
    embedded_class.enrol("m", "ann", "bob")
    session = embedded_class.session("m__1", [["bob"], ["bob2"]])
    probe = embedded_class.session("m__2", [["probe"]])[0, "probe"]
    with database.connection() as connection:
        gallery = dict(
            connection.execute(
                "SELECT st.name, c.crop_id FROM confirmed_crops c JOIN students st ON st.id = c.student_id"
            )
        )
        for crop_id in session.values():
            connection.execute(
                """INSERT INTO assignments (crop_id, model, state, student_id, decided_by)
                SELECT %s, 'dlib', 'assigned', id, 'knn' FROM students WHERE name = 'bob'""",
                [crop_id],
            )
    place(database, embedded_class, probe, at(1.0 - 1e-9))
    place(database, embedded_class, gallery["ann"], at(0.99))
    for crop_id, cosine in zip([gallery["bob"], *session.values()], (0.96, 0.955, 0.95), strict=True):
        place(database, embedded_class, crop_id, at(cosine))
    return probe


def test_the_majority_of_the_k_nearest_wins(three_against_one):
    answer = service().assign_crop(three_against_one, auto_commit=False)
    assert answer.student_name == "bob"
    votes = [n.similarity for n in answer.k_nearest]
    assert len(votes) == 4
    assert answer.confidence == pytest.approx(sum(votes[1:]) / 4)


def test_without_voting_the_best_match_wins(three_against_one):
    answer = service(use_voting=False).assign_crop(three_against_one, auto_commit=False)
    assert (answer.student_name, answer.confidence) == ("ann", answer.similarity)
    assert len(answer.k_nearest) == 4


def test_only_k_vote_and_only_those_alike_enough(three_against_one):
    answer = service(k=1).assign_crop(three_against_one, auto_commit=False)
    assert (answer.student_name, len(answer.k_nearest)) == ("ann", 1)
    threshold = SPEC.calibrated(0.952)  # leaves ann 1 and bob 2
    answer = service(similarity_threshold=threshold).assign_crop(three_against_one, auto_commit=False)
    votes = [n.similarity for n in answer.k_nearest if n.similarity >= threshold]
    assert (answer.student_name, len(votes)) == ("bob", 3)
    assert answer.confidence == pytest.approx(sum(votes[1:]) / 3)
    answer = service(similarity_threshold=SPEC.calibrated(0.97)).assign_crop(three_against_one, auto_commit=False)
    assert answer.student_name == "ann"


def test_a_tie_of_votes_goes_to_the_higher_mean(three_against_one):
    answer = service(k=2).assign_crop(three_against_one, auto_commit=False)
    assert (answer.student_name, answer.confidence) == ("ann", pytest.approx(answer.similarity / 2))


def test_the_two_scales(three_against_one):
    """On the cosine scale the number is the cosine itself; 0 lets everybody vote, 1 nobody but an equal."""
    cosine = service(similarity_threshold=0.97, similarity_scale="cosine").assign_crop(three_against_one, False)
    assert cosine.student_name == "ann"
    assert service(similarity_threshold=0.985).assign_crop(three_against_one, False).status == "no_match"
    assert (
        service(similarity_threshold=0, similarity_scale="cosine").assign_crop(three_against_one, False).student_name
        == "bob"
    )
    assert service(similarity_threshold=0).assign_crop(three_against_one, False).student_name == "bob"
    for scale in ("calibrated", "cosine"):
        nobody = service(similarity_threshold=1, similarity_scale=scale).assign_crop(three_against_one, False)
        assert nobody.status == "no_match"


def test_a_close_runner_up_needs_a_review(embedded_class, database, identities_of):
    embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["probe"]])
    with database.connection() as connection:
        (ann,), (bob,) = connection.execute("SELECT crop_id FROM confirmed_crops ORDER BY crop_id").fetchall()
    place(database, embedded_class, made[0, "probe"], at(1.0 - 1e-9))
    place(database, embedded_class, ann, at(0.97))
    place(database, embedded_class, bob, at(0.97 - SPEC.review_margin / 2))
    answer = service().assign_crop(made[0, "probe"])
    assert (answer.status, answer.student_name, answer.message) == ("needs_review", "ann", "bob is nearly as alike.")
    assert identities_of(made) == {(0, "probe"): None}


@pytest.mark.parametrize(
    ("visitor_at", "status", "name", "message"),
    [
        (0.97 + 2 * SPEC.review_margin, "assigned", "vic", None),
        (0.97 + SPEC.review_margin / 2, "needs_review", "ann", "vic is more alike."),
        (0.97 - SPEC.review_margin / 2, "needs_review", "ann", "vic is nearly as alike."),
        (0.97 - 2 * SPEC.review_margin, "assigned", "ann", None),
    ],
)
def test_a_face_is_a_visitors_where_that_leads_every_student(
    embedded_class, database, visitor_at, status, name, message
):
    students = embedded_class.enrol("m", "ann", "vic")
    made = embedded_class.session("m__1", [["probe"], ["other"]])
    with database.connection() as connection:
        (ann,), (vic,) = connection.execute("SELECT crop_id FROM confirmed_crops ORDER BY crop_id").fetchall()
    place(database, embedded_class, made[0, "probe"], at(1.0 - 1e-9))
    place(database, embedded_class, ann, at(0.97))
    place(database, embedded_class, vic, at(visitor_at))
    DecisionService("teacher", context=default_context()).hide(students["vic"])

    single = service().assign_crop(made[0, "probe"], auto_commit=False)
    assert (single.status, single.student_name, single.message) == (status, name, message)
    batch = service().assign_session_crops(ids(database, "m__1")[1]).results
    assert [(a.status, a.student_name, a.message) for a in batch if a.crop_id == made[0, "probe"]] == [
        (status, name, message)
    ]


def test_visitors_have_no_vote_among_students(embedded_class, database):
    """However many of a visitor's faces are near, the students' votes are counted among themselves."""
    students = embedded_class.enrol("m", "ann", "vic")
    made = embedded_class.session("m__1", [["probe"], *[["vic"]] * 4])
    with database.connection() as connection:
        (ann,), (vic,) = connection.execute("SELECT crop_id FROM confirmed_crops ORDER BY crop_id").fetchall()
    decide = DecisionService("teacher", context=default_context())
    visits = [crop_id for (_, person), crop_id in made.items() if person == "vic"]
    decide.assign_crops(visits, students["vic"])
    place(database, embedded_class, made[0, "probe"], at(1.0 - 1e-9))
    place(database, embedded_class, ann, at(0.97))
    for crop_id in (vic, *visits):
        place(database, embedded_class, crop_id, at(0.97 - 2 * SPEC.review_margin))
    assert service(k=5).assign_crop(made[0, "probe"], auto_commit=False).student_name == "vic"

    decide.hide(students["vic"])
    for k in (1, 3, 5):
        answer = service(k=k).assign_crop(made[0, "probe"], auto_commit=False)
        assert (answer.status, answer.student_name) == ("assigned", "ann")
        assert answer.confidence == pytest.approx(answer.similarity), "of one vote, all"
        assert [n.student_name for n in answer.k_nearest] == ["ann", *["vic"] * (k - 1)]


def test_one_photo_does_not_show_a_student_twice(embedded_class, database):
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann", "twin"]])
    place(database, embedded_class, made[0, "twin"], embedded_class.vector("ann", 0.02))
    statuses = service().assign_session_crops(ids(database, "m__1")[1])
    assert sorted(r.status for r in statuses.results) == ["assigned", "needs_review"]
    (doubtful,) = [r for r in statuses.results if r.status == "needs_review"]
    assert doubtful.message == "Another face of the photo is this student."
    # Also where the first was assigned by an earlier call.
    assert service().assign_crop(doubtful.crop_id).status == "needs_review"


def test_what_a_person_said_stands(embedded_class, database, identities_of):
    students = embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann"], ["bob"]])
    with database.connection() as connection:
        for kind, crop_id, student_id in (
            ("not_this_student", made[0, "ann"], students["ann"]),
            ("unassign", made[1, "bob"], students["bob"]),
        ):
            connection.execute(
                """INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by)
                SELECT class_id, %s, %s, id, 'teacher' FROM students WHERE id = %s""",
                [kind, crop_id, student_id],
            )
    answer = service(similarity_threshold=0).assign_crop(made[0, "ann"], auto_commit=False)
    assert [n.student_name for n in answer.k_nearest] == ["bob"]
    assert service().assign_crop(made[0, "ann"]).status == "no_match"
    taken_off = service().assign_crop(made[1, "bob"])
    assert (taken_off.status, taken_off.student_name) == ("needs_review", "bob")
    assert "only a person" in taken_off.message
    service().assign_class_crops(ids(database, "m__1")[0])
    assert set(identities_of(made).values()) == {None}


def test_unusable_crops_do_not_vote_but_are_assigned(embedded_class, database, identities_of):
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"]], unusable=frozenset({"ann"}))
    later = embedded_class.session("m__2", [["ann"]])
    service().assign_class_crops(ids(database, "m__1")[0])
    assert identities_of(made) == {(0, "ann"): "ann"}
    service().assign_crop(later[0, "ann"])
    with database.connection() as connection:
        connection.execute("DELETE FROM decisions")
        connection.execute("DELETE FROM assignments WHERE crop_id = %s", [later[0, "ann"]])
    assert service().assign_crop(later[0, "ann"]).k_nearest == []


def test_the_pipeline_and_the_operation_agree_on_clear_faces(embedded_class, database, identities_of):
    embedded_class.enrol("m", "ann", "bob", "cem")
    made = embedded_class.session("m__1", [["ann", "bob"], ["cem", "ann"]])
    class_id, _ = ids(database, "m__1")
    suggested = {r.crop_id: r.student_name for r in service().assign_class_crops(class_id, auto_commit=False).results}
    key = parse_session_key("m__1")
    SessionClusteringService(database, "dlib", embedded_class.version).cluster_session(key, ClusteringConfig())
    SessionAssignmentService(database, "dlib", embedded_class.version).assign_session(key, AssignmentConfig())
    assert {made[p]: name for p, name in identities_of(made).items()} == suggested


def test_the_batch_finds_the_neighbour_that_a_query_finds(embedded_class, database):
    """The same nearest crop as the database's own operator, for every crop."""
    embedded_class.enrol("m", *"abcdefgh")
    embedded_class.session("m__1", [list("abcd"), list("efgh"), list("aceg")], distance=0.05)
    class_id, _ = ids(database, "m__1")
    answer = service(k=1, similarity_threshold=0).assign_class_crops(class_id, auto_commit=False)
    with database.connection() as connection:
        for result in answer.results:
            (nearest,) = connection.execute(
                """SELECT g.crop_id FROM embeddings_dlib g JOIN confirmed_crops c ON c.crop_id = g.crop_id,
                    embeddings_dlib p WHERE p.crop_id = %s ORDER BY g.embedding <=> p.embedding LIMIT 1""",
                [result.crop_id],
            ).fetchone()
            assert [n.crop_id for n in result.k_nearest] == [nearest]


@pytest.mark.parametrize("use_voting", [True, False])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_one_crop_is_judged_as_it_is_in_a_batch(embedded_class, database, k, use_voting):
    """One crop is compared by a query, many in memory."""
    people = [f"student {n}" for n in range(6)]
    students = embedded_class.enrol("m", *people)
    class_id, _ = ids(database, "m__enrol")
    embedded_class.session("m__1", [people] * 3, distance=0.03)
    service().assign_class_crops(class_id)
    made = embedded_class.session("m__2", [[person] for person in (*people, "guest")], distance=0.03)
    with database.connection() as connection:
        connection.execute(
            """INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by)
            VALUES (%s, 'not_this_student', %s, %s, 'teacher')""",
            [class_id, made[0, "student 0"], students["student 0"]],
        )
    DecisionService("teacher", context=default_context()).hide(students["student 1"])
    for threshold in (0, 0.6, 0.93):
        judge = service(k=k, use_voting=use_voting, similarity_threshold=threshold)
        batch = judge.assign_class_crops(class_id, auto_commit=False).results
        assert len(batch) == 7
        for expected in batch:
            single = judge.assign_crop(expected.crop_id, auto_commit=False)
            assert [n.crop_id for n in single.k_nearest] == [n.crop_id for n in expected.k_nearest]
            assert single.confidence == pytest.approx(expected.confidence, abs=1e-5)
            plain = {"k_nearest", "confidence", "similarity", "cosine_similarity"}
            assert single.model_dump(exclude=plain) == expected.model_dump(exclude=plain)


def test_similar_crops_come_with_and_without_a_student(embedded_class, database):
    embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann", "cem"], ["ann"], ["ann"], ["cem"]])
    service().assign_crop(made[1, "ann"])
    answer = service().similar_crops(made[0, "ann"], limit=2)
    assert [n.student_name for n in answer.identified] == ["ann", "ann"]
    assert made[1, "ann"] in [n.crop_id for n in answer.identified]
    assert answer.unidentified[0].crop_id == made[2, "ann"]
    assert len(answer.unidentified) == 2
    with database.connection() as connection:
        _, vectors = crops.read_embeddings(
            connection, "dlib", embedded_class.version, [made[0, "ann"], made[2, "ann"]], SPEC.dimension
        )
    expected = float(cosine_similarity_matrix(vectors[:1], vectors[1:])[0, 0])
    assert answer.unidentified[0].cosine_similarity == pytest.approx(expected, abs=1e-6)


def test_ids_that_are_not_there(database, embedded_class):
    embedded_class.session("m__1", [["ann"]])
    for call in (service().assign_crop, service().assign_session_crops, service().assign_class_crops):
        with pytest.raises(UnknownIdError, match=r"There is no (face crop|session|class) 999\."):
            call(999)


def test_parameters_are_checked_when_the_service_is_made():
    with pytest.raises(ParameterError, match=r"k cannot be used.*\(allowed: 1 to 20\)"):
        service(k=21)


def test_missing_weights_are_said_before_any_work(embedded_class, database):
    made = embedded_class.session("m__1", [["ann"]])
    with pytest.raises(WeightsError, match="facenet"):
        FaceCropAssignmentService().assign_crop(made[0, "ann"])


def test_an_id_that_is_not_there_is_said_before_weights_that_are_missing(database):
    without_weights = FaceCropAssignmentService()
    for call in (
        without_weights.assign_crop,
        without_weights.assign_session_crops,
        without_weights.assign_class_crops,
        without_weights.similar_crops,
    ):
        with pytest.raises(UnknownIdError, match="7"):
            call(7)


def test_a_class_that_is_being_processed_is_said_to_be_busy(embedded_class, database):
    from dataclasses import replace

    from pipelines.database import catalog

    made = embedded_class.session("m__1", [["ann"]])
    hasty = FaceCropAssignmentService("dlib", context=replace(default_context(), lock_patience_s=0.05))
    with database.connection() as connection:
        catalog.lock_class(connection, ids(database, "m__1")[0])
        with pytest.raises(ClassBusyError, match="being processed"):
            hasty.assign_crop(made[0, "ann"])
        assert hasty.assign_crop(made[0, "ann"], auto_commit=False).status == "no_match"
    assert hasty.assign_crop(made[0, "ann"]).status == "no_match"


@pytest.fixture
def say(database):
    """A person's decision, as it is stored."""

    def record(kind: str, crop_id: int, student_id: int) -> None:
        with database.connection() as connection:
            connection.execute(
                """INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by)
                SELECT class_id, %s, %s, id, 'teacher' FROM students WHERE id = %s""",
                [kind, crop_id, student_id],
            )

    return record


def test_a_confirmed_crop_counts_in_a_lineage_that_has_not_seen_it(embedded_class, database, identities_of, say):
    students = embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann", "bob"], ["cem"]])
    say("confirm", made[0, "ann"], students["ann"])
    place(database, embedded_class, made[0, "bob"], embedded_class.vector("ann"))
    _, session_id = ids(database, "m__1")
    answer = service().assign_session_crops(session_id)
    assert [r.status for r in answer.results] == ["needs_review", "no_match"], "the photo shows Ann already"
    assert identities_of(made)[0, "ann"] == "ann"
    assert AttendanceService(database, "dlib").register("m").cells["ann", "1"] == "present"
    confirmed = service().assign_crop(made[0, "ann"])
    assert (confirmed.status, confirmed.student_name) == ("already_assigned", "ann")


def test_a_session_whose_crops_are_all_confirmed_gets_its_attendance(embedded_class, database, say):
    students = embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"]])
    say("confirm", made[0, "ann"], students["ann"])
    service().assign_session_crops(ids(database, "m__1")[1])
    assert AttendanceService(database, "dlib").register("m").cells == {("ann", "1"): "present"}


def test_one_crop_makes_no_attendance_of_a_session_that_nobody_looked_at(embedded_class, database):
    embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann"]])
    service().assign_crop(made[0, "ann"])
    assert AttendanceService(database, "dlib").register("m").cells == {}
    service().assign_session_crops(ids(database, "m__1")[1])
    with database.connection() as connection:
        connection.execute("UPDATE assignments SET state = 'no_match', student_id = NULL WHERE decided_by = 'knn'")
        connection.execute("UPDATE attendance SET status = 'absent'")
    service().assign_crop(made[0, "ann"])
    assert AttendanceService(database, "dlib").register("m").cells["ann", "1"] == "present"


def test_a_face_without_its_student_takes_nobody_from_another(embedded_class, database, identities_of, say):
    students = embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["poster", "ann"]])
    place(database, embedded_class, made[0, "poster"], embedded_class.vector("ann", 0.001))
    say("unassign", made[0, "poster"], students["ann"])
    answer = service().assign_session_crops(ids(database, "m__1")[1])
    assert (answer.total_crops, answer.assigned) == (1, 1)
    assert identities_of(made) == {(0, "poster"): None, (0, "ann"): "ann"}


def test_a_provisional_student_whom_the_last_crop_leaves_is_gone(embedded_class, database):
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"]])
    with database.connection() as connection:
        connection.execute("INSERT INTO students (class_id, name, provisional) SELECT id, 'x', true FROM classes")
        connection.execute(
            """INSERT INTO assignments (crop_id, model, state, student_id, decided_by)
            SELECT %s, 'dlib', 'needs_review', id, 'knn' FROM students WHERE name = 'x'""",
            [made[0, "ann"]],
        )
    assert service().assign_crop(made[0, "ann"]).student_name == "ann"
    with database.connection() as connection:
        assert connection.execute("SELECT name FROM students").fetchall() == [("ann",)]


def test_photos_that_are_gone_have_no_part(embedded_class, database):
    students = embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"], ["ann"]])
    class_id, _ = ids(database, "m__1")
    service().assign_crop(made[1, "ann"])
    with database.connection() as connection:
        connection.execute("UPDATE images SET removed_at = now() WHERE path NOT LIKE 'm/enrol/%'")
        connection.execute(
            """INSERT INTO decisions (class_id, kind, crop_id, student_id, decided_by)
            VALUES (%s, 'confirm', %s, %s, 'teacher')""",
            [class_id, made[0, "ann"], students["ann"]],
        )
    before = stored(database)
    assert service().assign_class_crops(class_id).total_crops == 0
    assert stored(database) == before
    for crop_id in made.values():
        with pytest.raises(UnknownIdError):
            service().assign_crop(crop_id)
    with database.connection() as connection:
        (portrait,) = connection.execute(
            "SELECT f.id FROM face_crops f WHERE f.id <> ALL(%s)", [list(made.values())]
        ).fetchone()
    assert service().similar_crops(portrait).identified == []


def test_vectors_of_an_older_version_are_not_compared(embedded_class, database):
    embedded_class.enrol("m", "ann", "bob")
    probe = embedded_class.session("m__1", [["probe"]])[0, "probe"]
    place(database, embedded_class, probe, at(1.0 - 1e-9))
    with database.connection() as connection:
        (ann,), (bob,) = connection.execute("SELECT crop_id FROM confirmed_crops ORDER BY crop_id").fetchall()
        unit = at(0.999).astype(np.float32)[None]
        crops.write_embeddings(connection, "dlib", "older", [bob], unit)
        crops.write_embeddings(connection, "dlib", "older", [probe], at(0.0, 1.0 - 1e-9).astype(np.float32)[None])
    place(database, embedded_class, ann, at(0.97))
    answer = service().assign_crop(probe, auto_commit=False)
    assert (answer.student_name, len(answer.k_nearest)) == ("ann", 2)


def test_another_model_begins_with_the_identities_that_there_are(embedded_class, database, facenet):
    """Who somebody is does not depend on the model."""
    embedded_class.enrol("m", "ann", "bob")
    made = embedded_class.session("m__1", [["ann", "bob"]])
    class_id, _ = ids(database, "m__1")
    service().assign_class_crops(class_id)
    before = stored(database)
    suggested = FaceCropAssignmentService("facenet").assign_class_crops(class_id, auto_commit=False)
    assert (suggested.total_crops, stored(database)) == (0, before)
    assert FaceCropAssignmentService("facenet").assign_class_crops(class_id).total_crops == 0
    answer = FaceCropAssignmentService("facenet").assign_crop(made[0, "ann"])
    assert (answer.status, answer.student_name) == ("already_assigned", "ann")
    assert AttendanceService(database, "facenet").register("m").cells["bob", "1"] == "present"


def test_a_parameter_of_a_wrong_type_is_refused_before_any_work(embedded_class, database):
    embedded_class.enrol("m", "ann")
    made = embedded_class.session("m__1", [["ann"]])
    before = stored(database)
    with pytest.raises(ParameterError, match="auto_commit"):
        service().assign_crop(made[0, "ann"], auto_commit="no")
    with pytest.raises(ParameterError, match="auto_commit"):
        service().assign_class_crops(ids(database, "m__1")[0], auto_commit="no")
    assert stored(database) == before


def test_a_class_without_crops_chooses_no_model(database):
    with database.connection() as connection:
        (class_id,) = connection.execute("INSERT INTO classes (name) VALUES ('m') RETURNING id").fetchone()
    assert service().assign_class_crops(class_id).total_crops == 0
    with database.connection() as connection:
        assert connection.execute("SELECT active_model FROM classes").fetchone() == (None,)


def test_an_empty_session_and_an_empty_gallery(embedded_class, database):
    embedded_class.session("m__1", [["ann"]])
    class_id, session_id = ids(database, "m__1")
    answer = service().assign_class_crops(class_id)
    assert (answer.no_match, answer.results[0].k_nearest) == (1, [])
    with database.connection() as connection:
        connection.execute("DELETE FROM face_crops")
    answer = service().assign_session_crops(session_id)
    assert (answer.status, answer.total_crops, answer.results) == ("success", 0, [])


@given(
    arrays(
        np.float32, st.tuples(st.integers(0, 4), st.integers(0, 40)), elements=st.sampled_from([-np.inf, -1, 0, 0.5, 1])
    ),
    st.integers(1, 20),
)
def test_the_nearest_are_those_that_sorting_gives(similarity, k):
    expected = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(_nearest(similarity, k), expected)
