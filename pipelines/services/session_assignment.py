"""Say who each face of a session is."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import dagster as dg
import numpy as np
from numpy.typing import NDArray
from psycopg import Connection
from pydantic import Field

from pipelines.database import catalog, clusters, crops, decisions, identities, lineages, students
from pipelines.database.clusters import Scope
from pipelines.database.confirmations import check_confirmations
from pipelines.database.identities import Assignment, GalleryCrop
from pipelines.faces.assignment import assign_people, candidates_beside_visitors
from pipelines.faces.gallery import Prototypes, prototypes
from pipelines.faces.pooling import ALONE, linked_faces, pooled, quality_weights
from pipelines.faces.similarity import cosine_similarity_matrix
from pipelines.partitions import SessionKey
from pipelines.resources.database import Database
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.thresholds import class_spec

# Crops of a student share a prototype while they are this much nearer to one another than the threshold asks. Of 1, 1/2,
# 1/3 and 1/4 the last found most of the small faces, none gave a wrong name (on classes made for it, with other seeds
# than those that results are stated for).
PROTOTYPE_SPREAD = 0.25


class AssignmentConfig(dg.Config):
    """How the people of a session are matched with the class's gallery."""

    k: int = Field(default=5, ge=1, le=20, description="Gallery prototypes that may vote.")
    distance_threshold: float | None = Field(
        default=None,
        gt=0,
        le=2,
        description="Cosine distance up to which a gallery prototype votes; unset: the model's own.",
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

        It is decided about people, not crops: those that the session's clusters, or a clear likeness to one, show to be
        the same person are matched together, by what their vectors have in common (see `faces.pooling`), and the gallery
        is a few prototypes of each student (`faces.gallery`). The evidence stored with a crop is that of its person.

        Confirmed crops are asked first, so that portraits added or corrected later put right what was decided without
        them; then the other crops of named students, then provisional students, then the session's clusters. Visitors
        (hidden students) are asked beside all of them, and take their own face last. One transaction under the class's
        lock: two sessions of a class processed at once never make the same person twice.
        """
        with self.database.connection() as connection:
            session = catalog.find_session(connection, key)
            catalog.lock_class(connection, session.class_id)
            spec = class_spec(connection, self.model_name, session.class_id, version=self.version)
            run = _SessionRun(connection, spec, self.version, config, session.id, session.class_id)
            if not session.is_enrolment:
                run.match_gallery(lambda crop: crop.confirmed)
                run.match_gallery(lambda crop: not crop.provisional)
                run.match_gallery(lambda crop: crop.provisional, absorb=True)
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
            check_confirmations(connection, session.class_id, spec.name, session.id)
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
        embedded = [rows[crop_id] for crop_id in ids]
        self.weights = quality_weights(
            [min(row.width, row.height) for row in embedded],
            [row.sharpness for row in embedded],
            [row.confidence for row in embedded],
            [row.yaw for row in embedded],
        )
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
        self.hidden = {g.student_id for g in self.gallery if g.hidden}
        # Crops of students whom a person has named, or made visitors, and whom no other session shows: what a person has
        # said is with these crops alone, and is lost where an unknown person of another session takes them over.
        self.nameless = catalog.nameless_student_ids(connection, class_id)
        others = self.nameless | {g.student_id for g in self.gallery}
        self.only_here = {crop_id for crop_id, owner in self.prior.items() if owner not in others}
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

        self.links = self.linked()

    def linked(self) -> list[list[int]]:
        """The crops that nobody has spoken about, those of one person together; each such link is decided once.

        Clustered crops of which a person has said that they do not show somebody are with others that this was said of
        only: what is said of one crop of a link holds for all of it.
        """
        ids = [crop_id for crop_id in self.decided if self.is_open(crop_id)]
        rows = [self.index[crop_id] for crop_id in ids]
        numbers: dict[tuple[int, frozenset[int]], int] = {}
        labels = []
        for crop_id in ids:
            rejected = frozenset(self.rejected[crop_id])
            alone = crop_id not in self.clusters
            part = (-crop_id if alone else self.clusters[crop_id], rejected)
            labels.append(ALONE if alone and not rejected else numbers.setdefault(part, len(numbers)))
        links = linked_faces(
            self.vectors[rows],
            self.weights[rows],
            np.array([self.photo[crop_id] for crop_id in ids], np.int64),
            np.array(labels, np.int64),
            self.spec.clustering_distance,
            self.margin,
        )
        members: dict[int, list[int]] = defaultdict(list)
        for crop_id, link in zip(ids, links.tolist(), strict=True):
            members[link].append(crop_id)
        return list(members.values())

    def match_gallery(self, wanted: Callable[[GalleryCrop], bool], *, absorb: bool = False) -> None:
        """Match the links that have no student yet with a part of the gallery and with the visitors.

        absorb: whether what is a visitor's face becomes the visitor; else it stays open, for a student who is asked later
        may be nearer.
        """
        probes = [link for link in self.links if all(self.is_open(crop_id) for crop_id in link)]
        part = [i for i, g in enumerate(self.gallery) if g.hidden or wanted(g)]
        if not probes or not part:
            return
        known = self.prototypes_of(part)
        similarity = cosine_similarity_matrix(self.pooled(probes), known.vectors)
        for row, link in enumerate(probes):
            # Whom one of the link does not show, none of it does.
            rejected = set().union(*(self.rejected[crop_id] for crop_id in link))
            if absorb and not self.only_here.isdisjoint(link):
                rejected |= self.nameless
            similarity[row, np.isin(known.students, list(rejected))] = -np.inf
        photos = [[self.photo[crop_id] for crop_id in link] for link in probes]
        taken = {photo: self.students_in_photo(photo) for photo in set().union(*photos)}
        voting: Literal["equal_ballots", "best"] = "equal_ballots" if self.use_voting else "best"
        candidates = candidates_beside_visitors(
            similarity, known.students, self.hidden, self.k, 1 - self.distance_threshold, self.margin, voting
        )
        for link, decision in zip(probes, assign_people(candidates, photos, self.margin, taken), strict=True):
            if decision.student in self.hidden and not absorb:
                continue
            for crop_id in link:
                before = self.decided[crop_id].runner_up_cosine_similarity
                nearer = before is None or (decision.runner_up_similarity or -1) > before
                if decision.state == "no_match" and not nearer:
                    continue  # of a face that is nobody's, the nearest of all who were asked is told
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

    def prototypes_of(self, part: list[int]) -> Prototypes:
        """The prototypes of the students of some of the gallery's crops."""
        shown = [self.gallery[i] for i in part]
        return prototypes(
            self.gallery_vectors[part],
            np.array([g.student_id for g in shown], np.int64),
            quality_weights(
                [g.size for g in shown],
                [g.sharpness for g in shown],
                [g.confidence for g in shown],
                [g.yaw for g in shown],
            ),
            np.array([g.confirmed for g in shown]),
            self.distance_threshold * PROTOTYPE_SPREAD,
        )

    def pooled(self, links: list[list[int]]) -> NDArray[np.float32]:
        """What the vectors of each link have in common: (number of links, dimension)."""
        rows = [self.index[crop_id] for link in links for crop_id in link]
        groups = np.repeat(np.arange(len(links)), [len(link) for link in links])
        return pooled(self.vectors[rows], self.weights[rows], groups)

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
        one by mistake come apart; more than half of the group must have been theirs, or more than half of what was theirs
        must be in it, and nobody else's. A student with a portrait was asked already and did not match. Neither holds for
        a student of whom a person has said that two students are one: their faces differ so much that nothing else keeps
        them together.
        """
        with_gallery = {g.student_id for g in self.gallery}
        crops_of = Counter(self.prior.values())
        owners: list[int | None] = [None] * len(groups)
        claims = [
            (count, index, student_id)
            for index, members in enumerate(groups)
            for before in [Counter(self.prior[c] for c in members if c in self.prior)]
            for student_id, count in before.items()
            if count * 2 > len(members) or [s for s in before if before[s] * 2 > crops_of[s]] == [student_id]
        ]
        for _, index, student_id in sorted(claims, key=lambda claim: (-claim[0], claim[1])):
            in_photos = set().union(*(self.students_in_photo(self.photo[c]) for c in groups[index]))
            asked_already = student_id in with_gallery & self.portrayed
            if student_id in self.merged_together or (not asked_already and student_id not in {*owners, *in_photos}):
                owners[index] = student_id
        return owners

    def become(self, members: list[int], student_id: int) -> None:
        """Assign a cluster's crops to one student, each photo's best one; a second one in a photo needs a review.

        Crops too poor to be clustered that clearly belong to them go with them, unless said not to be the student.
        """
        linked = {c for link in self.links if set(link) & set(members) for c in link if c not in self.clusters}
        everyone = [*members, *sorted(c for c in linked if self.is_open(c) and student_id not in self.rejected[c])]
        ranked = sorted(
            (self.by_cluster(crop_id, student_id, [c for c in members if c != crop_id]) for crop_id in everyone),
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
