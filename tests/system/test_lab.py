"""`make lab`: JupyterLab keeps its token."""

import json
import subprocess
import sys
import urllib.error
import urllib.request

from around import plain_environment, wait_until
from study.settings import PROJECT


def test_jupyterlab_keeps_its_token(tmp_path):
    """Started as `make lab` starts it: who has no token gets nothing, and only this machine can ask."""
    plain = plain_environment()
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    log = (tmp_path / "log").open("w", encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, "-m", "study", "lab", "--no-browser", "--allow-root", "--port=0"],
        cwd=PROJECT, env=plain | folders, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        log_of = (tmp_path / "log").read_bytes
        found = wait_until(lambda: list((tmp_path / "runtime").glob("jpserver-*.json")), said=log_of)
        about = json.loads(found[0].read_text(encoding="utf-8"))
        assert len(about["token"]) >= 40
        assert about["hostname"] in ("localhost", "127.0.0.1")
        address = about["url"].replace("localhost", "127.0.0.1") + "api/contents"

        def answer():
            """What it answers without a token, once it is up."""
            try:
                return urllib.request.urlopen(address, timeout=30).status
            except urllib.error.HTTPError as error:
                return error.code
            except urllib.error.URLError:
                return None

        assert wait_until(answer, said=log_of) == 403
        asked = urllib.request.Request(address, headers={"Authorization": f"token {about['token']}"})
        assert urllib.request.urlopen(asked, timeout=30).status == 200
    finally:
        server.terminate()
        server.wait(60)
        log.close()
