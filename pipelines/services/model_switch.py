"""Make another model's lineage the one that counts for a class, go back, and delete what is no longer needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from psycopg import Connection
from pydantic import BaseModel, Field

from pipelines.database import catalog, lineages
from pipelines.database.embedding_tables import drop_embedding_table, embedding_dimensions
from pipelines.errors import ConflictError, ParameterError
from pipelines.partitions import SessionKey
from pipelines.resources.embedding.registry import get_spec
from pipelines.services.context import ServiceContext, default_context
from pipelines.services.coverage import Coverage, read_coverage
from pipelines.services.decisions import clean_reason
from pipelines.services.model_comparison import Answer, confirmed_answers, contradicted, other_active_model
from pipelines.services.parameters import Id, ModelName, Parameters
from pipelines.services.thresholds import class_spec

# Sessions and faces that a refusal describes; it gives the number of the others.
SHOWN = 20


class SwitchModel(Parameters):
    """Which class switches to which model, and why."""

    class_name: str = Field(description="Name of the class.")
    model_name: ModelName = Field(description="The model whose attendance is to count.")
    reason: str = Field(description="Why, for those who look at the switch later.")
    accept: list[Id] = Field(
        default=[],
        description="Ids of confirmed face crops that the model may take for somebody else; the refusal names them. The "
        "confirmations stay.",
    )
    allow_missing_sessions: bool = Field(
        default=False,
        description="Switch although the model's lineage lacks sessions; they are named, and missing in the register.",
    )


class DeleteLineage(Parameters):
    """Which model's vectors and answers about a class are deleted."""

    class_name: str = Field(description="Name of the class.")
    model_name: ModelName = Field(description="A model other than the class's active one.")


class SwitchAnswer(BaseModel):
    """A switch that was made."""

    status: Literal["success"] = "success"
    switch_id: int
    class_id: int
    class_name: str
    old_model: str
    new_model: str
    sessions: int
    crops_embedded: int
    accepted_crops: list[int] = Field(description="Confirmed crops that the model takes for somebody else.")
    missing_sessions: dict[str, str] = Field(description="What each session lacks that was missing all the same.")


class DeleteAnswer(BaseModel):
    """What was deleted; who people said that somebody is stays, for that is said of crops."""

    status: Literal["success"] = "success"
    class_id: int
    class_name: str
    model: str
    vectors: int
    clusters: int
    assignments: int
    attendance: int
    students: int = Field(description="Students without a name whom only this lineage had.")
    note: str


@dataclass(frozen=True)
class ModelSwitchService:
    """Switches the active model of a class, and deletes lineages that count no longer.

    Each method is one transaction under the class's lock. Raises AttendanseeError for a class that is not there,
    ModelError for an unknown model, ConflictError for what it refuses, ClassBusyError where somebody else holds the class
    longer than the context's patience.

    switched_by: who says so, as it is to be shown later. run_id: the Dagster run that does it.

    >>> ModelSwitchService("ann").switch("Math101", "arcface", "better with masks").old_model
    'facenet'
    """

    switched_by: str
    run_id: str | None = None
    context: ServiceContext = field(default_factory=default_context, kw_only=True)

    def switch(
        self,
        class_name: str,
        model_name: str,
        reason: str,
        *,
        accept: Sequence[int] = (),
        allow_missing_sessions: bool = False,
    ) -> SwitchAnswer:
        """Make the model the class's active one: its attendance counts, and new photos are processed with it.

        Refused while its lineage does not cover every session and crop, unless allow_missing_sessions; and while it takes
        a confirmed crop for somebody else, unless the crop is in `accept`, which names no others. Nothing of either
        lineage changes, so that switching back gives the register that there was. A model that counted before is only
        asked about what was confirmed since. Raises WeightsError where the model could not process new photos.
        """
        cleaned = clean_reason(reason)
        if cleaned is None:
            raise ParameterError("The reason is empty: say why the class switches.")
        self.context.models.require(model_name)
        version = self.context.models.version(model_name)
        with self.context.database.connection() as connection:
            class_id = self._locked(connection, class_name)
            active = other_active_model(connection, class_name, model_name)
            coverage = read_coverage(connection, class_id, model_name, version)
            if coverage.lacking and not allow_missing_sessions:
                raise ConflictError(_lacking_message(class_name, model_name, coverage))
            against = _contradictions(connection, class_id, model_name, version)
            if refused := against.keys() - set(accept):
                raise ConflictError(
                    _contradiction_message(connection, class_id, class_name, model_name, against, refused)
                )
            # What an earlier switch to the model accepted is not asked again, and may be said again.
            formerly = {
                crop_id
                for switch in lineages.read_switches(connection, class_id)
                if switch.new_model == model_name
                for crop_id in switch.accepted_crops
            }
            if mistaken := sorted(set(accept) - against.keys() - formerly):
                raise ConflictError(
                    f"The switch of {class_name} to {model_name} asks nothing about the face crops "
                    f"{_listed(list(map(str, mistaken)), ', ')}: accept those alone that its refusal names."
                )
            switch_id = lineages.switch_model(
                connection,
                class_id,
                active,
                model_name,
                switched_by=self.switched_by,
                reason=cleaned,
                accepted_crops=against,
                missing_sessions=coverage.lacking,
                run_id=self.run_id,
            )
        return SwitchAnswer(
            switch_id=switch_id,
            class_id=class_id,
            class_name=class_name,
            old_model=active,
            new_model=model_name,
            sessions=coverage.sessions,
            crops_embedded=coverage.embedded,
            accepted_crops=sorted(against),
            missing_sessions=coverage.lacking,
        )

    def delete_lineage(self, class_name: str, model_name: str) -> DeleteAnswer:
        """Delete the model's vectors, clusters, assignments and attendance of the class; not of its active model."""
        get_spec(model_name)
        with self.context.database.connection() as connection:
            class_id = self._locked(connection, class_name)
            if catalog.active_model(connection, class_name) == model_name:
                raise ConflictError(
                    f"{model_name} is the active model of {class_name}: switch to another one before deleting its lineage."
                )
            deleted, students = _delete(connection, class_id, model_name)
        return DeleteAnswer(
            class_id=class_id,
            class_name=class_name,
            model=model_name,
            students=students,
            note=f"{class_name} can go back to {model_name} only after a new backfill. Dagster still shows the partitions "
            f"of {model_name}'s assets as materialised.",
            **deleted._asdict(),
        )

    def delete_model(self, model_name: str) -> None:
        """Delete what the model, which the registry need not know, has said about every class, and its table.

        Refused where the model is active in a class.
        """
        with self.context.database.connection() as connection:
            classes = [self._locked(connection, class_name) for class_name in catalog.class_names(connection)]
            active = sorted(name for name, model in catalog.active_models(connection).items() if model == model_name)
            if active:
                raise ConflictError(
                    f"{model_name} is the active model of {', '.join(active)}: give each class another one "
                    "(`attendansee switch-model`) first."
                )
            if model_name in embedding_dimensions(connection):
                for class_id in classes:
                    _delete(connection, class_id, model_name)
                drop_embedding_table(connection, model_name)

    def _locked(self, connection: Connection, class_name: str) -> int:
        class_id = catalog.find_class(connection, class_name)
        catalog.lock_class(connection, class_id, self.context.lock_patience_s)
        return class_id


