"""Cluster a class anew in two steps: a plan that shows what would change, and applying exactly that plan."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg import Connection
from pydantic import BaseModel, Field, PrivateAttr

from pipelines.database import catalog, clusters, reclustering
from pipelines.database.clusters import Scope
from pipelines.database.reclustering import ClassState
from pipelines.errors import ConflictError
from pipelines.resources.database import Database
from pipelines.services.clustering import FaceCropClusteringService
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.decisions import clean_reason
from pipelines.services.embedding import EmbeddingService
from pipelines.services.parameters import Id, Parameters, SimilarityScale


class ReclusteringConfig(Parameters):
    """How a class is to be clustered anew; what they mean: `ClusteringParameters`."""

    max_clusters: int = Field(default=200, ge=1, le=200, description="Bound on the number of clusters.")
    similarity_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Mean similarity from which on faces are one person."
    )
    similarity_scale: SimilarityScale = Field(
        default="calibrated",
        description="calibrated: 0.5 is the model's verification threshold; cosine: the plain one.",
    )


class ApplyReclustering(Parameters):
    """Which plan is to be applied, and why."""

    plan_id: Id = Field(description="Id of the plan, as plan_reclustering gives it.")
    reason: str | None = Field(default=None, description="Why; kept for good.")


class MovedCrop(BaseModel):
    """A crop whose student or state would be another; no name means nobody."""

    crop_id: int
    session: str
    photo: str
    old_student: str | None
    old_state: str | None
    new_student: str | None
    new_state: str | None


class CreatedStudent(BaseModel):
    """A provisional student who would be made."""

    student: str
    crops: int


class MergedStudent(BaseModel):
    """A student all of whose faces would be another's."""

    student: str
    into: str
    crops: int


class ChangedCell(BaseModel):
    """An attendance cell that would be another; no status means no row."""

    session: str
    student: str
    old_status: str | None
    new_status: str | None


class Changes(BaseModel):
    """All that applying a plan does to who is who, and who was there."""

    clusters_found: int
    max_clusters_reached: bool
    moved: list[MovedCrop]
    created: list[CreatedStudent]
    merged: list[MergedStudent]
    emptied: list[str] = Field(description="Students whom no face would show any more; provisional ones are deleted.")
    attendance: list[ChangedCell]


class ReclusteringPlan(BaseModel):
    """A plan, and who has applied it."""

    plan_id: int
    class_name: str
    embedding_model: str
    parameters: ReclusteringConfig
    crops: int = Field(description="Face crops of the class's present photos.")
    changes: Changes
    planned_at: datetime
    applied_by: str | None = None
    applied_at: datetime | None = None


@dataclass(frozen=True)
class ReclusteringService:
    """Plans the clustering of a class anew, all its crops included, and applies a plan.

    Raises UnknownIdError, WeightsError and ClassBusyError as `FaceCropClusteringService` does.
    """

    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def plan(
        self, class_name: str, model: str, config: ReclusteringConfig, run_id: str | None = None
    ) -> ReclusteringPlan:
        """What clustering the class anew would change; nothing but the plan is stored.

        It is done, looked at, and rolled back. The class's lock is held for the time that clustering takes.
        """
        self.context.models.require(model)
        embedding = EmbeddingService(model, context=self.context)
        with self.context.database.connection() as connection:
            class_id = catalog.find_class(connection, class_name)
            everyone = clusters.read_cluster_crops(connection, Scope(class_id), model)
        # Vectors that are missing take long to compute: before anybody has to wait for it.
        embedding.embed_missing([crop.id for crop in everyone if crop.clusterable])
        with self.context.database.connection() as connection:
            catalog.lock_class(connection, class_id, self.context.lock_patience_s)
            before = reclustering.read_class_state(connection, class_id, model)
            state = reclustering.state_hash(connection, before, class_id, model, embedding.version)
            with connection.transaction(force_rollback=True):
                changes = self._recluster(connection, before, class_id, model, config)
            plan_id = reclustering.insert_plan(
                connection,
                class_id=class_id,
                model=model,
                version=embedding.version,
                parameters=config.model_dump(),
                state=state,
                changes=changes.model_dump(),
                run_id=run_id,
            )
            return _answer(connection, plan_id, len(before.crops))

    def apply(
        self, plan_id: int, applied_by: str, reason: str | None = None, run_id: str | None = None
    ) -> ReclusteringPlan:
        """Do exactly what the plan says, in one transaction.

        Raises ConflictError where the class is not as it was when the plan was made, or the plan was applied already.
        """
        reason = clean_reason(reason)
        with self.context.database.connection() as connection:
            class_id = reclustering.find_plan(connection, plan_id).class_id
            catalog.lock_class(connection, class_id, self.context.lock_patience_s)
            plan = reclustering.find_plan(connection, plan_id)
            if plan.applied_at is not None:
                raise ConflictError(
                    f"Reclustering plan {plan_id} was applied by {plan.applied_by} at {plan.applied_at:%Y-%m-%d %H:%M}."
                )
            version = self.context.models.version(plan.model)
            before = reclustering.read_class_state(connection, class_id, plan.model)
            state = reclustering.state_hash(connection, before, class_id, plan.model, version)
            if (plan.version, plan.state) != (version, state):
                raise ConflictError(_moved_on(plan_id))
            changes = self._recluster(connection, before, class_id, plan.model, ReclusteringConfig(**plan.parameters))
            if changes != Changes(**plan.changes):
                raise ConflictError(_moved_on(plan_id))
            reclustering.mark_applied(connection, plan_id, applied_by, reason, run_id)
            return _answer(connection, plan_id, len(before.crops))

    def _recluster(
        self, connection: Connection, before: ClassState, class_id: int, model: str, config: ReclusteringConfig
    ) -> Changes:
        """Cluster the class anew in this transaction and say what that has changed."""
        answer = FaceCropClusteringService(
            model,
            config.max_clusters,
            config.similarity_threshold,
            similarity_scale=config.similarity_scale,
            context=replace(self.context, database=_OneTransaction.of(connection)),
        ).cluster_class_crops(class_id, include_identified=True)
        after = reclustering.read_class_state(connection, class_id, model)
        return compare_states(before, after, answer.clusters_found, reached=answer.max_clusters_reached)


