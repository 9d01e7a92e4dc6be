"""Two hundred random histories of a class: runs, sessions, decisions, undos, re-clusterings; nobody's name is ever lost."""

from collections.abc import Set
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pipelines.database import catalog
from pipelines.errors import ConflictError
from pipelines.partitions import parse_session_key
from pipelines.resources.embedding_models import EmbeddingModels
from pipelines.services.assignment import FaceCropAssignmentService
from pipelines.services.attendance import AttendanceService
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.decisions import DecisionService
from pipelines.services.reclustering import ReclusteringConfig, ReclusteringService
from pipelines.services.session_assignment import AssignmentConfig, SessionAssignmentService
from pipelines.services.session_clustering import ClusteringConfig, SessionClusteringService
from pipelines.settings import get_settings

PEOPLE = ("ann", "bob", "cem", "dan", "eve")
PHOTOS = st.lists(st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=4, unique=True), min_size=1, max_size=3)
# Which of the crops, students, sessions or decisions that there are.
ANY = st.integers(0, 10_000)

CONFIRMED = "SELECT crop_id, student_id FROM confirmed_crops WHERE class_id = %(class)s"
STUDENTS = """SELECT id, name, provisional, merged_into, hidden, student_number FROM students WHERE class_id = %(class)s
    ORDER BY id"""
ASSIGNED = """SELECT a.crop_id, a.state, a.student_id, a.decided_by FROM assignments a JOIN face_crops f ON f.id = a.crop_id
    JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id WHERE s.class_id = %(class)s ORDER BY 1"""
ATTENDANCE = """SELECT t.session_id, t.student_id, t.status, t.crops, t.decision_id FROM attendance t
    JOIN sessions s ON s.id = t.session_id WHERE s.class_id = %(class)s ORDER BY 1, 2"""
# Confirmed crops that a lineage which has seen them gives to anybody else.
LOST = """SELECT c.crop_id FROM confirmed_crops c JOIN assignments a USING (crop_id)
    WHERE c.class_id = %(class)s AND (a.state, a.student_id) IS DISTINCT FROM ('assigned', c.student_id)"""
REJECTED = """SELECT a.crop_id FROM assignments a JOIN rejected_students r USING (crop_id, student_id)
    JOIN face_crops f ON f.id = a.crop_id JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
    WHERE s.class_id = %(class)s"""
# Students whom a photo shows twice though no person has said so of both faces.
TWICE = """SELECT f.image_id, a.student_id FROM assignments a JOIN face_crops f ON f.id = a.crop_id
    JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
    WHERE s.class_id = %(class)s AND a.state = 'assigned'
    GROUP BY 1, 2 HAVING count(*) > 1 AND count(*) FILTER (WHERE a.decided_by <> 'person') > 0"""
# What no person has said, or not any more, counts as said by none.
UNSAID = """SELECT a.crop_id FROM assignments a JOIN face_crops f ON f.id = a.crop_id JOIN images i ON i.id = f.image_id
    JOIN sessions s ON s.id = i.session_id LEFT JOIN confirmed_crops c ON c.crop_id = a.crop_id
    LEFT JOIN unassigned_crops u ON u.crop_id = a.crop_id
    WHERE s.class_id = %(class)s AND a.decided_by = 'person' AND c.crop_id IS NULL AND u.crop_id IS NULL"""
SHADOWS = """SELECT a.crop_id FROM assignments a JOIN students st ON st.id = a.student_id
    WHERE st.class_id = %(class)s AND st.merged_into IS NOT NULL"""


