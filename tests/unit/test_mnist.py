"""MNIST on disk: in the shapes that users have it in, and what is said of what is none of it (CASES, kind B)."""

import gzip
import io
import shutil

import numpy as np
import pytest
import torch

import helpers as h
from latent_digits import mnist
from latent_digits.mnist import CorruptFileError

pytestmark = pytest.mark.cases
NAMES = list(mnist.FILES)


def lay_out(root, place, rename=lambda name: name, convert=lambda content: content):
    """Put the four files elsewhere under root, under other names, converted."""
    raw = root / "MNIST" / "raw"
    contents = {name: (raw / name).read_bytes() for name in NAMES}
    shutil.rmtree(root / "MNIST")
    for name, content in contents.items():
        path = root / place / rename(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(convert(content))
    return contents


def pack_like_keras(root, place="mnist.npz", **changed):
    """Put a mnist.npz like that of Keras in place of the four files."""
    contents = lay_out(root, "elsewhere")
    shutil.rmtree(root / "elsewhere")
    arrays = {}
    for name, key in mnist.KERAS.items():
        values = np.frombuffer(contents[name], np.uint8, offset=16 if "images" in name else 8)
        arrays[key] = values.reshape(-1, 28, 28) if "images" in name else values
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays | changed)
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_bytes(buffer.getvalue())


def dotted(name):
    return name.replace("-idx", ".idx")


SHAPES = {
    "the folder itself": ("", str, bytes),
    "raw/": ("raw", str, bytes),
    "MNIST/": ("MNIST", str, bytes),
    "mnist/, as on other systems": ("mnist", str, bytes),
    "one folder level off": ("datasets/MNIST/raw", str, bytes),
    "a folder of another name": ("lecun", str, bytes),
    "packed": ("MNIST/raw", lambda name: f"{name}.gz", gzip.compress),
    "packed, in the folder itself": ("", lambda name: f"{name}.gz", gzip.compress),
    "packed, under the name of the unpacked": ("MNIST/raw", str, gzip.compress),
    "unpacked by a browser, under the name of the packed": ("MNIST/raw", lambda name: f"{name}.gz", bytes),
    "a dot in place of a hyphen": ("MNIST/raw", dotted, bytes),
    "a dot, in the folder itself, packed": ("", lambda name: f"{dotted(name)}.gz", gzip.compress),
    "a folder for each, as Kaggle has it": ("", lambda name: f"{name}/{name}", bytes),
    "a folder for each, dotted inside": ("raw", lambda name: f"{name}/{dotted(name)}", bytes),
    "test for t10k": ("", lambda name: name.replace("t10k", "test"), bytes),
    "downloaded twice": ("", lambda name: f"{name} (1).gz", gzip.compress),
    "capitals, an underscore, a suffix": ("", lambda name: name.replace("-", "_").upper() + ".BIN", bytes),
}


@pytest.mark.parametrize(("place", "rename", "convert"), SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_b2_verified_files_are_read_in_whatever_shape_they_are(tiny_mnist, place, rename, convert, source):
    expected = h.load_data("mnist", root=tiny_mnist, per_class=3)
    lay_out(tiny_mnist, place, rename, convert)
    before = sorted(tiny_mnist.rglob("*"))
    found = h.load_data(source, root=tiny_mnist, per_class=3)
    assert found.name == "mnist"
    assert torch.equal(found.train_x, expected.train_x)
    assert torch.equal(found.test_y, expected.test_y)
    assert sorted(tiny_mnist.rglob("*")) == before  # nothing is moved, unpacked or written


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "MNIST/processed", "MNIST/raw/t10k-labels-idx1-ubyte"])
def test_b3_a_root_that_names_a_folder_within_is_understood(tiny_mnist, place):
    (tiny_mnist / "MNIST" / "processed").mkdir()
    assert h.load_data("mnist", root=tiny_mnist / place, per_class=1).name == "mnist"


@pytest.mark.parametrize("place", ["mnist.npz", "keras/mnist.npz"])
def test_b2_the_file_of_keras_is_verified_and_read(tiny_mnist, place):
    expected = h.load_data("mnist", root=tiny_mnist, per_class=3)
    pack_like_keras(tiny_mnist, place)
    found = h.load_data("mnist", root=tiny_mnist, per_class=3)
    assert torch.equal(found.train_x, expected.train_x)
    assert torch.equal(found.test_x, expected.test_x)
    assert torch.equal(found.train_y, expected.train_y)
    assert h.load_data("mnist", root=tiny_mnist / place, per_class=1).name == "mnist"  # the file itself is named


@pytest.mark.parametrize(
    "changed",
    [
        {"x_train": np.zeros((30, 28, 28), np.uint8)},
        {"y_test": np.arange(20)},
        {"x_test": np.array([{"code": 1}], dtype=object)},
    ],
    ids=["another dataset", "another type", "objects, which could run code"],
)
def test_b3_another_file_of_that_name_is_not_believed(tiny_mnist, changed):
    pack_like_keras(tiny_mnist, **changed)
    with pytest.raises(CorruptFileError, match=r"mnist\.npz \(.*must have MD5"):
        h.load_data("auto", root=tiny_mnist, per_class=1)


