"""`python -m study COMMAND`: what make does, in Python. make's commands call these."""

import argparse
import os
import sys
from pathlib import Path

from study.arguments import find_notebooks

# each notebook on one thread, by which no number depends on how many cores there are
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONUTF8", "1")  # of what we start
# figures of our own process are shown nowhere, and a backend that is not there would end it
os.environ.pop("MPLBACKEND", None)
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="replace")  # a terminal of another alphabet costs a letter, not a run

COMMANDS = {
    "run": "execute every notebook and write report/",
    "report": "write report/ from the stored notebooks",
    "refresh": "execute the notebooks in place",
    "sweep": "execute every notebook under many seeds, those of SEEDS; SCHEDULER: a Dask cluster's",
    "lab": "explore in JupyterLab, on copies in play/; more options are JupyterLab's",
    "quick": "lint, and the unit tests",
    "test": "all tests: test-code, then test-notebooks",
    "test-code": "the tests of the code and of what is stored",
    "test-notebooks": "execute every notebook again, with nbval",
}
parser = argparse.ArgumentParser(
    prog="python -m study",
    description=__doc__,
    epilog="\n".join(f"{name:15} {text}" for name, text in COMMANDS.items()),
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
parser.add_argument("--jobs", type=int, default=2, help="notebooks, or tests, at a time")
parser.add_argument("notebooks", nargs="*", type=Path, help="all of notebooks/ where none is named")
options = sys.argv[2:] if sys.argv[1:2] == ["lab"] else []  # those of JupyterLab
arguments = parser.parse_intermixed_args(sys.argv[1 : len(sys.argv) - len(options)])
if arguments.jobs < 1:
    parser.error(f"--jobs must be a whole number of at least 1, got {arguments.jobs}")
try:
    paths = find_notebooks(arguments.notebooks)
except ValueError as error:
    parser.error(str(error))

# they take seconds to import, and a wrong name is told at once
if arguments.command in ("run", "report", "refresh"):
    from study.run import main

    main(arguments.command, paths, arguments.jobs)
elif arguments.command == "sweep":
    from study.sweep import command

    chosen = os.environ.get("SEEDS") or "0-4"
    command(paths, chosen, arguments.jobs, os.environ.get("SCHEDULER"))
else:
    from study.commands import carry_out

    sys.exit(carry_out(arguments.command, arguments.jobs, paths, options))
