"""Say who each face of a session is."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import dagster as dg
import numpy as np
from psycopg import Connection
from pydantic import Field

from pipelines.database import catalog, clusters, crops, decisions, identities, lineages, students
from pipelines.database.clusters import Scope
from pipelines.database.identities import Assignment, GalleryCrop
from pipelines.faces.assignment import assign_one_to_one, knn_votes
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.thresholds import class_spec


class AssignmentConfig(dg.Config):
    """How a session's crops are matched with the class's gallery."""

    k: int = Field(default=5, ge=1, le=20, description="Gallery crops that may vote.")
    distance_threshold: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="Cosine distance up to which a gallery crop votes; unset: the model's own.",
    )
    margin: float | None = Field(
        default=None, ge=0, le=2, description="Lead over the runner-up in cosine similarity; less means needs_review."
    )
    use_voting: bool = Field(default=True, description="Majority of the k nearest; false: the best match only.")


@dataclass(frozen=True)
class AssignmentReport:
    """What became of a session's crops, and the thresholds by which: distances are cosine distances.

    verification_threshold: where the calibrated similarities of this run have 0.5. margin: the lead over the runner-up.
    """

    crops: int
    assigned: int
    needs_review: int
    no_match: int
    students_created: int
    gallery: int
    changed: int
    distance_threshold: float
    verification_threshold: float
    margin: float


@dataclass(frozen=True)
class SessionAssignmentService:
    """Assigns the crops of a session to students of its class by one model's vectors."""

    database: Database
    model_name: str
    version: str

    def assign_session(self, key: SessionKey, config: AssignmentConfig, run_id: str | None = None) -> AssignmentReport:
        """Match every embedded crop with the class's gallery; what matches nobody becomes provisional students.

        Confirmed crops are asked first, so that portraits added or corrected later put right what was decided without
        them; then the other crops of named students, then provisional students, then the session's clusters. One
        transaction under the class's lock: two sessions of a class processed at once never make the same person twice.
        """
        with self.database.connection() as connection:
            session = catalog.find_session(connection, key)
            catalog.lock_class(connection, session.class_id)
            spec = class_spec(connection, self.model_name, session.class_id, version=self.version)
            run = _SessionRun(connection, spec, self.version, config, session.id, session.class_id)
            if not session.is_enrolment:
                run.match_gallery(lambda crop: crop.confirmed)
                run.match_gallery(lambda crop: not crop.provisional)
                run.match_gallery(lambda crop: crop.provisional)
                run.join_clusters()
            created = 0
            # A portrait that a person has taken a student off is no new person.
            groups = [] if session.is_enrolment else run.unknown_people()
            owners = run.prior_owners(groups)
            for members, owner in zip(groups, owners, strict=True):
                created += owner is None
                run.become(
                    members,
                    owner or catalog.create_provisional_student(connection, session.class_id, key.class_name, session),
                )
            changed = identities.write_assignments(connection, spec.name, run.decided.values(), run_id)
            changed += identities.forget_assignments(connection, spec.name, session.id, list(run.decided))
            lineages.mark_assigned(connection, session.id, spec.name)
            catalog.delete_empty_provisional_students(connection, session.class_id, spec.name)
        states = Counter(a.state for a in run.decided.values())
        return AssignmentReport(
            crops=len(run.decided),
            assigned=states["assigned"],
            needs_review=states["needs_review"],
            no_match=states["no_match"],
            students_created=created,
            gallery=len(run.gallery),
            changed=changed,
            distance_threshold=run.distance_threshold,
            verification_threshold=spec.verification_threshold,
            margin=run.margin,
        )


