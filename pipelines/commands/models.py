"""`attendansee models ...`: which embedding models there are, their weights, and models of one's own."""

import math
from pathlib import Path
from typing import Any, get_args

import click

from pipelines.commands.common import MODEL, current_user, plain_errors
from pipelines.errors import ConflictError, ModelError
from pipelines.resources.embedding.preprocessing import Channels, CropPolicy, Layout, Normalization
from pipelines.resources.embedding.registry import BUILT_IN
from pipelines.settings import Settings, get_settings

_BUILT_IN = click.Choice(list(BUILT_IN))
_CROPS: dict[str, CropPolicy] = {
    "five_point": "five_point_arcface",
    "five_point_dlib": "five_point_dlib",
    "deepface": "deepface",
}


class _Distance(click.FloatRange):
    """A range that nan is not in: click compares it, and no comparison with nan is true."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


@click.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List the embedding models, fetch and add their weights, add models of your own."""
    if context.invoked_subcommand is None:
        _list_models()


@plain_errors
def _list_models() -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from pipelines.resources.embedding.registry import home_models
    from pipelines.resources.embedding.weights import weights_status

    table = Table("model", "dimension", "weights", "sha256", Column("file and licence", overflow="fold"))
    settings = get_settings()
    added, broken = home_models(settings.home)
    for spec in (*BUILT_IN.values(), *added.values()):
        status = weights_status(spec, settings)
        other = "CHANGED" if spec.framework == "onnx" else "NOT the published one"
        table.add_row(
            spec.name,
            str(spec.dimension),
            "missing" if status.state == "missing" else "present",
            {"verified": "verified", "mismatch": other, "missing": "-"}[status.state],
            escape(f"{status.path}\n{spec.licence}"),
            end_section=True,
        )
    for name, reason in broken.items():
        table.add_row(escape(name), "-", "BROKEN", "-", escape(reason), end_section=True)
    Console().print(table)


@models.command()
@click.argument("name", type=_BUILT_IN)
@plain_errors
def fetch(name: str) -> None:
    """Let DeepFace download the weights of model NAME, and verify them."""
    from pipelines.resources.embedding.weights import fetch_weights

    _say_ready(name, fetch_weights(name, get_settings()))


@models.command()
@click.argument("name", type=_BUILT_IN)
@click.argument("file", type=click.Path(path_type=Path))
@plain_errors
def add(name: str, file: Path) -> None:
    """Verify FILE as the weights of model NAME and put it in its place (for machines without internet)."""
    from pipelines.resources.embedding.weights import add_weights

    _say_ready(name, add_weights(name, file, get_settings()))


def _say_ready(name: str, weights: Any) -> None:
    """Convert the weights for ONNX Runtime where they need it, so that the first run does not, and say where they are."""
    from pipelines.resources.embedding.engines import convert_to_onnx

    if BUILT_IN[name].onnx_file is not None and get_settings().engine != "tensorflow":
        convert_to_onnx(name, get_settings())
    click.echo(f"{name}: {weights.path}")


@models.command()
@click.argument("name", type=MODEL)
@click.option("--int8", is_flag=True, help="Make the 8-bit network of ATTENDANSEE_ENGINE=onnx-int8 instead.")
@plain_errors
def convert(name: str, int8: bool) -> None:
    """Make the ONNX file of model NAME from its weights, checked against them on 100 made crops.

    The first run does it too. With --int8 its 8-bit network is made: faster, and its vectors are others.
    """
    from pipelines.resources.embedding.engines import convert_to_int8, convert_to_onnx

    click.echo(f"{name}: {(convert_to_int8 if int8 else convert_to_onnx)(name, get_settings())}")