class _OneTransaction(Database):
    """A database each of whose connections is a part of one transaction."""

    _connection: psycopg.Connection = PrivateAttr()

    @classmethod
    def of(cls, connection: psycopg.Connection) -> "_OneTransaction":
        database = cls()
        database._connection = connection
        return database

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        with self._connection.transaction():
            yield self._connection


def compare_states(before: ClassState, after: ClassState, clusters_found: int, *, reached: bool) -> Changes:
    """What is different, by names: ids of students who are made differ from one attempt to the next.

    reached: whether max_clusters has merged people.
    """

    def owned(state: ClassState) -> dict[int, Counter[int]]:
        """Crops of each student."""
        faces: dict[int, Counter[int]] = defaultdict(Counter)
        for crop_id, crop in state.crops.items():
            if crop.student_id is not None and crop.state == "assigned":
                faces[crop.student_id][crop_id] += 1
        return faces

    # A student who is gone has a name only before, one who is made only after.
    names: dict[int | None, str | None] = dict((before.students | after.students).items())
    names[None] = None
    moved = [
        MovedCrop(
            crop_id=crop_id,
            session=new.session,
            photo=new.photo,
            old_student=names[old.student_id],
            old_state=old.state,
            new_student=names[new.student_id],
            new_state=new.state,
        )
        for crop_id, new in after.crops.items()
        for old in [before.crops[crop_id]]
        if (old.student_id, old.state) != (new.student_id, new.state)
    ]
    had, has = owned(before), owned(after)
    created = [
        CreatedStudent(student=name, crops=has[student_id].total())
        for student_id, name in after.students.items()
        if student_id not in before.students
    ]
    merged, emptied = [], []
    for student_id, crops in had.items():
        if has[student_id]:
            continue
        owners = {after.crops[crop_id].student_id for crop_id in crops}
        (owner,) = owners if len(owners) == 1 else (None,)
        if owner is None:
            emptied.append(before.students[student_id])
        else:
            merged.append(
                MergedStudent(student=before.students[student_id], into=str(names[owner]), crops=crops.total())
            )
    cells = [
        ChangedCell(
            session=session,
            student=str(names[student_id]),
            old_status=before.attendance.get((session, student_id)),
            new_status=after.attendance.get((session, student_id)),
        )
        for session, student_id in sorted({*before.attendance, *after.attendance})
        if before.attendance.get((session, student_id)) != after.attendance.get((session, student_id))
    ]
    return Changes(
        clusters_found=clusters_found,
        max_clusters_reached=reached,
        moved=moved,
        created=sorted(created, key=lambda c: c.student),
        merged=sorted(merged, key=lambda m: m.student),
        emptied=sorted(emptied),
        attendance=sorted(cells, key=lambda c: (c.session, c.student)),
    )


def _moved_on(plan_id: int) -> str:
    return (
        f"Reclustering plan {plan_id} is out of date: crops, decisions or identities of the class have changed since it was "
        "made. Make a new plan and look at it."
    )


def _answer(connection: Connection, plan_id: int, crops: int) -> ReclusteringPlan:
    plan = reclustering.find_plan(connection, plan_id)
    return ReclusteringPlan(
        plan_id=plan.id,
        class_name=catalog.class_by_id(connection, plan.class_id),
        embedding_model=plan.model,
        parameters=ReclusteringConfig(**plan.parameters),
        crops=crops,
        changes=Changes(**plan.changes),
        planned_at=plan.planned_at,
        applied_by=plan.applied_by,
        applied_at=plan.applied_at,
    )


def rows(changes: Changes) -> Iterator[dict[str, Any]]:
    """The changes as rows of one table: what, session, photo or student, from, to."""
    for created in changes.created:
        yield {"change": "created", "session": "", "about": created.student, "old": "", "new": f"{created.crops} faces"}
    for merged in changes.merged:
        yield {
            "change": "merged",
            "session": "",
            "about": merged.student,
            "old": f"{merged.crops} faces",
            "new": merged.into,
        }
    for name in changes.emptied:
        yield {"change": "emptied", "session": "", "about": name, "old": "", "new": "no face"}
    for cell in changes.attendance:
        yield {
            "change": "attendance",
            "session": cell.session,
            "about": cell.student,
            "old": cell.old_status or "",
            "new": cell.new_status or "",
        }
    for crop in changes.moved:
        yield {
            "change": "face moved",
            "session": crop.session,
            "about": f"crop {crop.crop_id} in {crop.photo}",
            "old": _shown(crop.old_student, crop.old_state),
            "new": _shown(crop.new_student, crop.new_state),
        }


def _shown(student: str | None, state: str | None) -> str:
    return "nobody" if student is None else f"{student}?" if state == "needs_review" else student
