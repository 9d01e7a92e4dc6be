"""`attendansee calibrate`: thresholds from a class's confirmed identities, and whether they hold."""

import json

import click
from pydantic import BaseModel

from pipelines.commands.common import MODEL, current_user, model_of, plain_errors
from pipelines.errors import ConflictError


@click.command()
@click.argument("class_name", metavar="CLASS")
@click.option("--model", type=MODEL, default=None, help="Embedding model; default: the class's active one.")
@click.option("--fpir", default=0.01, show_default=True, help="False-positive identification rate to keep.")
@click.option("--adopt", is_flag=True, help="Let the thresholds hold from the next run on; needs --reason.")
@click.option("--reset", is_flag=True, help="Let the model's own thresholds hold again, and calibrate nothing.")
@click.option("--reason", help="Why, to be shown later.")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@plain_errors
def calibrate(
    class_name: str, model: str | None, fpir: float, adopt: bool, reset: bool, reason: str | None, style: str
) -> None:
    """Find thresholds for CLASS in its confirmed identities.

    Nothing but --adopt and --reset changes what holds, and neither changes what is decided before the next run. What was
    adopted last, by whom, when and why is shown as last_adopted_....
    """
    from pipelines.services.calibration import CalibrationConfig, adopt_calibration, calibrate_class, reset_calibration
    from pipelines.services.context import default_context
    from pipelines.services.parameters import checked

    if adopt and reset:
        raise click.UsageError("--adopt and --reset exclude each other.")
    if adopt and not (reason or "").strip():
        raise click.UsageError("--adopt needs --reason: say why.")
    config = checked(CalibrationConfig, fpir=fpir)
    context = default_context()
    with context.database.connection() as connection:
        model = model_of(connection, class_name, model)
    if reset:
        _print(reset_calibration(context, class_name, model, reason, adopted_by=current_user()), style)
        return
    report, _ = calibrate_class(context.database, class_name, model, context.models.version(model), config.fpir)
    if not adopt:
        _print(report, style)
        return
    if report.calibration_id is None:
        raise ConflictError(f"There is nothing to adopt for {class_name}: {report.result}.")
    _print(report, style, adopt_calibration(context, report.calibration_id, reason or "", adopted_by=current_user()))


def _print(answer: BaseModel, style: str, adoption: BaseModel | None = None) -> None:
    """The answer, and what was adopted of it, as one table or object."""
    figures, adopted = (part.model_dump(mode="json") if part else {} for part in (answer, adoption))
    if style == "json":
        click.echo(json.dumps(figures | ({"adopted": adopted} if adopted else {}), ensure_ascii=False, indent=2))
        return
    for name, value in (figures | adopted).items():
        if value is not None:
            click.echo(f"{name:<30} {f'{value:.4f}' if isinstance(value, float) else value}")
