"""Group face crops into people and make students of the groups, for a session or a whole class."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from pipelines.database import catalog, clusters, crops, identities
from pipelines.database.clusters import ClusterCrop, Scope
from pipelines.database.confirmations import check_confirmations
from pipelines.database.identities import Assignment, State
from pipelines.faces.clustering import FREE, agglomerative_clusters
from pipelines.faces.similarity import distance_for
from pipelines.resources.embedding.registry import ModelSpec
from pipelines.services.answers import ClassClusteringAnswer, SessionClusteringAnswer, batch_status
from pipelines.services.attendance import refresh_attendance
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.embedding import EmbeddingService
from pipelines.services.parameters import ClassClusteringParameters, SimilarityScale, checked
from pipelines.services.thresholds import class_spec, cosine_in_use

_logger = logging.getLogger(__name__)


class _Face(NamedTuple):
    """What a crop's cluster depends on besides its vector.

    student_id: the confirmed one, else FREE; rejected: students whom it does not show.
    """

    crop_id: int
    image_id: int
    student_id: int
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class FaceCropClusteringService:
    """Clusters the usable crops of a session or class by one model's vectors and makes students of the clusters.

    Raises ParameterError for a parameter out of its range, and at every call UnknownIdError for an id that is not
    there, WeightsError where the model's weights are missing, ClassBusyError after the context's patience.

    max_clusters: clusters merge beyond the threshold until so many are left, at last even those that hold two faces of
    one photo, of which one then needs a review. Confirmed students stay apart, so that there may be as many as of them.
    Where it has merged people, a student with a name who would lose all faces to that keeps them, in another's cluster.

    >>> service = FaceCropClusteringService("dlib", max_clusters=30)
    >>> service.cluster_session_crops(session_id=1).cluster_sizes
    {'0': 5, '1': 3}
    """

    embedding_model: str = "facenet"
    max_clusters: int = 50
    similarity_threshold: float = 0.5
    similarity_scale: SimilarityScale = field(default="calibrated", kw_only=True)
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def __post_init__(self) -> None:
        self._check()

    def cluster_session_crops(
        self, session_id: int, create_students: bool = True, assign_crops: bool = True, run_id: str | None = None
    ) -> SessionClusteringAnswer:
        """Cluster a session's crops; those without a student get their cluster's, others keep theirs.

        A cluster without a student becomes `Class_<class>_Session_<session>_Cluster_<n>`. create_students False: only
        the clusters are stored. assign_crops False: the students are made, and a later call assigns to them.

        >>> FaceCropClusteringService("dlib").cluster_session_crops(session_id=1).students_created
        2
        """
        self._check(create_students=create_students, assign_crops=assign_crops)
        with self.context.database.connection() as connection:
            session = catalog.session_by_id(connection, session_id)
            class_name = catalog.class_by_id(connection, session.class_id)
        found = self._cluster(
            Scope(session.class_id, session.id),
            lambda connection: catalog.create_provisional_student(connection, session.class_id, class_name, session),
            include_identified=True,
            move=False,
            create_students=create_students,
            assign_crops=create_students and assign_crops,
            run_id=run_id,
        )
        return SessionClusteringAnswer(session_id=session_id, session_name=session.name, **found)

    def cluster_class_crops(
        self,
        class_id: int,
        create_students: bool = True,
        assign_crops: bool = True,
        include_identified: bool = False,
        run_id: str | None = None,
    ) -> ClassClusteringAnswer:
        """Cluster the crops of all sessions of a class.

        include_identified False: only crops without a student, whose clusters become `Class_<class>_Cluster_<n>`. True:
        all crops anew; what a person has confirmed stays and names its cluster, crops that a student had when somebody was
        merged into them stay theirs, every other crop follows its cluster, and provisional students whom that leaves
        without a crop are deleted.

        >>> FaceCropClusteringService("dlib").cluster_class_crops(class_id=1, include_identified=True).clusters_found
        2
        """
        self._check(create_students=create_students, assign_crops=assign_crops, include_identified=include_identified)
        with self.context.database.connection() as connection:
            class_name = catalog.class_by_id(connection, class_id)
        found = self._cluster(
            Scope(class_id),
            lambda connection: catalog.create_provisional_student(connection, class_id, class_name),
            include_identified=include_identified,
            move=include_identified,
            create_students=create_students,
            assign_crops=create_students and assign_crops,
            run_id=run_id,
        )
        return ClassClusteringAnswer(class_id=class_id, class_name=class_name, **found)

    def _check(self, **options: bool) -> None:
        checked(
            ClassClusteringParameters,
            embedding_model=self.embedding_model,
            max_clusters=self.max_clusters,
            similarity_threshold=self.similarity_threshold,
            similarity_scale=self.similarity_scale,
            **options,
        )

    def _cluster(
        self,
        scope: Scope,
        new_student: Callable[[Connection], int],
        *,
        include_identified: bool,
        move: bool,
        create_students: bool,
        assign_crops: bool,
        run_id: str | None,
    ) -> dict[str, Any]:
        """Embed and cluster, which takes long, then decide and write in one transaction under the class's lock.

        move: a crop leaves the student it was given automatically for its cluster's. Returns the answer's fields.
        """
        self.context.models.require(self.embedding_model)
        embedding = EmbeddingService(self.embedding_model, context=self.context)

        def read(connection: Connection, keep: bool) -> tuple[list[ClusterCrop], dict[int, ClusterCrop], set[int]]:
            """All crops, those that are to be clustered, and the sessions whose identities another lineage has given.

            Waits for the class's lock. keep False: what the other lineage has given counts here and is not stored.
            """
            catalog.lock_class(connection, scope.class_id, self.context.lock_patience_s)
            with connection.transaction(force_rollback=not keep):
                carried = identities.carry_over(connection, scope.class_id, spec.name)
                everyone = clusters.read_cluster_crops(connection, scope, spec.name, all_merged=not move)
            taking_part = (c for c in everyone if c.clusterable and (include_identified or c.student_id is None))
            return everyone, {crop.id: crop for crop in taking_part}, carried

        with self.context.database.connection() as connection:
            spec = class_spec(connection, self.embedding_model, scope.class_id, version=embedding.version)
            _, wanted, _ = read(connection, keep=False)
        if failed := embedding.embed_missing(list(wanted)):
            _logger.warning(
                "%d of %d crops have no vector and stay out of the clusters: ids %s.",
                *(len(failed), len(wanted), sorted(failed)),
            )
        with self.context.database.connection() as connection:
            ids, vectors = crops.read_embeddings(connection, spec.name, embedding.version, wanted, spec.dimension)
        faces = _faces(ids, wanted)
        # Without the lock, for thousands of crops take seconds in which nobody could correct a face.
        labels, reached = self._labels(faces, vectors, spec)

        with self.context.database.connection() as connection:
            everyone, wanted, carried = read(connection, keep=assign_crops)
            embedded = crops.crops_with_embedding(connection, spec.name, embedding.version, list(wanted))
            if _faces(sorted(embedded), wanted) != faces:
                ids, vectors = crops.read_embeddings(connection, spec.name, embedding.version, wanted, spec.dimension)
                labels, reached = self._labels(_faces(ids, wanted), vectors, spec)
            evidence = _similarities_to_others(vectors, labels)
            groups: list[list[ClusterCrop]] = [[] for _ in range(max(labels, default=-1) + 1)]
            for i in np.argsort(-evidence, kind="stable").tolist():
                groups[labels[i]].append(wanted[ids[i]])

            # What a person said of somebody, a name or that they are a visitor, is worth more than the number of crops.
            nameless = catalog.nameless_student_ids(connection, scope.class_id)
            names = catalog.student_names(connection, scope.class_id)
            named = names.keys() - nameless if move else set()
            owners_of = partial(cluster_owners, named=named)
            owners = owners_of(groups, remembered=clusters.read_remembered(connection, scope, spec.name))
            staying = named & people_left_without(everyone, groups, owners, move) if reached and assign_crops else set()
            unknown = unknown_people(groups, owners, move, staying) if create_students else []
            for label in unknown:
                owners[label] = new_student(connection)
            decided = decide_crops(everyone, groups, owners, move, staying) if assign_crops else {}

            # Without the identified crops, those in doubt are all that the same call clusters again: nobody new then.
            left = [
                [crop for crop in group if include_identified or crop.student_id is None] or group
                for group in as_decided(groups, decided)
            ]
            to_remember = students_to_remember(owners, owners_of(left))
            labels_by_crop = dict(zip(ids, labels, strict=True))
            clusters.write_clusters(connection, scope, spec.name, labels_by_crop, to_remember)
            if assign_crops:
                rows = _assignments(groups, decided, dict(zip(ids, evidence.tolist(), strict=True)), spec)
                identities.write_assignments(connection, spec.name, rows, run_id)
                if move:
                    catalog.delete_empty_provisional_students(connection, scope.class_id, spec.name)
                check_confirmations(connection, scope.class_id, spec.name)
                changed = {wanted[row.crop_id].session_id for row in rows} | carried
                refresh_attendance(connection, scope.class_id, changed, spec.name)
        errors = len(wanted) - len(ids)
        return {
            "status": batch_status(errors, len(wanted)),
            "clusters_found": len(groups),
            "students_created": len(unknown),
            "crops_assigned": sum(state == "assigned" for state, _ in decided.values()),
            "cluster_sizes": {str(label): len(group) for label, group in enumerate(groups)},
            "max_clusters_reached": reached,
            "students_emptied": sorted(names[student] for student in students_emptied(everyone, decided) - nameless),
            "cosine_threshold": cosine_in_use(self._distance(spec)),
            "errors": errors,
        }

    def _labels(self, faces: Sequence[_Face], vectors: NDArray[np.float32], spec: ModelSpec) -> tuple[list[int], bool]:
        """The cluster of each face, and whether max_clusters has merged people or could not be met."""
        clustering = agglomerative_clusters(
            vectors,
            self._distance(spec),
            cannot_link=np.array([face.image_id for face in faces], np.int64),
            must_link=np.array([face.student_id for face in faces], np.int64),
            max_clusters=self.max_clusters,
            rejected=[(i, student_id) for i, face in enumerate(faces) for student_id in face.rejected],
        )
        return clustering.labels.tolist(), clustering.max_clusters_reached

    def _distance(self, spec: ModelSpec) -> float:
        """The mean cosine distance up to which clusters are one person."""
        return distance_for(
            self.similarity_threshold, self.similarity_scale, spec.verification_threshold, spec.similarity_slope
        )


def _faces(ids: Iterable[int], wanted: Mapping[int, ClusterCrop]) -> list[_Face]:
    """What the crops' clusters depend on besides their vectors."""
    return [
        _Face(i, crop.image_id, crop.confirmed_student_id or FREE, tuple(crop.rejected))
        for i in ids
        for crop in [wanted[i]]
    ]


