"""`attendansee ...`: what the pipeline does, from a terminal."""

import io
import json
import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pipelines.commands.backfill import backfill
from pipelines.commands.calibration import calibrate
from pipelines.commands.common import MODEL, model_of, plain_errors
from pipelines.commands.decisions import DECISION_COMMANDS
from pipelines.commands.model_switch import MODEL_SWITCH_COMMANDS
from pipelines.commands.models import models
from pipelines.commands.operations import OPERATION_COMMANDS
from pipelines.commands.reclustering import RECLUSTERING_COMMANDS
from pipelines.commands.report import report
from pipelines.commands.review import review
from pipelines.commands.students import students
from pipelines.commands.worker import worker
from pipelines.errors import AttendanseeError
from pipelines.settings import Settings, get_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="attendansee-pipelines")
def main() -> None:
    """Class photos in, attendance out."""
    # Alembic, TensorFlow and Dagster say much that is of no use to somebody who waits for a table.
    logging.disable(logging.INFO)
    # A terminal that cannot show a tick shows a question mark beside the word.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@main.command()
@click.argument("photos")
@click.option("--model", type=MODEL, default=None, help="Embedding model; default: the class's active one.")
@click.option("--class", "class_name", help="Only this class.")
@click.option("--session", "session_name", help="Only this session (and the class's portraits).")
@click.option("--force", is_flag=True, help="Process again what has not changed; stored vectors stay.")
@plain_errors
def run(photos: str, model: str | None, class_name: str | None, session_name: str | None, force: bool) -> None:
    """Register and process everything new below PHOTOS, then print each class's attendance."""
    settings = get_settings()
    if not run_photos(settings, photos, model, class_name, session_name, force=force):
        sys.exit(1)


def run_photos(
    settings: Settings,
    photos: str,
    model: str | None,
    class_name: str | None = None,
    session_name: str | None = None,
    *,
    force: bool = False,
) -> bool:
    """Process a photo root with progress, print the tables; returns False where anything failed.

    model: None takes each class's active model, and ATTENDANSEE_MODEL for a class that has none yet.
    """
    import dagster as dg
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from pipelines.database import catalog
    from pipelines.instance import fail_lost_runs, prepare_dagster_home
    from pipelines.resources.database import Database
    from pipelines.resources.embedding_models import EmbeddingModels
    from pipelines.resources.photo_store import PhotoStore
    from pipelines.runner import plan, process
    from pipelines.sensors.scan import missing_sessions
    from pipelines.services.attendance import AttendanceService

    console = Console(stderr=True)
    prepare_dagster_home(settings)
    root = photos if "://" in photos else str(Path(photos).expanduser().resolve())
    store = PhotoStore.from_settings(settings.model_copy(update={"photos": root}))
    listing = store.scan()
    for folder in listing.bad_folders:
        console.print(escape(folder.reason), style="yellow")
    database = Database()
    with database.connection() as connection:
        active, registered = catalog.active_models(connection), catalog.session_keys(connection)
    for folder in missing_sessions(listing, registered):
        console.print(escape(folder.reason), style="yellow")
    work = plan(
        listing,
        registered,
        lambda name: model or active.get(name, settings.model),
        settings.detection_configuration,
        class_name,
        session_name,
    )
    models = {item.key.class_name: item.model for item in work}
    embedding_models = EmbeddingModels.from_settings(settings)
    for name in sorted(set(models.values())):
        embedding_models.require(name)
    skipped, failed = 0, set()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with dg.DagsterInstance.get() as instance, Progress(*columns, console=console) as progress:
        fail_lost_runs(instance)
        task = progress.add_task("starting", total=len(work))
        for outcome in process(
            work,
            instance=instance,
            database=database,
            store=store,
            models=embedding_models,
            force=force,
            on_start=lambda name: progress.update(task, description=name),
        ):
            progress.advance(task)
            skipped += outcome.skipped
            if outcome.reason:
                failed.add(outcome.name)
                progress.console.print(f"[red]{outcome.name} failed:[/] {escape(outcome.reason)}", highlight=False)
        progress.update(task, description="done", completed=len(work))
    console.print(_summary(len(work), skipped, failed & {str(item.key) for item in work}))
    for name, of_class in models.items():
        try:
            print_register(AttendanceService(database, of_class).register(name))
        except AttendanseeError as error:
            console.print(escape(str(error)), style="red")
        print_remarks(console, database, name)
    return not failed


def _summary(sessions: int, skipped: int, failed: set[str]) -> str:
    """How many of the sessions were processed, had not changed, and failed."""
    processed = sessions - skipped - len(failed)
    parts = [f"{processed} of {sessions} sessions processed"]
    if skipped:
        parts.append(f"{skipped} had not changed")
    if failed:
        parts.append(f"{len(failed)} failed and will be tried again by the next `attendansee run`")
    return ", ".join(parts) + "."


