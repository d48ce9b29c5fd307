"""What tests of processes share: an environment that nobody has set, and waiting with a deadline."""

import os
import time

# what make passes on to its children, and what a user may have set for this run
SET = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "NOTEBOOKS", "OUTPUT", "CACHE", "SEED", "QUICK", "DATA", "JUPYTER_TOKEN")


def plain_environment():
    """The environment without make's variables and without settings."""
    return {name: value for name, value in os.environ.items() if name not in SET}


def wait_until(condition, seconds=120, said=lambda: "it took too long", pause=lambda: time.sleep(0.1)):
    """What `condition` says as soon as that is true; AssertionError with what was `said` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, said()
        pause()
    return found
