"""`attendansee report`: a class as one file to look at, or as tables."""

from pathlib import Path

import click

from pipelines.commands.common import CLASS, MODEL, plain_errors
from pipelines.errors import AttendanseeError


@click.command()
@CLASS
@click.option("--session", "session_name", help="Only this session of the class.")
@click.option(
    "--format", "style", type=click.Choice(["html", "csv", "xlsx", "json"]), default="html", show_default=True
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="File to write, - for standard output; default: CLASS.html (or .csv, ...) in this folder.",
)
@click.option("--model", type=MODEL, default=None, help="Another model's lineage than the class's active one.")
@plain_errors
def report(class_name: str, session_name: str | None, style: str, output: Path | None, model: str | None) -> None:
    """Write all there is to look at of CLASS into one file.

    html: photos, faces, questions and the register, with the reason for each of its cells, readable without a network.
    csv, xlsx, json: the register with its evidence. The file holds faces (html) and names: keep it from others.
    """
    from datetime import datetime

    from pipelines.services.context import default_context
    from pipelines.services.export import report_csv, report_json, report_xlsx
    from pipelines.services.report import report_html
    from pipelines.services.review import read_review

    context = default_context()
    found = read_review(context, class_name, model, session_name)
    if style == "html":
        content = report_html(context, found, datetime.now().astimezone()).encode()
    elif style == "csv":
        # With a mark by which spreadsheets know that names are in UTF-8.
        content = report_csv(found).encode("utf-8-sig")
    else:
        content = report_xlsx(found) if style == "xlsx" else report_json(found).encode()
    if str(output) == "-":
        click.echo(content, nl=False)
        return
    path = output or Path("__".join(filter(None, (class_name, session_name))) + f".{style}")
    _write(path, content)
    click.echo(f"{path} ({len(content) / 1e6:.1f} MB), {found.left} questions left.")


def _write(path: Path, content: bytes) -> None:
    """Replace the file in one step; nobody but its owner may read it."""
    import os

    from pipelines.resources.embedding.files import replacing

    try:
        with replacing(path) as stream:
            os.fchmod(stream.fileno(), 0o600)
            stream.write(content)
    except OSError as error:
        raise AttendanseeError(f"{path} cannot be written ({error.strerror}): give another --output.") from error
