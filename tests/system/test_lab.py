"""`make lab`: JupyterLab keeps its token."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import helpers as h


def test_jupyterlab_keeps_its_token(tmp_path):
    """Started as `make lab` starts it: who has no token gets nothing, and only this machine can ask."""
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "JUPYTER_TOKEN")}
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "lab", f"BIN={Path(sys.executable).parent}"],
        cwd=h.PROJECT, env=plain, capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = told.stdout.splitlines()[-1].split()
    assert command[1] == "lab"
    (tmp_path / "play").mkdir()
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        [*command, "--no-browser", "--allow-root", "--port=0"],
        cwd=tmp_path, env=plain | folders, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (found := list((tmp_path / "runtime").glob("jpserver-*.json"))):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        about = json.loads(found[0].read_text())
        assert len(about["token"]) >= 40
        assert about["hostname"] in ("localhost", "127.0.0.1")
        address = about["url"].replace("localhost", "127.0.0.1") + "api/contents"
        while True:
            try:
                urllib.request.urlopen(address, timeout=30)
                pytest.fail("JupyterLab answered without a token")
            except urllib.error.HTTPError as error:
                refused = error.code
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        assert refused == 403
        asked = urllib.request.Request(address, headers={"Authorization": f"token {about['token']}"})
        assert urllib.request.urlopen(asked, timeout=30).status == 200
    finally:
        server.terminate()
        server.wait(60)
        log.close()
