"""The cache between processes: one computes what two want, and a killed write is not believed."""

import subprocess
import sys

from study.files import cached
from study.settings import PROJECT

KILLED = """
import os, sys
from pathlib import Path
from study.files import cached
os.replace = lambda *_: os.kill(os.getpid(), 9)
cached(Path(sys.argv[1]) / "kept.pt", lambda: {"value": 1})
"""


def test_a_killed_write_leaves_nothing_that_is_believed(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=PROJECT, check=False)
    assert process.returncode == -9
    assert not (tmp_path / "kept.pt").exists()
    assert cached(tmp_path / "kept.pt", lambda: {"value": 2}) == {"value": 2}


MEETING = """
import sys, time
from pathlib import Path
from study.files import cached
folder = Path(sys.argv[1])
def compute():
    (folder / f"computed-{time.monotonic_ns()}").touch()
    time.sleep(2)  # long enough for the other to come
    return {"value": 1}
(folder / f"here-{sys.argv[2]}").touch()
deadline = time.monotonic() + 600
while len(list(folder.glob("here-*"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
print(cached(folder / "kept.pt", compute))
"""


def test_of_two_processes_that_want_the_same_one_computes_it(tmp_path):
    command = [sys.executable, "-c", MEETING, str(tmp_path)]
    both = [
        subprocess.Popen([*command, name], cwd=PROJECT, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        for name in "ab"
    ]
    assert [process.communicate(timeout=700)[0] for process in both] == ["{'value': 1}\n"] * 2
    assert len(list(tmp_path.glob("computed-*"))) == 1


def test_the_course_can_be_used_without_what_the_workshop_needs():
    """Neither widgets nor notebooks nor plotly are imported, and shapes are not checked."""
    code = "import sys, latent_digits.log_prob, latent_digits.latents, latent_digits.metrics; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert {"plotly", "ipywidgets", "ipycanvas", "IPython", "filelock", "study", "beartype"} & set(
        told.stdout.split()
    ) == set()