class _SessionRun:
    """The state of one session's assignment: what is decided so far, and the evidence for what is not."""

    def __init__(
        self,
        connection: Connection,
        spec: ModelSpec,
        version: str,
        config: AssignmentConfig,
        session_id: int,
        class_id: int,
    ) -> None:
        self.spec = spec
        self.k = config.k
        self.use_voting = config.use_voting
        self.distance_threshold = config.distance_threshold or spec.assignment_distance
        self.margin = spec.review_margin if config.margin is None else config.margin

        rows = {row.id: row for row in crops.session_crops(connection, session_id)}
        ids, self.vectors = crops.read_embeddings(connection, spec.name, version, rows, spec.dimension)
        self.index = {crop_id: i for i, crop_id in enumerate(ids)}
        self.photo = {crop_id: row.image_id for crop_id, row in rows.items()}
        self.usable = {crop_id for crop_id, row in rows.items() if row.usable}
        scope = Scope(class_id, session_id)
        self.clusters = clusters.read_clusters(connection, scope, spec.name)
        self.rejected: dict[int, set[int]] = defaultdict(set)
        for crop_id, student_id in decisions.read_rejected(connection, list(rows)):
            self.rejected[crop_id].add(student_id)
        self.merged_together = students.read_merge_targets(connection, class_id)
        # Where a photo shows both of two students who were merged, one face of it is in doubt, and still theirs.
        prior = clusters.read_remembered(connection, scope, spec.name)
        prior |= decisions.read_doubted(connection, spec.name, ids, self.merged_together)
        prior |= identities.read_prior_students(connection, spec.name, ids)
        self.prior = {
            crop_id: student_id
            for crop_id, student_id in prior.items()
            if crop_id in rows and student_id not in self.rejected[crop_id]
        }

        gallery = {
            g.crop_id: g for g in identities.read_gallery(connection, class_id, spec.name, without_session=session_id)
        }
        gallery_ids, self.gallery_vectors = crops.read_embeddings(
            connection, spec.name, version, gallery, spec.dimension
        )
        self.gallery: list[GalleryCrop] = [gallery[crop_id] for crop_id in gallery_ids]
        self.portrayed = decisions.read_portrayed(connection, class_id)

        self.decided: dict[int, Assignment] = {
            g.crop_id: Assignment(g.crop_id, "assigned", g.student_id, "person", 1.0, 1.0)
            for g in gallery.values()
            if g.confirmed and g.crop_id in rows
        }
        for crop_id in decisions.read_unassigned(connection, list(rows)):
            self.decided[crop_id] = Assignment(crop_id, "no_match", None, "person")
        # A crop without a vector stays out of every decision; the embedding check has said so already.
        for crop_id in ids:
            self.decided.setdefault(crop_id, Assignment(crop_id, "no_match", None, "knn"))

    def match_gallery(self, wanted: Callable[[GalleryCrop], bool]) -> None:
        """Match the crops that have no student yet with a part of the gallery."""
        probes = [crop_id for crop_id in self.decided if self.is_open(crop_id)]
        part = [i for i, g in enumerate(self.gallery) if wanted(g)]
        if not probes or not part:
            return
        similarity = cosine_similarity_matrix(
            self.vectors[[self.index[crop_id] for crop_id in probes]], self.gallery_vectors[part]
        )
        gallery_students = np.array([self.gallery[i].student_id for i in part])
        for row, crop_id in enumerate(probes):
            if self.rejected[crop_id]:
                similarity[row, np.isin(gallery_students, list(self.rejected[crop_id]))] = -np.inf
        photos = [self.photo[crop_id] for crop_id in probes]
        taken = {photo: self.students_in_photo(photo) for photo in set(photos)}
        voting: Literal["equal_ballots", "best"] = "equal_ballots" if self.use_voting else "best"
        votes = knn_votes(similarity, gallery_students, self.k, 1 - self.distance_threshold, voting)
        for crop_id, decision in zip(probes, assign_one_to_one(votes, photos, self.margin, taken), strict=True):
            self.decided[crop_id] = Assignment(
                crop_id,
                decision.state,
                decision.student,
                "knn",
                decision.similarity,
                None if decision.similarity is None else self.spec.calibrated(decision.similarity),
                decision.runner_up,
                decision.runner_up_similarity,
            )

    def join_clusters(self) -> None:
        """A face that matched nobody but is clustered mostly with one student's faces is that student, seen less clearly."""
        members: dict[int, list[int]] = defaultdict(list)
        for crop_id, label in self.clusters.items():
            if crop_id in self.decided and (self.is_open(crop_id) or self.decided[crop_id].student_id is not None):
                members[label].append(crop_id)
        for crop_ids in members.values():
            known = [c for c in crop_ids if self.decided[c].state == "assigned"]
            owners = {self.decided[c].student_id for c in known}
            # One stray match must not turn a guest's whole cluster into a student.
            if len(owners) != 1 or 2 * len(known) < len(crop_ids):
                continue
            (student_id,) = owners
            for crop_id in crop_ids:
                taken = self.students_in_photo(self.photo[crop_id]) | self.rejected[crop_id]
                if self.is_open(crop_id) and student_id not in taken:
                    self.decided[crop_id] = self.by_cluster(crop_id, student_id, known)

    def unknown_people(self) -> list[list[int]]:
        """The crops still without a student, grouped by cluster; lone noise and unusable crops stay nobody.

        A crop of which a person has said that it is not the student whose crops the cluster had is a group without them.
        """
        groups: dict[int, list[int]] = defaultdict(list)
        for crop_id, label in self.clusters.items():
            if crop_id in self.usable and crop_id in self.decided and self.is_open(crop_id):
                groups[label].append(crop_id)
        return [part for label in sorted(groups) for part in self.without_rejected(sorted(groups[label]))]

    def without_rejected(self, members: list[int]) -> list[list[int]]:
        """Split a group until nobody in a part was said not to be whom most of the part were before."""
        before = Counter(self.prior[c] for c in members if c in self.prior).most_common(1)
        others = [c for c in members if before and before[0][0] in self.rejected[c]]
        if not others:
            return [members]
        return [[c for c in members if c not in others], *self.without_rejected(others)]

    def is_open(self, crop_id: int) -> bool:
        """Whether the crop has no student and no person wants it so."""
        return self.decided[crop_id].state == "no_match" and self.decided[crop_id].decided_by != "person"

    def prior_owners(self, groups: list[list[int]]) -> list[int | None]:
        """Who the crops of each group were before, in this lineage or, where the model is new, in another.

        A student owns at most one group, the one with most of their crops, so that people whom the clustering took for
        one by mistake come apart; more than half of the group must have been theirs. A student with a portrait was asked
        already and did not match. Neither holds for a student of whom a person has said that two students are one: their
        faces differ so much that nothing else keeps them together.
        """
        with_gallery = {g.student_id for g in self.gallery}
        owners: list[int | None] = [None] * len(groups)
        claims = [
            (count, index, student_id)
            for index, members in enumerate(groups)
            for student_id, count in Counter(self.prior[c] for c in members if c in self.prior).items()
            if count * 2 > len(members)
        ]
        for _, index, student_id in sorted(claims, key=lambda claim: (-claim[0], claim[1])):
            in_photos = set().union(*(self.students_in_photo(self.photo[c]) for c in groups[index]))
            asked_already = student_id in with_gallery & self.portrayed
            if student_id in self.merged_together or (not asked_already and student_id not in {*owners, *in_photos}):
                owners[index] = student_id
        return owners

    def become(self, members: list[int], student_id: int) -> None:
        """Assign a cluster's crops to one student, each photo's best one; a second one in a photo needs a review."""
        ranked = sorted(
            (self.by_cluster(crop_id, student_id, [c for c in members if c != crop_id]) for crop_id in members),
            key=lambda a: (-(a.cosine_similarity or 0), a.crop_id),
        )
        for assignment in ranked:
            shown = student_id in self.students_in_photo(self.photo[assignment.crop_id])
            self.decided[assignment.crop_id] = replace(assignment, state="needs_review") if shown else assignment

    def students_in_photo(self, photo: int) -> set[int]:
        """Students assigned to a crop of this photo so far."""
        return {
            a.student_id
            for crop_id, a in self.decided.items()
            if a.student_id is not None and a.state == "assigned" and self.photo[crop_id] == photo
        }

    def by_cluster(self, crop_id: int, student_id: int | None, others: list[int]) -> Assignment:
        """An assignment whose evidence is the mean similarity to the cluster's other crops."""
        similarity = None
        embedded = [self.index[c] for c in others if c in self.index]
        if embedded:
            similarity = float(
                cosine_similarity_matrix(self.vectors[[self.index[crop_id]]], self.vectors[embedded]).mean()
            )
        calibrated = None if similarity is None else self.spec.calibrated(similarity)
        return Assignment(crop_id, "assigned", student_id, "cluster", similarity, calibrated)