def cluster_owners(
    groups: Sequence[Sequence[ClusterCrop]],
    *,
    named: Collection[int] = (),
    remembered: Mapping[int, int] | None = None,
) -> list[int | None]:
    """Whose each cluster is; no student owns two, but for those whom others were merged into, for these look so different.

    Where there are crops that such a student keeps, they own clusters that hold one of these, and no others: what a run
    has given them since the merge follows its cluster.

    First the student of its confirmed crops, of whom a cluster holds one at most. Then, where two clusters claim a
    student the one with more of their crops, then the first: the `named` student (or visitor) with more than half of the
    crops that named students have in it; one who keeps crops of it and has as many as anybody; the student with more than
    half of the crops that have a student; the only one more than half of whose crops it has; the one whom its crops' former
    clusters `remembered` (crop id -> student id). Crops in doubt count only for the student who keeps them: where a photo
    shows both of two who are one, a face of it is in doubt.
    """
    owners = [
        next((c.confirmed_student_id for c in group if c.confirmed_student_id is not None), None) for group in groups
    ]
    known = [[student for crop in group if (student := crop.student_id or crop.kept_student_id)] for group in groups]
    kept = [{student for crop in group if (student := crop.kept_student_id)} for group in groups]
    merged = set().union(*kept)
    crops_of = Counter(student for of_group in known for student in of_group)
    mostly_here = [
        {student: count for student, count in Counter(of_group).items() if 2 * count > crops_of[student]}
        for of_group in known
    ]
    memories = [
        [student for crop in group if (student := (remembered or {}).get(crop.id)) and crop.may_become(student)]
        for group in groups
    ]
    for claims in (
        _claims([[student for student in of_group if student in named] for of_group in known], majority=True),
        [claim for claim in _claims(known, most=True) if claim[2] in kept[claim[1]]],
        _claims(known, majority=True),
        # Else somebody whose other faces are now known to be another's would be nobody, and the name they may have lost.
        [
            (-count, label, one)
            for label, here in enumerate(mostly_here)
            if len(here) == 1
            for one, count in here.items()
        ],
        _claims(memories),
    ):
        for _, label, student in claims:
            free = student in kept[label] if student in merged else student not in owners
            if owners[label] is None and free:
                owners[label] = student
    return owners