def test_b1_what_stands_in_processed_is_never_read(tiny_mnist):
    expected = h.load_data("mnist", root=tiny_mnist, per_class=3)
    others = torch.zeros(30, 28, 28, dtype=torch.uint8), torch.arange(30) % 10
    for folder in (tiny_mnist / "MNIST" / "processed", tiny_mnist / "processed"):
        folder.mkdir()
        for name in ("training.pt", "test.pt"):
            torch.save(others, folder / name)
        for name in NAMES:
            shutil.copy(tiny_mnist / "MNIST" / "raw" / name, folder)
    assert torch.equal(h.load_data("mnist", root=tiny_mnist, per_class=3).train_x, expected.train_x)
    shutil.rmtree(tiny_mnist / "MNIST" / "raw")
    with pytest.raises(OSError, match=r"could not be downloaded .*Not read: .*training\.pt"):
        h.load_data("mnist", root=tiny_mnist, per_class=1)


def fashion(count, ndim):
    """Another dataset in the format of MNIST's files."""
    shape = (count, 28, 28)[:ndim]
    return np.array([0x800 + ndim, *shape], ">i4").tobytes() + np.full(shape, 7, np.uint8).tobytes()


MISFITS = {
    "another dataset": (fashion(60_000, 3), r"60,000 images of 28 x 28, which are not MNIST's"),
    "other labels": (fashion(60_000, 1), r"60,000 labels, which are not MNIST's"),
    "cut short": (fashion(60_000, 3)[:1000], r"60,000 images of 28 x 28, cut or padded to 984 of 47,040,000 bytes"),
    "a web page": (b"<!DOCTYPE html><title>403</title>", "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    "nothing": (b"", "empty"),
    "another format": (b"PK\3\4 some archive", "not in the format"),
    "half a packed file": (gzip.compress(b"x" * 900)[:20], "cannot be unpacked"),
}


@pytest.mark.parametrize(("content", "what"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("place", ["MNIST/raw", ""])
@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_b3_what_does_not_fit_is_named_as_what_it_is(tiny_mnist, content, what, place, source):
    lay_out(tiny_mnist, place)
    path = tiny_mnist / place / NAMES[0]
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=what) as caught:
        h.load_data(source, root=tiny_mnist, per_class=1)
    assert str(path) in str(caught.value)
    assert not any(word in str(caught.value) for word in ("delete", "remove", "rm "))
    assert path.read_bytes() == content


def test_b3_one_of_mnists_files_under_the_name_of_another_is_told(tiny_mnist):
    raw = tiny_mnist / "MNIST" / "raw"
    shutil.copy(raw / NAMES[2], raw / NAMES[0])
    with pytest.raises(CorruptFileError, match=rf"{NAMES[0]} \(MNIST's {NAMES[2]}, MD5"):
        h.load_data(root=tiny_mnist, per_class=1)


def test_b3_another_dataset_beside_mnist_does_no_harm_and_alone_it_is_named(tiny_mnist, capsys):
    beside = tiny_mnist / "FashionMNIST" / "raw"
    beside.mkdir(parents=True)
    for name in NAMES:
        (beside / name).write_bytes(fashion(60_000, 3 if "images" in name else 1))
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"
    shutil.rmtree(tiny_mnist / "MNIST")
    assert h.load_data("auto", root=tiny_mnist, per_class=1).name == "digits"
    said = capsys.readouterr().out
    assert f"{beside / NAMES[0]} (60,000 images of 28 x 28, which are not MNIST's" in said
    assert "Using scikit-learn's digits" in said


@pytest.mark.parametrize("name", ["mnist_train.csv", "mnist.pkl.gz", "archive.zip", "mnist_784.arff"])
def test_b3_other_forms_are_named_where_the_digits_take_their_place(tiny_mnist, capsys, name):
    shutil.rmtree(tiny_mnist / "MNIST")
    (tiny_mnist / name).write_bytes(b"something")
    assert h.load_data("auto", root=tiny_mnist, per_class=1).name == "digits"
    assert f"Not read: {tiny_mnist / name} (none of MNIST's four files)" in capsys.readouterr().out


def test_b3_a_damaged_file_beside_a_sound_one_elsewhere_does_no_harm(tiny_mnist):
    raw = tiny_mnist / "MNIST" / "raw"
    shutil.copy(raw / NAMES[0], tiny_mnist)
    (raw / NAMES[0]).write_bytes(b"damaged")
    assert h.load_data("mnist", root=tiny_mnist, per_class=1).name == "mnist"


def test_b4_a_tilde_is_the_users_own_folder_in_every_path(tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_mnist))
    monkeypatch.setenv("USERPROFILE", str(tiny_mnist))
    monkeypatch.chdir(tmp_path)
    assert h.load_data("mnist", root="~", per_class=1).name == "mnist"
    assert h.load_data("mnist", root="~/MNIST", per_class=1).name == "mnist"
    monkeypatch.setenv("MNIST_ROOT", "~/MNIST/raw")
    assert h.load_data("mnist", per_class=1).name == "mnist"
    for settings in (
        h.Settings.from_environment({"OUTPUT": "~/figures", "CACHE": "~/kept"}),
        h.Settings(output="~/figures", cache="~/kept"),
    ):
        assert (settings.output, settings.cache) == (tiny_mnist / "figures", tiny_mnist / "kept")
    h.recall(h.kl_divergence, torch.ones(2, 3), torch.ones(2, 3), cache="~/recalled")
    assert (tiny_mnist / "recalled").is_dir()
    assert not [*tmp_path.rglob("~")]


@pytest.mark.parametrize("name", ["OUTPUT", "CACHE"])
def test_b4_a_user_who_is_not_known_is_named(name):
    with pytest.raises(ValueError, match=f"{name} must be a path, got '~nobody-at-all/x'"):
        h.Settings.from_environment({name: "~nobody-at-all/x"})
