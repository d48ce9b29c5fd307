"""`python -m study run|report|refresh`."""

import argparse
import os
import sys
from pathlib import Path

from study.arguments import find_notebooks

# figures of our own process are shown nowhere, and a backend that is not there would end it
os.environ.pop("MPLBACKEND", None)
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="replace")  # a terminal of another alphabet costs a letter, not a run

parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
parser.add_argument("command", choices=["run", "report", "refresh"])
parser.add_argument("--jobs", type=int, default=1, help="notebooks that are executed at a time")
parser.add_argument("notebooks", nargs="*", type=Path, help="all of notebooks/ where none is named")
arguments = parser.parse_intermixed_args()
if arguments.jobs < 1:
    parser.error(f"--jobs must be a whole number of at least 1, got {arguments.jobs}")
try:
    paths = find_notebooks(arguments.notebooks)
except ValueError as error:
    parser.error(str(error))

from study.run import main  # noqa: E402  (it takes seconds, and a wrong name is told at once)

main(arguments.command, paths, arguments.jobs)