def _delete(connection: Connection, class_id: int, model: str) -> tuple[lineages.Deleted, int]:
    """Delete a lineage; returns how much that was, and how many students nobody else knows."""
    deleted = lineages.delete_lineage(connection, class_id, model)
    return deleted, catalog.delete_empty_provisional_students(connection, class_id, model)


def _contradictions(connection: Connection, class_id: int, model: str, version: str) -> dict[int, Answer]:
    """The model's answers that contradict what people have confirmed, since it counted last if it ever did."""
    confirmations = lineages.read_confirmations(connection, class_id)
    retired = lineages.retired_at(connection, class_id, model)
    # A lineage that was deleted and made anew, or embedded anew, has not been asked yet.
    asked = lineages.embedded_until(connection, model, version, confirmations, retired) if retired else set()
    confirmed = {
        crop_id: said.student_id
        for crop_id, said in confirmations.items()
        if retired is None or crop_id not in asked or said.decided_at > retired
    }
    if not confirmed:
        return {}
    spec = class_spec(connection, model, class_id, version=version)
    places = lineages.read_places(connection, class_id)
    answers = confirmed_answers(connection, class_id, spec, version, places)
    return {crop_id: answers[crop_id] for crop_id in sorted(contradicted(answers, confirmed))}


def _lacking_message(class_name: str, model: str, coverage: Coverage) -> str:
    shown = [f"{SessionKey(class_name, name)} ({reason})" for name, reason in coverage.lacking.items()]
    return (
        f"{model} covers {coverage.covered} of {coverage.sessions} sessions of {class_name} and {coverage.embedded} of "
        f"{coverage.crops} faces; lacking: {_listed(shown, ', ')}. Run `attendansee backfill --model {model} --class "
        f"{class_name}`, or switch with --allow-missing-sessions and do without them."
    )


def _contradiction_message(
    connection: Connection,
    class_id: int,
    class_name: str,
    model: str,
    against: Mapping[int, Answer],
    refused: set[int],
) -> str:
    names = catalog.student_names(connection, class_id)
    confirmed = lineages.read_confirmations(connection, class_id)
    shown = [
        f"face crop {crop_id} is {names[confirmed[crop_id].student_id]}, for {model} {names[student_id]}"
        for crop_id in sorted(refused)
        if (student_id := against[crop_id].student_id) is not None
    ]
    accept = " ".join(f"--accept {crop_id}" for crop_id in sorted(against)[:SHOWN])
    return (
        f"{model} contradicts {len(refused)} confirmed faces of {class_name}: {_listed(shown, '; ')}. `attendansee compare "
        f"{class_name} --model {model}` shows all. Correct the confirmations that are wrong, or accept the others "
        f"({accept}): they stay confirmed."
    )


def _listed(items: Sequence[str], separator: str) -> str:
    more = [f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else []
    return separator.join([*items[:SHOWN], *more])
