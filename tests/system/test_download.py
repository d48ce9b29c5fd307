"""MNIST from mirrors: which one, how long they may take, and what another process, a kill or a full disk do."""

import gzip
import hashlib
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

import pytest

import helpers as h


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers with `content`, and counts how often it is asked for what.

    Under /trickle it sends a byte at a time, under /slowheaders its headers so, under /cut and /short half of it with
    and without saying how much there is, under /hang nothing; under /missing and /nonsense it does not answer at all.
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
        if how == "slowheaders":
            return self.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + 200 * b"x")
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


def test_download_takes_the_first_mirror_that_delivers(mirror):
    Mirror.content = b"digits" * 50_000
    urls = [f"{mirror}/missing", f"{mirror}/nonsense", f"{mirror}/there"]
    md5 = hashlib.md5(Mirror.content).hexdigest()
    assert h.download(urls, md5, time.monotonic() + 10) == Mirror.content


def test_download_refuses_wrong_content_and_says_what_each_mirror_did(mirror):
    Mirror.content = b"something else"
    with pytest.raises(OSError, match=r"missing: HTTP Error 404|missing: Not Found.*there: wrong content"):
        h.download([f"{mirror}/missing", f"{mirror}/there"], "0" * 32, time.monotonic() + 10)


@pytest.mark.parametrize("how", ["trickle", "slowheaders", "hang"])
def test_download_does_not_wait_for_a_mirror_that_hangs(mirror, how):
    Mirror.content = b"x" * 200  # ten seconds' worth
    start = time.monotonic()
    with pytest.raises(OSError, match=f"{how}: too slow"):
        h.download([f"{mirror}/{how}"], "0" * 32, start + 0.3)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("how", "told"), [("cut", "IncompleteRead"), ("short", "wrong content")])
def test_a_download_that_is_cut_off_is_not_believed(tiny_mnist, mirror, monkeypatch, how, told):
    path = serve_labels(tiny_mnist, f"{mirror}/{how}/", monkeypatch)
    with pytest.raises(OSError, match=told):
        h.load_data("mnist", root=tiny_mnist, per_class=1)
    assert not path.exists()
    monkeypatch.setattr(h.import_datasets().MNIST, "mirrors", [f"{mirror}/{how}/", f"{mirror}/whole/"])
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"


def serve_labels(tiny_mnist, mirror, monkeypatch):
    """Take the training labels away, and let `mirror` have them. Returns where they were."""
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    Mirror.content = gzip.compress(path.read_bytes())
    path.unlink()
    md5 = hashlib.md5(Mirror.content).hexdigest()
    monkeypatch.setattr(h.import_datasets().MNIST, "mirrors", [mirror])
    monkeypatch.setattr(h.import_datasets().MNIST, "resources", [(f"{name}.gz", md5) for name in h.MNIST_MD5])
    return path


def test_on_a_full_disk_nothing_half_written_stays(tiny_mnist, mirror, monkeypatch):
    path = serve_labels(tiny_mnist, f"{mirror}/", monkeypatch)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # every write beyond ten bytes fails
    try:
        with pytest.raises(
            OSError, match=rf"{path} cannot be written \(File too large\): make room, or set MNIST_ROOT"
        ):
            h.load_data("mnist", root=tiny_mnist, per_class=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [left for left in path.parent.iterdir() if path.name in left.name and not left.name.endswith(".lock")]
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_folder_that_may_not_be_written(with_nobody, mirror, monkeypatch, capsys, source):
    folder, become_nobody = with_nobody
    path = serve_labels(folder, f"{mirror}/", monkeypatch)
    path.parent.chmod(0o555)
    become_nobody()
    if source == "mnist":
        with pytest.raises(OSError, match=r"cannot be written \(Permission denied\): make room, or set MNIST_ROOT"):
            h.load_data("mnist", root=folder, per_class=1)
    else:
        assert h.load_data("auto", root=folder, per_class=1).name == "digits"
        assert "cannot be written (Permission denied)" in capsys.readouterr().out


ELSEWHERE = """
import json, sys, helpers as h
told = json.loads(sys.argv[1])
h.MNIST_MD5 = told["md5"]
mnist = h.import_datasets().MNIST
mnist.mirrors, mnist.resources = [told["mirror"]], told["resources"]
print(h.load_data("mnist", root=told["root"], per_class=1).fingerprint())
"""


@pytest.fixture
def elsewhere(tiny_mnist, mirror):
    """Starts a process that loads the tiny MNIST, of which nothing is there: all of it is downloaded."""
    folder, packed = tiny_mnist / "MNIST" / "raw", {}
    for path in list(folder.iterdir()):
        packed[f"{path.name}.gz"] = gzip.compress(path.read_bytes())
        path.unlink()
    Mirror.content = packed
    Mirror.asked.clear()
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]

    def start(how):
        told = {"md5": h.MNIST_MD5, "mirror": f"{mirror}/{how}/", "resources": resources, "root": str(tiny_mnist)}
        command = [sys.executable, "-c", ELSEWHERE, json.dumps(told)]
        return subprocess.Popen(command, cwd=h.PROJECT, stdout=subprocess.PIPE, text=True)

    return start


def test_of_two_processes_that_download_at_once_one_does_and_both_have_it(elsewhere, tiny_mnist):
    both = [elsewhere("whole") for _ in range(2)]
    found = [process.communicate(timeout=300)[0] for process in both]
    expected = h.load_data("mnist", root=tiny_mnist, per_class=1).fingerprint()
    assert found == [f"{expected}\n"] * 2
    assert set(Mirror.asked.values()) == {1}
    assert len(Mirror.asked) == 4


def test_a_download_that_is_killed_is_begun_again(elsewhere, tiny_mnist):
    process = elsewhere("trickle")
    while not Mirror.asked:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = (tiny_mnist / "MNIST" / "raw").iterdir()
    assert [path.name for path in left if not path.name.startswith(".")] == []
    again = elsewhere("whole").communicate(timeout=300)[0]
    assert again == h.load_data("mnist", root=tiny_mnist, per_class=1).fingerprint() + "\n"


def test_missing_files_are_downloaded_unpacked_and_verified(tiny_mnist, mirror, monkeypatch):
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    original = path.read_bytes()
    path.unlink()
    Mirror.content = gzip.compress(original)
    mnist = h.import_datasets().MNIST
    monkeypatch.setattr(mnist, "mirrors", [f"{mirror}/"])
    monkeypatch.setattr(mnist, "resources", [(f"{path.name}.gz", hashlib.md5(Mirror.content).hexdigest())])
    h.fetch_mnist(path.parent)
    assert path.read_bytes() == original
