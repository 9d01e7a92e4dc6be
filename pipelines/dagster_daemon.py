"""Dagster's daemon, which looks at backfills every 5 seconds: `python -m pipelines.dagster_daemon run -w workspace.yaml`.

Dagster itself looks every 30 seconds and leaves nothing to set. A backfill waits for a look to begin, one for each layer
of assets and one to end, so that one of three sessions took a minute and a half, most of it idle.
"""

from dagster._daemon import controller
from dagster._daemon.cli import main

SECONDS_BETWEEN_LOOKS = 5

if __name__ == "__main__":
    controller.DEFAULT_DAEMON_INTERVAL_SECONDS = SECONDS_BETWEEN_LOOKS
    main()
