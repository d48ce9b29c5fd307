"""Data: what is loaded, from where, and what happens when it cannot be."""

import gzip
import hashlib
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import helpers as h


@pytest.fixture
def tiny_mnist(idx_folder, monkeypatch):
    """The tiny MNIST of `idx_folder`, with its own checksums and no mirror that answers."""
    files = (idx_folder / "MNIST" / "raw").iterdir()
    monkeypatch.setattr(h, "MNIST_MD5", {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in files})
    monkeypatch.setattr(h.import_datasets().MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(h.import_datasets().MNIST, "resources", [(f"{name}.gz", "0") for name in h.MNIST_MD5])
    return idx_folder


def test_mnist_pixels_and_labels_are_read_as_stored(tiny_mnist):
    data = h.load_data("mnist", root=tiny_mnist, per_class=3)
    raw = (tiny_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    expected = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(20, 1, 28, 28) / 255
    assert data.name == "mnist"
    torch.testing.assert_close(data.test_x, expected)
    assert data.test_y.tolist() == [i % 10 for i in range(20)]
    assert data.train_x.shape == (30, 1, 28, 28)
    assert data.train_x.dtype == torch.float32


def test_the_root_is_taken_from_the_environment(tiny_mnist, monkeypatch):
    monkeypatch.setenv("MNIST_ROOT", str(tiny_mnist))
    assert h.load_data(per_class=1).name == "mnist"


DAMAGES = {
    "cut short": lambda b: b[:-1],
    "a flipped bit": lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:],
    "empty": lambda b: b"",
    "wrong magic": lambda b: b"\0\0\x0d" + b[3:],
    "a wrong count": lambda b: b[:7] + bytes([b[7] ^ 1]) + b[8:],
    "still packed": gzip.compress,
    "an error page": lambda b: b"<html>404</html>",
}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_damaged_file_is_named_and_never_used(tiny_mnist, name, damage, source):
    path = tiny_mnist / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match=rf"{name} is damaged \(MD5 .*delete it") as caught:
        h.load_data(source, root=tiny_mnist, per_class=1)
    assert isinstance(caught.value, h.DamagedFile)


@pytest.mark.parametrize(
    "pair", [("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"), ("train-images-idx3-ubyte",) * 2]
)
def test_swapped_files_are_never_used(tiny_mnist, pair):
    folder = tiny_mnist / "MNIST" / "raw"
    first, second = folder / pair[0], folder / pair[1].replace("train", "t10k")
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(h.DamagedFile, match=rf"({first.name}|{second.name}) is damaged"):
        h.load_data(root=tiny_mnist, per_class=1)


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_folder_in_place_of_a_file_is_named(tiny_mnist, source):
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.unlink()
    path.mkdir()
    with pytest.raises(h.DamagedFile, match=rf"{path} cannot be read \(Is a directory\): put a file there"):
        h.load_data(source, root=tiny_mnist, per_class=1)


def test_a_file_in_place_of_a_folder_is_named(tiny_mnist):
    shutil.rmtree(tiny_mnist / "MNIST" / "raw")
    (tiny_mnist / "MNIST" / "raw").write_text("not a folder")
    with pytest.raises(h.DamagedFile, match=r"ubyte cannot be read \(Not a directory\)"):
        h.load_data(root=tiny_mnist, per_class=1)


