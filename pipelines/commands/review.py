"""`attendansee review CLASS`: a page to answer questions, name people and correct the register, in a browser."""

import click

from pipelines.commands.common import CLASS, current_user, plain_errors


@click.command()
@CLASS
@click.option("--port", default=8000, show_default=True, help="Port of the page and the API; 0 takes a free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser of this machine.")
@plain_errors
def review(class_name: str, port: int, open_browser: bool) -> None:
    """Serve a page to review CLASS on 127.0.0.1: questions, names, students, register; Ctrl-C stops it.

    The page and the HTTP API are those of `attendansee api`, which serves every class at /review/CLASS.
    """
    from pipelines.api.auth import PAGES
    from pipelines.api.server import run_api
    from pipelines.database import catalog
    from pipelines.resources.database import Database
    from pipelines.settings import get_settings

    with Database().connection() as connection:
        catalog.find_class(connection, class_name)

    def serving(url: str) -> None:
        page = f"{url}{PAGES}{class_name}"
        click.echo(f"Review page: {page} (Ctrl-C stops it)")
        if open_browser:
            click.launch(page)

    run_api(get_settings(), port=port, decided_by=current_user(), serving=serving)