class ClassHistory(RuleBasedStateMachine):
    """One class of its own in the test's database, which all histories share."""

    made: Any
    connection: psycopg.Connection
    number = 0

    @initialize(enrolled=st.lists(st.sampled_from(PEOPLE), max_size=2, unique=True), photos=PHOTOS)
    def begin(self, enrolled: list[str], photos: list[list[str]]) -> None:
        ClassHistory.number += 1
        self.name = f"c{ClassHistory.number}"
        self.sessions: list[str] = []
        self.said: list[int] = []
        self.decide = DecisionService("a teacher")
        self.version = EmbeddingModels.from_settings(get_settings()).version("dlib")
        if enrolled:
            self.made.enrol(self.name, *enrolled)
            self.sessions.append(f"{self.name}__enrol")
        self.add_session(photos, 0.015)
        self.run(0)

    # What the pipeline does

    @rule(
        photos=PHOTOS, distance=st.sampled_from([0.01, 0.03, 0.06]), poor=st.sets(st.sampled_from(PEOPLE), max_size=2)
    )
    def add_session(self, photos: list[list[str]], distance: float, poor: Set[str] = frozenset()) -> None:
        """poor: whose faces are too bad to be clustered."""
        key = f"{self.name}__{len(self.sessions)}"
        self.made.session(key, photos, distance=distance, unusable=frozenset(poor))
        self.sessions.append(key)

    @rule(which=ANY)
    def run(self, which: int) -> None:
        """The session's assets, and those of the portraits before."""
        before = self.confirmed()
        for name in dict.fromkeys([self.sessions[0], self.sessions[which % len(self.sessions)]]):
            key = parse_session_key(name)
            SessionClusteringService(self.made.database, "dlib", self.version).cluster_session(key, ClusteringConfig())
            SessionAssignmentService(self.made.database, "dlib", self.version).assign_session(key, AssignmentConfig())
            AttendanceService(self.made.database, "dlib").register_session(key)
        assert self.confirmed() == before

    @rule(include_identified=st.booleans())
    def cluster(self, include_identified: bool) -> None:
        before = self.confirmed()
        FaceCropClusteringService("dlib").cluster_class_crops(self.class_id, include_identified=include_identified)
        assert self.confirmed() == before

    @rule()
    def assign(self) -> None:
        before = self.confirmed()
        FaceCropAssignmentService("dlib").assign_class_crops(self.class_id)
        assert self.confirmed() == before

    @rule()
    def recluster(self) -> None:
        """A plan changes nothing, and is applied as it says."""
        before, confirmed = self.everything(), self.confirmed()
        service = ReclusteringService()
        plan = service.plan(self.name, "dlib", ReclusteringConfig())
        assert self.everything() == before
        service.apply(plan.plan_id, "a teacher")
        assert self.confirmed() == confirmed
        moved = {crop.crop_id for crop in plan.changes.moved}
        was, is_now = ({row[0]: row[1:3] for row in state} for state in (before[1], self.query(ASSIGNED)))
        assert {crop_id for crop_id in is_now if was.get(crop_id) != is_now[crop_id]} == moved

    # What people say

    @rule(crop=ANY, student=ANY)
    def give(self, crop: int, student: int) -> None:
        self.say(lambda: self.decide.assign(self.crop(crop), self.student(student)), {self.crop(crop)})

    @rule(crops=st.lists(ANY, min_size=1, max_size=4), student=ANY)
    def give_many(self, crops: list[int], student: int) -> None:
        chosen = [*{self.crop(crop) for crop in crops}]
        self.say(lambda: self.decide.assign_crops(chosen, self.student(student)), set(chosen))

    @rule(crop=ANY)
    def take_off(self, crop: int) -> None:
        self.say(lambda: self.decide.unassign(self.crop(crop)), {self.crop(crop)})

    @rule(crop=ANY)
    def no_face(self, crop: int) -> None:
        self.say(lambda: self.decide.not_a_face([self.crop(crop)]), {self.crop(crop)})

    @rule(crop=ANY, student=ANY)
    def reject(self, crop: int, student: int) -> None:
        self.say(lambda: self.decide.reject(self.crop(crop), self.student(student)), {self.crop(crop)})

    @rule(student=ANY, name=st.sampled_from([*PEOPLE, "فاطمة", "Zoë"]))
    def rename(self, student: int, name: str) -> None:
        self.say(lambda: self.decide.rename(self.student(student), name), set())

    @rule(student=ANY, other=ANY)
    def merge(self, student: int, other: int) -> None:
        one, two = self.student(student), self.student(other)
        before = self.confirmed()
        if self.say(lambda: self.decide.merge(one, two), None):
            # All that were either's are the one's who is kept.
            assert self.confirmed() == {crop: two if whose == one else whose for crop, whose in before.items()}

    @rule(student=ANY, some=st.lists(st.booleans(), min_size=6, max_size=6))
    def split(self, student: int, some: list[bool]) -> None:
        whose = self.student(student)
        theirs = [row[0] for row in self.query(ASSIGNED) if row[1] == "assigned" and row[2] == whose]
        chosen = [crop_id for crop_id, taken in zip(theirs, some, strict=False) if taken]
        if chosen:
            self.say(lambda: self.decide.split(chosen), set(chosen))

    @rule(crops=st.lists(ANY, min_size=1, max_size=4), name=st.sampled_from([None, *PEOPLE, "Zoë"]))
    def create(self, crops: list[int], name: str | None) -> None:
        shown = {row[0] for row in self.query(ASSIGNED) if row[1] == "assigned"}
        chosen = [*{self.crop(crop) for crop in crops} - shown]
        if chosen:
            self.say(lambda: self.decide.create_student(chosen, name), set(chosen))

    @rule(student=ANY)
    def hide(self, student: int) -> None:
        self.say(lambda: self.decide.hide(self.student(student)), set())

    @rule(session=ANY, student=ANY, status=st.sampled_from(["present", "absent", "excused", None]))
    def mark(self, session: int, student: int, status: Any) -> None:
        session_id = self.session_id(self.sessions[session % len(self.sessions)])
        self.say(lambda: self.decide.mark_attendance(session_id, self.student(student), status), set())

    @precondition(lambda self: self.said)
    @rule(which=ANY)
    def undo(self, which: int) -> None:
        decision = self.said[which % len(self.said)]
        base = self.query(f"SELECT kind FROM decisions WHERE id = ({self.base_of(decision)}) AND class_id = %(class)s")
        about = {
            crop_id
            for (crop_id,) in self.query(
                f"SELECT crop_id FROM decisions WHERE ({self.base_of(decision)}) IN (id, part_of) AND class_id = %(class)s"
            )
        }
        before = self.confirmed()
        if not self.say(lambda: self.decide.undo(decision), None):
            return
        after = self.confirmed()
        for crop in (before.keys() | after.keys()) - about:
            if before.get(crop) != after.get(crop):
                # Two students become one, or one two again: what was confirmed stays with one of the two.
                assert base in ([("merge",)], [("split",)])
                assert after.get(crop) is not None

    @precondition(lambda self: self.said)
    @rule()
    def undo_the_last(self) -> None:
        """And undo that, too: all is as if nothing had been."""
        before = self.everything()
        (last,) = self.query("SELECT max(id) FROM decisions WHERE class_id = %(class)s AND part_of IS NULL")[0]
        if self.say(lambda: self.decide.undo(last), None) and self.say(lambda: self.decide.undo(self.said[-1]), None):
            assert self.everything() == before

    @rule()
    def replay(self) -> None:
        """All decisions on an empty state give the state that there is."""
        before = self.everything()
        with self.made.database.connection() as connection:
            connection.execute(
                """UPDATE students SET name = 'forgotten ' || id, provisional = true, merged_into = NULL, hidden = false,
                student_number = NULL, email = NULL WHERE class_id = %s AND original_name IS NOT NULL""",
                [self.class_id],
            )
            connection.execute(
                """UPDATE assignments a SET state = 'no_match', student_id = NULL, decided_by = 'knn',
                    cosine_similarity = NULL, similarity = NULL FROM face_crops f
                JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id
                WHERE f.id = a.crop_id AND s.class_id = %s AND a.decided_by = 'person'""",
                [self.class_id],
            )
        self.decide.replay(self.name)
        assert self.everything() == before

    # What always holds

    def teardown(self) -> None:
        if hasattr(self, "name"):
            self.check()

    def check(self) -> None:
        for broken in (LOST, REJECTED, TWICE, UNSAID, SHADOWS):
            assert self.query(broken) == [], broken

    def say(self, decide: Any, about: set[int] | None) -> bool:
        """Decide; whose the other crops are stays confirmed (None: that is looked at elsewhere). False: refused."""
        before = self.confirmed()
        try:
            answer = decide()
        except ConflictError:
            assert self.confirmed() == before
            return False
        self.said.append(answer.decision_id)
        if about is not None:
            after = self.confirmed()
            assert {c: s for c, s in after.items() if c not in about} == {
                c: s for c, s in before.items() if c not in about
            }
        self.check()
        return True

    @property
    def class_id(self) -> int:
        (found,) = self.connection.execute("SELECT id FROM classes WHERE name = %s", [self.name]).fetchone()
        return found

    def query(self, sql: str) -> list[tuple]:
        return self.connection.execute(sql, {"class": self.class_id}).fetchall()

    def confirmed(self) -> dict[int, int]:
        return dict(self.query(CONFIRMED))

    def everything(self) -> list[list[tuple]]:
        return [self.query(sql) for sql in (STUDENTS, ASSIGNED, ATTENDANCE)]

    def crop(self, which: int) -> int:
        crops = self.query(
            "SELECT f.id FROM face_crops f JOIN images i ON i.id = f.image_id JOIN sessions s ON s.id = i.session_id "
            "WHERE s.class_id = %(class)s ORDER BY 1"
        )
        return crops[which % len(crops)][0]

    def student(self, which: int) -> int:
        students = self.query("SELECT id FROM students WHERE class_id = %(class)s AND merged_into IS NULL ORDER BY 1")
        assume(students)
        return students[which % len(students)][0]

    def session_id(self, key: str) -> int:
        with self.made.database.connection() as connection:
            return catalog.find_session(connection, parse_session_key(key)).id

    @staticmethod
    def base_of(decision: int) -> str:
        """What an undo is about at last, as a query."""
        return f"""WITH RECURSIVE chain AS (SELECT id, undoes FROM decisions WHERE id = {decision}
            UNION ALL SELECT u.id, u.undoes FROM decisions u JOIN chain ON u.id = chain.undoes) SELECT min(id) FROM chain"""


@pytest.mark.slow
def test_two_hundred_histories_lose_nobody(embedded_class):
    with psycopg.connect(get_settings().database_url, autocommit=True) as looking:

        class Histories(ClassHistory):
            made = embedded_class
            connection = looking

        run_state_machine_as_test(
            Histories,
            settings=settings(
                max_examples=200,
                stateful_step_count=12,
                deadline=None,
                derandomize=True,
                # Making a failing history shorter takes longer than all of them.
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
