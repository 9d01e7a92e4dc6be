"""`attendansee worker`: execute runs of the scale-out profile on this machine."""

import logging

import click

from pipelines.commands.common import plain_errors
from pipelines.settings import get_settings


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at a time, each with networks of its own in memory.",
)
@plain_errors
def worker(concurrency: int) -> None:
    """Execute runs that `attendansee up` hands out; SIGTERM or Ctrl-C lets the runs in progress end first."""
    # Who looks at a worker wants to know what it does; the others are commands with an answer.
    logging.disable(logging.NOTSET)
    from pipelines.worker import run_worker

    raise SystemExit(run_worker(get_settings(), concurrency))