@pytest.fixture
def as_nobody():
    """A folder that a user without rights can reach, and that user: root may read and write everything."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def lay_out(tiny_mnist, folder, missing=()):
    """The tiny MNIST in `folder`, as somebody with all rights."""
    user = os.geteuid()
    os.seteuid(os.getuid())
    shutil.copytree(tiny_mnist / "MNIST", folder / "MNIST")
    for name in missing:
        (folder / "MNIST" / "raw" / name).unlink()
    return user


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_file_that_may_not_be_read_is_named(tiny_mnist, as_nobody, source):
    user = lay_out(tiny_mnist, as_nobody)
    (as_nobody / "MNIST" / "raw" / "t10k-images-idx3-ubyte").chmod(0)
    os.seteuid(user)
    with pytest.raises(h.DamagedFile, match=r"t10k-images-idx3-ubyte cannot be read \(Permission denied\): put a file"):
        h.load_data(source, root=as_nobody, per_class=1)


def test_without_mnist_auto_announces_the_digits_and_mnist_fails(tiny_mnist, capsys):
    (tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    data = h.load_data(root=tiny_mnist, per_class=5)
    assert data.name == "digits"
    assert "could not be downloaded" in data.note
    assert "scikit-learn's digits" in capsys.readouterr().out
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        h.load_data("mnist", root=tiny_mnist)


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


def test_thinned_data_keeps_images_and_labels_together():
    labels = torch.arange(25)
    x = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    thin = h.Data("mnist", x, labels, x[:9], labels[:9]).thinned(10)
    assert thin.train_y.tolist() == list(range(0, 25, 2))
    assert thin.train_x[:, 0, 0, 0].tolist() == thin.train_y.tolist()
    assert thin.test_y.tolist() == list(range(9))


@pytest.fixture
def mirror():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
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
def test_a_folder_that_may_not_be_written(tiny_mnist, mirror, monkeypatch, as_nobody, capsys, source):
    user = lay_out(tiny_mnist, as_nobody)
    path = as_nobody / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    serve_labels(as_nobody, f"{mirror}/", monkeypatch)
    path.parent.chmod(0o555)
    os.seteuid(user)
    if source == "mnist":
        with pytest.raises(OSError, match=r"cannot be written \(Permission denied\): make room, or set MNIST_ROOT"):
            h.load_data("mnist", root=as_nobody, per_class=1)
    else:
        assert h.load_data("auto", root=as_nobody, per_class=1).name == "digits"
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


def test_digits_are_balanced_and_no_test_scan_is_in_training():
    data = h.load_data("digits")
    assert torch.bincount(data.train_y).tolist() == [2000] * 10
    assert data.train_x.shape == (20000, 1, 28, 28)
    assert data.test_x.shape == (599, 1, 28, 28)
    for x in (data.train_x, data.test_x):
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1
    scans, _ = load_digits(return_X_y=True)
    assert len(scans) == 1797
    # every test image is closer to its own scan than any training image is to a test image
    nearest = torch.cdist(data.test_x[:50].flatten(1), data.train_x.flatten(1)).min(1).values
    assert nearest.min() > 0.5


@given(per_class=st.integers(1, 5), seed=st.integers(0, 3))
def test_balanced_subset_has_exactly_per_class_distinct_images(per_class, seed):
    labels = torch.arange(10).repeat(6)
    chosen = h.balanced_subset(labels, per_class, h.make_generator(seed))
    assert torch.bincount(labels[chosen], minlength=10).tolist() == [per_class] * 10
    assert len(set(chosen.tolist())) == 10 * per_class


def test_subset_depends_on_the_seed_alone():
    first, again, other = (h.load_data("digits", per_class=20, seed=s) for s in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert torch.equal(first.test_x, other.test_x)


def test_asking_for_more_than_a_class_has():
    with pytest.raises(ValueError, match="per_class is 2001: choose 1 to 2000"):
        h.load_data("digits", per_class=2001)


def test_unknown_source():
    with pytest.raises(ValueError, match="source is 'cifar': choose one of 'auto', 'mnist', 'digits'"):
        h.load_data("cifar")


def test_one_per_class_is_in_order():
    labels = torch.tensor([5, 1, 0, 1, 2, 3, 4, 6, 7, 9, 8, 5])
    assert labels[h.one_per_class(labels)].tolist() == list(range(10))
    assert h.one_per_class(labels)[5] == 0
    with pytest.raises(ValueError, match=r"labels has no image of \[8, 9\]"):
        h.one_per_class(torch.arange(8))


def test_random_affine_moves_a_little_and_zero_moves_nothing(generator, data):
    still = h.random_affine(data.train_x, generator, degrees=0, scale=0, shift=0)
    torch.testing.assert_close(still, data.train_x, atol=1e-5, rtol=0)
    moved = h.random_affine(data.train_x, generator)
    assert moved.shape == data.train_x.shape
    assert (moved - data.train_x).abs().flatten(1).max(1).values.min() > 0.05


def test_random_affine_shifts_by_pixels(generator):
    x = torch.zeros(500, 1, 28, 28)
    x[:, :, 14, 14] = 1
    moved = h.random_affine(x, generator, degrees=0, scale=0, shift=2 / 28)
    rows = (moved.sum((1, 3)) * torch.arange(28)).sum(1) / moved.sum((1, 2, 3))
    assert 1.8 < (rows - 14).abs().max() <= 2.0 + 1e-4


def test_to_moves_every_tensor(data):
    moved = data.to("meta")
    assert {moved.train_x.device.type, moved.train_y.device.type, moved.test_x.device.type} == {"meta"}