@models.command("add-onnx")
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dimension", type=click.IntRange(2, 2000), required=True, help="Length of its vectors.")
@click.option(
    "--threshold",
    type=_Distance(0, 2, min_open=True, max_open=True),
    required=True,
    help="Cosine distance up to which two crops show one person. `attendansee calibrate` finds a better one later.",
)
@click.option(
    "--normalization",
    type=click.Choice(get_args(Normalization)),
    required=True,
    help="Of pixel values x: unit x/255, symmetric (x-127.5)/127.5, symmetric128 (x-127.5)/128, raw x.",
)
@click.option(
    "--input", "input_size", type=click.IntRange(16, 1024), help="Side of its square crops; default: as the file says."
)
@click.option(
    "--crop",
    type=click.Choice(list(_CROPS)),
    default="five_point",
    show_default=True,
    help="five_point: warped to ArcFace's template; five_point_dlib: to dlib's; deepface: cut as DeepFace does.",
)
@click.option("--channels", type=click.Choice(get_args(Channels)), default="RGB", show_default=True)
@click.option("--layout", type=click.Choice(get_args(Layout)), help="Where the file leaves it open.")
@click.option("--output", help="The output that is the vector, where there are several.")
@click.option("--licence", default="not stated", show_default=True, help="Terms of the weights, to be shown.")
@plain_errors
def add_onnx(name: str, file: Path, crop: str, licence: str, **options: Any) -> None:
    """Add the ONNX face model in FILE as model NAME, with a lineage of its own beside the others.

    FILE has one input, an image, and gives a vector for each face. It is tried out and copied; nothing is downloaded. How
    images were prepared for it is for those to say who trained it: InsightFace's models take RGB and `symmetric`, AdaFace's
    BGR and `symmetric`, both `five_point` crops.

    Mind the licence of the weights. InsightFace's own weights are for non-commercial research only.
    """
    from pipelines.database.embedding_tables import ensure_embedding_table
    from pipelines.resources.database import Database
    from pipelines.resources.embedding.definition import write_definition
    from pipelines.resources.embedding.onnx_file import read_onnx_model

    settings = get_settings()
    _check_free(name, settings)
    definition, network = read_onnx_model(name, file, crop=_CROPS[crop], licence=licence, **options)
    with Database().connection() as connection:
        ensure_embedding_table(connection, name, definition.dimension)
    path = write_definition(settings.home, name, definition, network)
    how = "one by one" if definition.one_by_one else "in batches"
    click.echo(
        f"{name}: {path}\n{definition.dimension}-D from {definition.input_size} px {definition.channels} "
        f"{definition.layout}, {how}. Licence: {definition.licence}."
    )
    if licence == "not stated":
        click.echo("Look up the terms of the weights before use: InsightFace's are for non-commercial research only.")
    click.echo(f"Use it with `--model {name}`; a UI that is running shows it after a restart.")


@models.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@plain_errors
def remove(name: str, yes: bool) -> None:
    """Remove model NAME that was added with add-onnx, its vectors and all that it has said.

    What people have confirmed stays. A model that is active in a class, or that a run works with, is not removed.
    """
    import dagster as dg

    from pipelines.instance import fail_lost_runs, prepare_dagster_home
    from pipelines.jobs.model_switch import check_deletion
    from pipelines.resources.embedding.definition import models_folder, read_definitions, remove_definition
    from pipelines.services.context import default_context
    from pipelines.services.model_switch import ModelSwitchService

    settings = get_settings()
    if name in BUILT_IN:
        raise ModelError(f"{name} is a built-in model and stays.")
    if not any(name in added for added in read_definitions(settings.home)):
        raise ModelError(
            f"No model {name!r} was added in {models_folder(settings.home)}: `attendansee models` lists them."
        )
    if settings.model == name:
        raise ConflictError(f"{name} is the model of new classes: set ATTENDANSEE_MODEL to another one first.")
    if not yes:
        click.confirm(
            f"Remove {name} with all its vectors? There is no way back but adding and backfilling.", abort=True
        )
    prepare_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        fail_lost_runs(instance)
        check_deletion(instance, name)
    ModelSwitchService(current_user(), context=default_context()).delete_model(name)
    remove_definition(settings.home, name)
    click.echo(f"{name} is removed; a UI that is running shows it until its restart.")


def _check_free(name: str, settings: Settings) -> None:
    """Raise ModelError for a name that cannot be given to a new model."""
    from pipelines.resources.embedding.definition import check_name, models_folder

    check_name(name)
    if name in BUILT_IN:
        raise ModelError(f"{name} is a built-in model: take another name.")
    if (models_folder(settings.home) / f"{name}.yaml").exists():
        raise ModelError(
            f"There is a model {name!r} already: take another name, or `attendansee models remove {name}` first."
        )