def _claims(
    known: Sequence[Sequence[int]], *, majority: bool = False, most: bool = False
) -> list[tuple[int, int, int]]:
    """(-crops, label, student) of all with a crop in a cluster, or more than half, or most; the strongest claim first."""
    return sorted(
        (-count, label, student)
        for label, of_group in enumerate(known)
        for counts in [Counter(of_group)]
        for student, count in counts.items()
        if not (majority and 2 * count <= len(of_group)) and not (most and count < max(counts.values()))
    )


def unknown_people(
    groups: Sequence[Sequence[ClusterCrop]], owners: Sequence[int | None], move: bool, staying: Collection[int] = ()
) -> list[int]:
    """The clusters without a student that have a crop to give to one; move, staying: as in `decide_crops`."""
    return [
        label
        for label, (group, owner) in enumerate(zip(groups, owners, strict=True))
        if owner is None and any(_waits(crop, move, staying) and crop.kept_student_id is None for crop in group)
    ]


def decide_crops(
    everyone: Sequence[ClusterCrop],
    groups: Sequence[Sequence[ClusterCrop]],
    owners: Sequence[int | None],
    move: bool,
    staying: Collection[int] = (),
) -> dict[int, tuple[State, int]]:
    """What becomes of the crops that do not stay as they are: crop id -> state and student.

    everyone: all crops of the photos, so that nobody is put into a photo that shows them already on another crop; such
    a crop needs a review. groups: a cluster's best crops first, for of two that a photo has in it the second needs a
    review. move: crops that were given a student automatically follow their cluster too, but for those that a student
    keeps whom others were merged into: else clustering would undo what a person has said. staying: students whose crops
    do not follow.
    """
    changing = [
        (crop, owner)
        for group, owner in zip(groups, owners, strict=True)
        for crop in group
        if owner is not None and crop.student_id != owner and _waits(crop, move, staying) and crop.may_become(owner)
        if crop.kept_student_id in (None, owner)
    ]
    leaving = {crop.id for crop, _ in changing}
    shown = {(crop.image_id, crop.student_id) for crop in everyone if crop.id not in leaving}
    decided: dict[int, tuple[State, int]] = {}
    for crop, owner in changing:
        decided[crop.id] = ("needs_review" if (crop.image_id, owner) in shown else "assigned", owner)
        shown.add((crop.image_id, owner))
    return decided


