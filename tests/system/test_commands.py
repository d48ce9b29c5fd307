"""F6 of CASES: `python -m study`, for places without make."""

import signal
import subprocess
import sys

import pytest

from study import commands
from study.settings import PROJECT

pytestmark = pytest.mark.cases


def study(*words):
    return subprocess.run(
        [sys.executable, "-m", "study", *words], cwd=PROJECT, capture_output=True, text=True, encoding="utf-8"
    )


def test_f6_the_commands_are_listed():
    told = study("--help").stdout
    for name in ("run", "report", "refresh", "lab", "quick", "test", "test-code", "test-notebooks"):
        assert f"\n{name} " in told


@pytest.mark.parametrize("words", [("quick", "--jobs", "0"), ("test", "notebooks/09*"), ("tests",)])
def test_f6_what_makes_no_sense_is_refused_in_a_line(words):
    refused = study(*words)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "error: " in refused.stderr.splitlines()[-1]


def test_f6_what_fails_ends_the_rest_with_its_status(tmp_path):
    there = tmp_path / "there"
    fail, touch = (
        [sys.executable, "-c", code] for code in ("raise SystemExit(5)", f"open({str(there)!r}, 'w', encoding='utf-8')")
    )
    assert commands.run_in_turn([fail, touch]) == 5
    assert not there.exists()
    assert commands.run_in_turn([touch]) == 0
    assert there.exists()
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]
    assert commands.run_in_turn([killed]) == 128 + signal.SIGTERM