def print_register(register: Any) -> None:
    """The register as a table: a tick and a word in each cell, so that colour is not needed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    marks = {
        "present": "[green]✓ present",
        "absent": "[red]✗ absent",
        "unsure": "[yellow]? unsure",
        "excused": "[blue]E excused",
        "unknown": "[magenta]● unknown",
        "": "",
    }
    # Names are names: "Ann [2]" is no markup.
    table = Table(title=f"Attendance of {register.class_name} ({register.model})", title_justify="left")
    table.add_column("student")
    for session in register.sessions:
        table.add_column(session)
    for name, *cells in register.rows():
        by_hand = ("[/] *" if (name, session) in register.marks else "" for session in register.sessions)
        table.add_row(escape(name), *(marks[cell] + star for cell, star in zip(cells, by_hand, strict=True)))
    # A register cut off at the edge of a narrow terminal or a pipe would hide names and sessions.
    console = Console()
    console.width = max(console.width, Measurement.get(console, console.options.update(width=10_000), table).maximum)
    console.print(table)
    for (name, session), mark in register.marks.items():
        note = f": {mark.note}" if mark.note else ""
        # Markup off, for notes are anybody's text.
        console.print(
            f"* {name}, {session}: {mark.status}, set by {mark.decided_by}{note}", markup=False, soft_wrap=True
        )


def print_remarks(console: Any, database: Any, class_name: str) -> None:
    """Why files of the class could not be used, and which may lie in the wrong place."""
    from pipelines.database import catalog

    with database.connection() as connection:
        remarks = catalog.file_remarks(connection, class_name)
    for remark in remarks:
        console.print(remark, style="yellow", markup=False, highlight=False)


@main.command()
@click.argument("class_name", metavar="CLASS")
@click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--model", type=MODEL, default=None, help="Another model's lineage than the class's active one.")
@plain_errors
def attendance(class_name: str, style: str, model: str | None) -> None:
    """Print the register of CLASS."""
    from pipelines.resources.database import Database
    from pipelines.services.attendance import AttendanceService

    database = Database()
    with database.connection() as connection:
        model = model_of(connection, class_name, model)
    register = AttendanceService(database, model).register(class_name)
    if style == "table":
        print_register(register)
    else:
        click.echo(register.to_csv() if style == "csv" else register.to_json(), nl=style == "json")


@main.command()
@click.argument("class_name", metavar="CLASS")
@click.option("--labels", type=click.Path(path_type=Path), required=True, help="CSV: file,x,y,w,h,identity[,role].")
@click.option("--attendance", "truth", type=click.Path(path_type=Path), help="CSV: session,identity,present.")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--model", type=MODEL, default=None, help="Another model's lineage than the class's active one.")
@plain_errors
def evaluate(class_name: str, labels: Path, truth: Path | None, style: str, model: str | None) -> None:
    """Compare what was decided about CLASS with labels made by people."""
    from pipelines.resources.database import Database
    from pipelines.services.evaluation import evaluate_class

    database = Database()
    with database.connection() as connection:
        model = model_of(connection, class_name, model)
    figures = asdict(evaluate_class(database, class_name, model, labels, truth))
    if style == "json":
        click.echo(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        click.echo(f"{name:<22} {value if value is None or isinstance(value, int) else f'{value:.4f}'}")


@main.command()
@plain_errors
def migrate() -> None:
    """Bring the database's tables up to date."""
    from pipelines.database.migrate import migrate as upgrade
    from pipelines.database.server import check_server, database_url

    url = database_url(get_settings())
    check_server(url)
    click.echo(f"The database is at revision {upgrade(url)}.")


@main.command()
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option("--watch", metavar="PHOTOS", help="Process new photos below this root as they arrive.")
@plain_errors
def up(port: int, watch: str | None) -> None:
    """Start the Dagster UI and its daemon on 127.0.0.1; Ctrl-C stops them and the embedded database."""
    from pipelines.up import run_up

    run_up(get_settings(), port=port, watch=watch)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve; others need a token.")
@click.option("--port", default=8000, show_default=True, help="Port of the API; 0 takes a free one.")
@plain_errors
def api(host: str, port: int) -> None:
    """Serve the operations, reads and edits over HTTP; Ctrl-C stops it."""
    from pipelines.api.server import run_api

    run_api(get_settings(), host, port)


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@plain_errors
def erase(yes: bool) -> None:
    """Delete everything that was made from photos; the photos themselves and a server in DATABASE_URL stay."""
    from pipelines.database import embedded
    from pipelines.resources.embedding.definition import remove_all_definitions

    home = get_settings().home.resolve()
    if not yes:
        click.confirm(f"Delete the embedded database, crops, weights and Dagster's records in {home}?", abort=True)
    # As root the database may lie outside the home: see README, "A real server".
    embedded.remove(home / "postgres")
    # Only what is ours: somebody may have set ATTENDANSEE_HOME to a folder that holds other things too.
    for name in ("crops", "dagster", "deepface", "demo"):
        if (home / name).is_dir():
            shutil.rmtree(home / name)
    remove_all_definitions(home)
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()
    click.echo(f"What was made from photos in {home} is gone.")


@main.command()
@plain_errors
def demo() -> None:
    """Make a sample class from photos that packages ship, process it, and print its attendance."""
    from pipelines.demo_photos import CLASS_NAME, make_demo_photos
    from pipelines.instance import prepare_dagster_home

    settings = get_settings()
    prepare_dagster_home(settings)
    photos = settings.home / "demo" / "photos"
    make_demo_photos(photos)
    succeeded = run_photos(settings, str(photos), "dlib")
    click.echo(
        f"\nCheck and correct it: run `.venv/bin/attendansee review {CLASS_NAME}`, then open the address that it prints."
        f"\nOne file to read or print: run `.venv/bin/attendansee report {CLASS_NAME}`."
        "\nDagster UI: run `.venv/bin/attendansee up`, then open http://127.0.0.1:3000"
    )
    sys.exit(0 if succeeded else 1)


for command in (*OPERATION_COMMANDS, *MODEL_SWITCH_COMMANDS, *DECISION_COMMANDS, *RECLUSTERING_COMMANDS):
    main.add_command(command)
main.add_command(students)
main.add_command(review)
main.add_command(models)
main.add_command(backfill)
main.add_command(calibrate)
main.add_command(report)
main.add_command(worker)