def people_left_without(
    everyone: Sequence[ClusterCrop],
    groups: Sequence[Sequence[ClusterCrop]],
    owners: Sequence[int | None],
    move: bool,
) -> set[int]:
    """The students whom no crop would show any more if all followed their clusters, of which those of nobody were new people's."""
    anybody = [-1 - label if owner is None else owner for label, owner in enumerate(owners)]
    return students_emptied(everyone, decide_crops(everyone, groups, anybody, move))


def students_emptied(everyone: Iterable[ClusterCrop], decided: Mapping[int, tuple[State, int]]) -> set[int]:
    """The students whom `everyone` shows and, after `decide_crops`, no crop of it shows any more."""
    before = {crop.id: crop.student_id for crop in everyone}
    after = before | {
        crop_id: student if state == "assigned" else None for crop_id, (state, student) in decided.items()
    }
    return {student for student in before.values() if student is not None} - set(after.values())


def as_decided(
    groups: Sequence[Sequence[ClusterCrop]], decided: Mapping[int, tuple[State, int]]
) -> list[list[ClusterCrop]]:
    """The clusters' crops as they are after `decide_crops`."""

    def after(crop: ClusterCrop) -> ClusterCrop:
        if crop.id not in decided:
            return crop
        state, student_id = decided[crop.id]
        if state == "assigned":
            return replace(crop, assigned_student_id=student_id, doubted_student_id=None)
        return replace(crop, assigned_student_id=None, doubted_student_id=student_id)

    return [[after(crop) for crop in group] for group in groups]


