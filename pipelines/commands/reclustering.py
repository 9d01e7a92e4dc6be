"""Clustering a class anew in two steps: `attendansee plan-reclustering` and `attendansee apply-reclustering`."""

from typing import Any

import click

from pipelines.commands.common import AS_JSON, CLASS, MODEL, current_user, model_of, plain_errors, print_json

# Lines on a terminal; --json gives all.
LINES_SHOWN = 40


@click.command()
@CLASS
@click.option("--model", type=MODEL, default=None, help="Embedding model; default: the class's active one.")
@click.option("--max-clusters", default=200, show_default=True, help="Bound on the number of clusters.")
@click.option("--similarity-threshold", default=0.5, show_default=True, help="Mean similarity of one person's faces.")
@click.option(
    "--similarity-scale", type=click.Choice(["calibrated", "cosine"]), default="calibrated", show_default=True
)
@AS_JSON
@plain_errors
def plan_reclustering(class_name: str, model: str | None, as_json: bool, **parameters: Any) -> None:
    """Show what clustering CLASS anew would change; nothing changes before the plan is applied."""
    from pipelines.services.context import default_context
    from pipelines.services.parameters import checked
    from pipelines.services.reclustering import ReclusteringConfig, ReclusteringService

    config = checked(ReclusteringConfig, **parameters)
    context = default_context()
    with context.database.connection() as connection:
        model = model_of(connection, class_name, model)
    plan = ReclusteringService(context=context).plan(class_name, model, config)
    if as_json:
        print_json(plan)
        return
    _print(plan)
    click.echo(f"\nNothing has been changed. To do exactly this: attendansee apply-reclustering {plan.plan_id}")


@click.command()
@click.argument("plan_id", metavar="PLAN", type=click.IntRange(min=1))
@click.option("--reason", help="Why, to be shown later.")
@AS_JSON
@plain_errors
def apply_reclustering(plan_id: int, reason: str | None, as_json: bool) -> None:
    """Do exactly what PLAN says; refused where the class has changed since the plan was made."""
    from pipelines.services.reclustering import ReclusteringService

    plan = ReclusteringService().apply(plan_id, current_user(), reason)
    if as_json:
        print_json(plan)
        return
    _print(plan)
    click.echo(f"\nDone: plan {plan_id} is applied.")


def _print(plan: Any) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pipelines.services.reclustering import rows

    changes = plan.changes
    click.echo(
        f"{plan.class_name}, {plan.embedding_model}: {changes.clusters_found} people in {plan.crops} faces. "
        f"{len(changes.moved)} faces move, {len(changes.created)} students are made, {len(changes.merged)} merged, "
        f"{len(changes.emptied)} emptied, {len(changes.attendance)} attendance cells change."
    )
    changed = list(rows(changes))
    if not changed:
        return
    table = Table("change", "session", "about", "old", "new")
    for row in changed[:LINES_SHOWN]:
        table.add_row(*(escape(value) for value in row.values()))
    Console().print(table)
    if len(changed) > LINES_SHOWN:
        click.echo(f"{len(changed) - LINES_SHOWN} more: see --json.")


RECLUSTERING_COMMANDS = (plan_reclustering, apply_reclustering)
