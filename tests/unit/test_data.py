"""Data: what is loaded, from where, and what happens when it cannot be."""

import gzip
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import helpers as h
from latent_digits.data import random_affine
from latent_digits.mnist import CorruptFileError


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
    "an error page": lambda b: b"<html>404</html>",
}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_damaged_file_is_named_and_never_used(tiny_mnist, name, damage, source):
    path = tiny_mnist / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(OSError, match=rf"{name} \(.*\) must have MD5 .*: move it elsewhere") as caught:
        h.load_data(source, root=tiny_mnist, per_class=1)
    assert isinstance(caught.value, CorruptFileError)


@pytest.mark.parametrize(
    "pair", [("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"), ("train-images-idx3-ubyte",) * 2]
)
def test_swapped_files_are_never_used(tiny_mnist, pair):
    folder = tiny_mnist / "MNIST" / "raw"
    first, second = folder / pair[0], folder / pair[1].replace("train", "t10k")
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(CorruptFileError, match=rf"({first.name}|{second.name}) \(.*must have MD5"):
        h.load_data(root=tiny_mnist, per_class=1)


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_folder_in_place_of_a_file_is_named(tiny_mnist, source):
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptFileError, match=rf"{path} must be a file that may be read, got: Is a directory"):
        h.load_data(source, root=tiny_mnist, per_class=1)


def test_a_file_in_place_of_a_folder_is_named(tiny_mnist):
    shutil.rmtree(tiny_mnist / "MNIST" / "raw")
    (tiny_mnist / "MNIST" / "raw").write_text("not a folder", encoding="utf-8")
    with pytest.raises(OSError, match=r"could not be downloaded to .*raw"):
        h.load_data("mnist", root=tiny_mnist, per_class=1)


def test_packed_files_are_read_as_they_are(tiny_mnist):
    expected = h.load_data("mnist", root=tiny_mnist, per_class=3)
    for path in list((tiny_mnist / "MNIST" / "raw").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    found = h.load_data("mnist", root=tiny_mnist, per_class=3)
    assert torch.equal(found.train_x, expected.train_x)
    assert torch.equal(found.test_y, expected.test_y)


@pytest.mark.parametrize(
    "damage",
    [b"", b"no gzip", gzip.compress(b"x" * 900)[:30], gzip.compress(b"another file")],
    ids=["empty", "no gzip", "cut short", "another file"],  # gzip writes the time, and ids must not change
)
def test_a_damaged_packed_file_is_named_and_does_no_harm_beside_a_sound_one(tiny_mnist, damage):
    path = tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(damage)
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"
    path.unlink()
    with pytest.raises(CorruptFileError, match=rf"{packed} \(.* must have MD5"):
        h.load_data("auto", root=tiny_mnist, per_class=1)


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_a_file_that_may_not_be_read_is_named(with_nobody, source):
    folder, become_nobody = with_nobody
    (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").chmod(0)
    become_nobody()
    with pytest.raises(CorruptFileError, match=r"t10k-images-idx3-ubyte must be a file that may be read"):
        h.load_data(source, root=folder, per_class=1)


def test_without_mnist_auto_announces_the_digits_and_mnist_fails(tiny_mnist, capsys):
    (tiny_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    data = h.load_data(root=tiny_mnist, per_class=5)
    assert data.name == "digits"
    out = capsys.readouterr().out
    assert "could not be downloaded" in out
    assert "scikit-learn's digits" in out
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        h.load_data("mnist", root=tiny_mnist)


def test_a_subsample_keeps_images_and_labels_together():
    labels = torch.arange(25)
    x = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    thin = h.Data("mnist", x, labels, x[:9], labels[:9]).subsample(10)
    assert thin.train_y.tolist() == list(range(0, 25, 2))
    assert thin.train_x[:, 0, 0, 0].tolist() == thin.train_y.tolist()
    assert thin.test_y.tolist() == list(range(9))


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
    assert torch.equal(first.train_x, again.train_x)
    assert not torch.equal(first.train_x, other.train_x)
    assert torch.equal(first.test_x, other.test_x)


def test_asking_for_more_than_a_class_has():
    with pytest.raises(ValueError, match=r"per_class must be at most 2000, .* got 2001"):
        h.load_data("digits", per_class=2001)


def test_unknown_source():
    with pytest.raises(ValueError, match="source must be one of 'auto', 'mnist', 'digits', got 'cifar'"):
        h.load_data("cifar")


def test_one_per_class_is_in_order():
    labels = torch.tensor([5, 1, 0, 1, 2, 3, 4, 6, 7, 9, 8, 5])
    assert labels[h.one_per_class(labels)].tolist() == list(range(10))
    assert h.one_per_class(labels)[5] == 0
    with pytest.raises(ValueError, match=r"labels must have every digit, got none of \[8, 9\]"):
        h.one_per_class(torch.arange(8))


def test_random_affine_moves_a_little_and_zero_moves_nothing(generator, data):
    still = random_affine(data.train_x, generator, degrees=0, scale=0, shift=0)
    torch.testing.assert_close(still, data.train_x, atol=1e-5, rtol=0)
    moved = random_affine(data.train_x, generator)
    assert moved.shape == data.train_x.shape
    assert (moved - data.train_x).abs().flatten(1).max(1).values.min() > 0.05


def test_random_affine_shifts_by_pixels(generator):
    x = torch.zeros(500, 1, 28, 28)
    x[:, :, 14, 14] = 1
    moved = random_affine(x, generator, degrees=0, scale=0, shift=2 / 28)
    rows = (moved.sum((1, 3)) * torch.arange(28)).sum(1) / moved.sum((1, 2, 3))
    assert 1.8 < (rows - 14).abs().max() <= 2.0 + 1e-4


def test_to_moves_every_tensor(data):
    moved = data.to("meta")
    assert {moved.train_x.device.type, moved.train_y.device.type, moved.test_x.device.type} == {"meta"}