def students_to_remember(owners: Sequence[int | None], evident: Sequence[int | None]) -> dict[int, int]:
    """Label -> student where `evident`, the owners by the crops alone, would not tell: above all, students without crops.

    Only there: what a cluster once was must not speak against what its crops have become since.
    """
    return {
        label: owner
        for label, (owner, seen) in enumerate(zip(owners, evident, strict=True))
        if owner is not None and owner != seen
    }


def _waits(crop: ClusterCrop, move: bool, staying: Collection[int]) -> bool:
    """Whether the crop takes a student: no person has spoken about it, and it has none or may change."""
    free = crop.student_id is None or (move and crop.student_id not in staying)
    return crop.confirmed_student_id is None and not crop.unassigned and free


def _similarities_to_others(vectors: NDArray[np.float32], labels: Sequence[int]) -> NDArray[np.float64]:
    """(n,) mean cosine similarity of each crop to the others of its cluster; 0 where it is alone."""
    similarities = np.zeros(len(labels))
    by_label = np.argsort(labels, kind="stable")
    for rows in np.split(by_label, np.flatnonzero(np.diff(np.asarray(labels)[by_label])) + 1):
        # A crop's products with all vectors of the cluster, at once and without a matrix of them, less its own.
        of_group = vectors[rows].astype(np.float64)
        own = np.einsum("ij,ij->i", of_group, of_group)
        similarities[rows] = (of_group @ of_group.sum(axis=0) - own) / max(1, len(rows) - 1)
    return np.clip(similarities, -1, 1)


def _assignments(
    groups: Sequence[Sequence[ClusterCrop]],
    decided: Mapping[int, tuple[State, int]],
    evidence: Mapping[int, float],
    spec: ModelSpec,
) -> list[Assignment]:
    """The rows of the confirmed and the decided crops, the latter with `evidence`: crop id -> similarity to its cluster."""
    rows: list[Assignment] = []
    for group in groups:
        for crop in group:
            if crop.confirmed_student_id is not None:
                rows.append(Assignment(crop.id, "assigned", crop.confirmed_student_id, "person", 1.0, 1.0))
            elif crop.id in decided:
                cosine = evidence[crop.id] if len(group) > 1 else None
                calibrated = None if cosine is None else spec.calibrated(cosine)
                rows.append(Assignment(crop.id, *decided[crop.id], "cluster", cosine, calibrated))
    return rows
