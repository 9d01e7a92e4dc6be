"""Memory of one worker process that finds and embeds 2,000 crops, session after session.

    .venv/bin/python benchmarks/memory.py [--models dlib] [--crops 2000] [--work-dir DIR]

The same photos come again as new sessions of a class until there are that many crops, through the services that the
pipeline's assets call. A thread looks at the process's resident memory all the time; a line is printed for each further
tenth of the crops, with the memory at that moment and the highest since the line before. The database is another process.
"""

import argparse
import itertools
import os
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import psutil
from embedding import machine
from rich.console import Console
from rich.table import Table
from workplace import workplace

from pipelines.resources.embedding.registry import BUILT_IN

MEGABYTE = 2**20


class Watch(threading.Thread):
    """Keeps the highest resident memory of this process, in bytes, since `highest` was last read."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._highest = 0

    def run(self) -> None:
        """Look every 5 ms, for as long as the process lives."""
        while True:
            self._highest = max(self._highest, self.now())
            time.sleep(0.005)

    def now(self) -> int:
        """The resident memory at this moment."""
        return self._process.memory_info().rss

    def highest(self) -> int:
        """The highest since the last call."""
        highest, self._highest = self._highest, self.now()
        return highest


def main() -> None:
    """Parses the command line, works through the crops and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(BUILT_IN), default=["dlib"])
    parser.add_argument("--crops", type=int, default=2000)
    parser.add_argument("--work-dir", type=Path, help="keeps random weights and converted files; default: removed")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    watch = Watch()
    watch.start()
    with workplace(arguments.work_dir) as place:
        photos, which = place.class_photos()
        services = [place.embedding(model)[0] for model in arguments.models]
        console.print(f"{machine()}\nphotos of {which}, embedded by {', '.join(arguments.models)}")
        table = Table("crops", "photos", "MB now", "MB at most")
        table.add_row("0", "0", f"{watch.now() / MEGABYTE:.0f}", "")
        crops = 0
        for session in itertools.count(1):
            key = place.add_session(f"session_{session}", photos)
            place.detection().detect_session(key)
            before = crops
            crops += min(service.embed_session(key).embedded for service in services)
            if crops * 10 // arguments.crops > before * 10 // arguments.crops:
                highest = watch.highest() / MEGABYTE
                table.add_row(str(crops), str(session * len(photos)), f"{watch.now() / MEGABYTE:.0f}", f"{highest:.0f}")
            if crops >= arguments.crops:
                break
    console.print(table)


if __name__ == "__main__":
    main()
