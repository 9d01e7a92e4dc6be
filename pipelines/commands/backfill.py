"""`attendansee backfill`: let one model process every session that its lineage lacks."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipelines.commands.common import MODEL, plain_errors
from pipelines.settings import Settings, get_settings

if TYPE_CHECKING:
    import dagster as dg
    from rich.console import Console


@click.command()
@click.option("--model", type=MODEL, required=True, help="Embedding model.")
@click.option("--class", "class_name", help="Only this class.")
@click.option("--all", "everything", is_flag=True, help="Also the sessions that lack nothing; stored vectors stay.")
@plain_errors
def backfill(model: str, class_name: str | None, everything: bool) -> None:
    """Process the sessions that the model has not processed, or that have changed since.

    The daemon of `attendansee up` executes it, and Ctrl-C then leaves it to go on; where none runs, this command starts
    one and stops it at the end.
    """
    import dagster as dg
    from rich.console import Console

    from pipelines.instance import fail_lost_runs, prepare_dagster_home
    from pipelines.resources.embedding_models import EmbeddingModels

    settings = get_settings()
    EmbeddingModels.from_settings(settings).require(model)
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        fail_lost_runs(instance)
        if not run_backfill(settings, instance, Console(stderr=True), model, class_name, everything=everything):
            raise SystemExit(1)


def run_backfill(
    settings: Settings,
    instance: "dg.DagsterInstance",
    console: "Console",
    model: str,
    class_name: str | None,
    *,
    everything: bool,
) -> bool:
    """Finish the model's backfills that are there, then do what is missing; returns False where anything failed."""
    from pipelines.backfill import Plan, launch_backfill, plan_backfill, unfinished_backfills
    from pipelines.resources.database import Database
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.up import daemon_at_work

    version = EmbeddingModels.from_settings(settings).version(model)

    def plan(*, everything: bool = False) -> Plan:
        return plan_backfill(instance, Database(), model, version, class_name, everything=everything)

    unfinished = unfinished_backfills(instance, model)
    todo = plan(everything=everything)
    for key, reason in todo.left_out.items():
        console.print(f"[yellow]left out:[/] {key}: {reason}, see `attendansee run`.", highlight=False)
    if not unfinished and not todo.sessions and not todo.classes:
        console.print(f"All {todo.up_to_date} sessions are up to date.")
        return True
    with daemon_at_work(settings, instance) as daemon_is_ours:
        for backfill_id in unfinished:
            console.print(f"The backfill {backfill_id} has not ended yet: following it.", highlight=False)
            _follow(settings, instance, console, backfill_id, daemon_is_ours)
        if unfinished:
            todo = plan(everything=everything)
        if not todo.sessions and not todo.classes:
            return True
        console.print(f"{len(todo.sessions)} sessions to process, {todo.up_to_date} are up to date.")
        if _follow(settings, instance, console, launch_backfill(instance, todo, model), daemon_is_ours):
            return True
        # Dagster takes every class's register for a descendant of the session that failed.
        if (rest := plan().without_missing_sessions()).classes:
            _follow(settings, instance, console, launch_backfill(instance, rest, model), daemon_is_ours)
        console.print("The same command tries again what failed, and nothing else.")
        return False


def _follow(
    settings: Settings,
    instance: "dg.DagsterInstance",
    console: "Console",
    backfill_id: str,
    daemon_is_ours: Callable[[], bool],
) -> bool:
    """Show the progress until the end, then what failed; returns whether nothing did."""
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pipelines.backfill import follow_backfill, why_backfill_failed

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as display:
            tasks: dict[str, Any] = {}
            for progress in follow_backfill(instance, backfill_id, daemon_is_ours):
                for name, stage in progress.stages.items():
                    if name not in tasks:
                        tasks[name] = display.add_task(name, total=stage.wanted)
                    failed = f" [red]({stage.failed} failed)[/]" if stage.failed else ""
                    display.update(tasks[name], description=name + failed, completed=stage.made)
    except KeyboardInterrupt:
        if daemon_is_ours():
            console.print("Stopping. The same command, or `attendansee up`, goes on where this one ended.")
            raise
        url = f"{settings.dagster_url.rstrip('/')}/runs/b/{backfill_id}"
        console.print(f"The backfill goes on: see {url}, or run the same command to follow it again.", highlight=False)
        raise SystemExit(0) from None
    if progress.succeeded:
        return True
    for reason in why_backfill_failed(instance, backfill_id) or [f"it ended as {progress.status}"]:
        console.print(f"[red]failed:[/] {escape(reason)}", highlight=False)
    return False
