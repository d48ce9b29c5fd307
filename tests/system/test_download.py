"""MNIST from mirrors: which one, and what silence, another process, a kill or a full disk do."""

import gzip
import http.server
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import ClassVar

import pooch
import pytest

import helpers as h
from around import wait_until
from latent_digits import mnist
from study.settings import PROJECT


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers with `content`, and counts how often it is asked for what.

    Under /trickle it sends a byte at a time, under /cut and /short half of it with and without saying how much there
    is, under /hang nothing; under /missing and /nonsense it does not answer at all.
    """

    content: bytes | dict = b""
    asked: ClassVar[Counter] = Counter()

    def do_GET(self):
        Mirror.asked[self.path] += 1
        how, content = self.path.split("/")[1], self.content
        if isinstance(content, dict):
            content = content.get(self.path.rsplit("/", 1)[1], b"")
        if how == "missing":
            return self.send_error(404)
        if how == "nonsense":
            return self.wfile.write(b"this is not HTTP\r\n\r\n")
        if how == "hang":
            return time.sleep(20)
        self.send_response(200)
        if how == "cut":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how == "trickle":
            return self.drip(content)
        self.wfile.write(content[: len(content) // 2] if how in ("cut", "short") else content)

    def drip(self, content):
        try:
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:  # the other end has had enough
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def serve_labels(tiny_mnist, monkeypatch, *mirrors):
    """Take the training labels away, and let `mirrors` have them. Returns where they were."""
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    Mirror.content = gzip.compress(path.read_bytes(), mtime=0)
    path.unlink()
    monkeypatch.setattr(mnist, "MIRRORS", mirrors)
    return path


@pytest.mark.parametrize("how", ["missing", "nonsense", "cut", "short"])
def test_a_mirror_that_does_not_deliver_is_named_and_the_next_one_asked(tiny_mnist, mirror, monkeypatch, how):
    path = serve_labels(tiny_mnist, monkeypatch, f"{mirror}/{how}/")
    with pytest.raises(OSError, match=rf"could not be downloaded to {path.parent} \({mirror}/{how}/: "):
        h.load_data("mnist", root=tiny_mnist, per_class=1)
    assert not list(path.parent.glob("*labels*train*")) + list(path.parent.glob(f"{path.name}*"))
    monkeypatch.setattr(mnist, "MIRRORS", [f"{mirror}/{how}/", f"{mirror}/whole/"])
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"


def test_a_mirror_that_hangs_is_left(tiny_mnist, mirror, monkeypatch):
    serve_labels(tiny_mnist, monkeypatch, f"{mirror}/hang/", f"{mirror}/whole/")
    patient = pooch.HTTPDownloader
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: patient(**options | {"timeout": 0.3}))
    start = time.monotonic()
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"
    assert time.monotonic() - start < 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the bar, too, cannot be written
def test_on_a_full_disk_nothing_half_written_stays(tiny_mnist, mirror, monkeypatch):
    path = serve_labels(tiny_mnist, monkeypatch, f"{mirror}/")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # every write beyond ten bytes fails
    try:
        with pytest.raises(OSError, match=rf"could not be downloaded to {path.parent} .*File too large"):
            h.load_data("mnist", root=tiny_mnist, per_class=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(path.parent.iterdir())) == 3
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_folder_that_may_not_be_written(with_nobody, mirror, monkeypatch, capsys, source):
    folder, become_nobody = with_nobody
    path = serve_labels(folder, monkeypatch, f"{mirror}/")
    path.parent.chmod(0o555)
    become_nobody()
    if source == "mnist":
        with pytest.raises(OSError, match=r"could not be downloaded to .*Permission denied"):
            h.load_data("mnist", root=folder, per_class=1)
    else:
        assert h.load_data("auto", root=folder, per_class=1).name == "digits"
        assert "Permission denied" in capsys.readouterr().out


ELSEWHERE = """
import json, sys, helpers as h
from latent_digits import mnist
told = json.loads(sys.argv[1])
mnist.FILES, mnist.MIRRORS = told["files"], [told["mirror"]]
print(h.load_data("mnist", root=told["root"], per_class=1).train_x.sum().item())
"""


@pytest.fixture
def elsewhere(tiny_mnist, mirror):
    """Starts a process that loads the tiny MNIST, of which nothing is there: all of it is downloaded."""
    folder, packed = tiny_mnist / "MNIST" / "raw", {}
    for path in list(folder.iterdir()):
        packed[f"{path.name}.gz"] = gzip.compress(path.read_bytes(), mtime=0)
        path.unlink()
    Mirror.content = packed
    Mirror.asked.clear()

    def start(how):
        told = {"files": mnist.FILES, "mirror": f"{mirror}/{how}/", "root": str(tiny_mnist)}
        command = [sys.executable, "-c", ELSEWHERE, json.dumps(told)]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    return start


def test_two_processes_that_download_at_once_both_have_it(elsewhere, tiny_mnist):
    both = [elsewhere("whole") for _ in range(2)]
    found = [process.communicate(timeout=300)[0] for process in both]
    expected = h.load_data("mnist", root=tiny_mnist, per_class=1).train_x.sum().item()
    assert found == [f"{expected}\n"] * 2


def test_a_download_that_is_killed_is_begun_again(elsewhere, tiny_mnist):
    process = elsewhere("trickle")
    wait_until(lambda: Mirror.asked)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tiny_mnist / "MNIST" / "raw").glob("*ubyte*"))
    again = elsewhere("whole").communicate(timeout=300)[0]
    assert again == f"{h.load_data('mnist', root=tiny_mnist, per_class=1).train_x.sum().item()}\n"
