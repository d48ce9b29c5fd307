"""MNIST's four files (LeCun et al. 1998): found, verified, and downloaded where they are missing.

What is read has the MD5 that it must have, whatever it is called and wherever it lies: unpacked,
packed by gzip, or within the mnist.npz of Keras. What torchvision left in processed/ is never read.
"""

import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FILES = {  # the MD5 of each, and of what the mirrors have: the same, packed by gzip
    "train-images-idx3-ubyte": (
        "6bbc9ace898e44ae57da46a324031adb",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "train-labels-idx1-ubyte": (
        "a25bea736e30d166cdddb491f175f624",
        "d53e105ee54ea40749a09fcbcd1e9432",
    ),
    "t10k-images-idx3-ubyte": (
        "2646ac647ad5339dbf082846283269ea",
        "9fb629c4189551a2d022fa330f9573f3",
    ),
    "t10k-labels-idx1-ubyte": (
        "27ae3e4e09519cfbb04c329615203637",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}
KERAS = dict(zip(FILES, ("x_train", "y_train", "x_test", "y_test"), strict=True))


class CorruptFileError(OSError):
    """A data file that is not what it should be."""


def read_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of MNIST: images (n, 1, 28, 28) in [0, 1] and digits (n,), 60,000 and 10,000 of each.

    As train_x, train_y, test_x, test_y. root: the folder that has it, in torchvision's layout,
    MNIST/raw/, or in another; what is missing is downloaded. Raises CorruptFileError, which names
    the file, and OSError where no mirror delivers what is missing.
    """
    arrays = []
    for name in FILES:
        content = read_verified(Path(root).expanduser(), name)
        if "images" in name:  # 16 bytes of header, then rows of pixels from 0 to 255
            pixels = torch.from_numpy(
                np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()
            )
            arrays.append(pixels.float() / 255)
        else:  # 8 bytes of header, then digits
            arrays.append(
                torch.from_numpy(np.frombuffer(content, np.uint8, offset=8).astype(np.int64))
            )
    return tuple(arrays)


def read_verified(root: Path, name: str) -> bytes:
    """The content of one file, from wherever it is under `root`, else from a mirror.

    Raises CorruptFileError where `root` has a file of that name that is another. What else is
    there and does not fit is named if no mirror has the file.
    """
    unfit, strangers = [], []
    for path in candidates(places(root), name):
        content, what = examine(path, name)
        if content is not None:
            return content
        unfit.append(f"{path} {what}")
    for path in candidates(places_nearby(root), name):
        content, what = examine(path, name)
        if content is not None:
            return content
        strangers.append(f"{path} {what}")
    if unfit:
        remedy = (
            "move it elsewhere, and it is downloaded, or set MNIST_ROOT to a folder that has MNIST"
        )
        raise CorruptFileError(f"{' and '.join(unfit)} must have MD5 {FILES[name][0]}: {remedy}")
    try:
        path = download(root / "MNIST" / "raw", name)
    except OSError as error:
        strangers += not_read(root)
        there = f". Not read: {', '.join(strangers[:5])}" if strangers else ""
        raise OSError(f"{error}{there}") from error
    content, what = examine(path, name)
    if content is None:
        raise CorruptFileError(f"{path} {what} must have MD5 {FILES[name][0]}: start again")
    return content


# --- where the files are ---


def places(root: Path) -> list[Path]:
    """Folders where users have the files: torchvision's, and those of whoever names another."""
    # a file that was named in place of its folder, and the folder of it that is not read
    if root.name == "processed" or (root.is_file() and is_called(root, *FILES)):
        root = root.parent
    return [root / "MNIST" / "raw", root / "raw", root, root / "MNIST", root / "mnist"]


def places_nearby(root: Path) -> list[Path]:
    """The same one level below `root`, in whatever folder."""
    below = [path for path in entries(root) if path.is_dir() and path.name != "processed"]
    return [folder for path in below for folder in (path / "MNIST" / "raw", path / "raw", path)]


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing where it cannot be looked into."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def is_called(path: Path, *names: str) -> bool:
    """Whether a file has one of these names: as LeCun has it, or as other tools have it."""
    found = re.match(r"(train|t10k|test)[-_. ]?(images|labels)", path.name, re.I)
    if not found:
        return bool(re.fullmatch(r"mnist.*\.npz", path.name, re.I))
    part, what = found[1].lower().replace("test", "t10k"), found[2].lower()
    return any(name.startswith(f"{part}-{what}") for name in names)


def candidates(folders: list[Path], name: str) -> Iterator[Path]:
    """The files of that name in these folders, and in folders of that name within."""
    for folder in folders:
        for path in entries(folder):
            if is_called(path, name):
                inside = [one for one in entries(path) if is_called(one, name)]
                yield from inside or [path]


def not_read(root: Path) -> list[str]:
    """What else is there and may be thought to be MNIST."""
    kinds = r".*\.(csv|pt|pkl|npy|npz|mat|arff|parquet|zip|tar|rar|7z|h5|pickle)(\.gz)?"
    return [
        f"{path} (none of MNIST's four files)"
        for folder in [*places(root), root / "processed", root / "MNIST" / "processed"]
        for path in entries(folder)
        if re.fullmatch(kinds, path.name, re.I) and not is_called(path, *FILES)
    ]


# --- what they are ---


def examine(path: Path, name: str) -> tuple[bytes | None, str]:
    """The unpacked content of a file if it is the one of that name, else None, and what it is."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".npz":
            content = from_keras(path, name)
        elif content[:2] == b"\x1f\x8b":  # as gzip's files begin, whatever they are called
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return None, f"(cannot be unpacked: {error})"
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        return None, f"(not the mnist.npz of Keras: {error})"
    except OSError as error:
        return None, f"must be a file that may be read, got: {error.strerror}, and"
    found = hashlib.md5(content).hexdigest()
    if found == FILES[name][0]:
        return content, ""
    return None, f"({describe_content(content)}, MD5 {found})"


def from_keras(path: Path, name: str) -> bytes:
    """One of the four files, made of the arrays of Keras's mnist.npz."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{KERAS[name]}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    if array.dtype != np.uint8:
        raise ValueError(f"{KERAS[name]} must be uint8, got {array.dtype}")
    header = np.array([0x800 + array.ndim, *array.shape], ">i4")
    return header.tobytes() + array.tobytes()


def describe_content(content: bytes) -> str:
    """What a file is that is not the one it is called."""
    md5 = hashlib.md5(content).hexdigest()
    for name, (unpacked, _) in FILES.items():
        if md5 == unpacked:
            return f"MNIST's {name}"
    if not content.strip(b"\0"):
        return "empty"
    if content.lstrip()[:1] == b"<":
        return "a web page"
    if content.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in place of the file"
    ndim = content[3] if content[:3] == b"\0\0\x08" and len(content) >= 4 else 0
    if ndim not in (1, 3) or len(content) < 4 + 4 * ndim:
        return "not in the format of MNIST's files"
    shape = np.frombuffer(content, ">i4", ndim, offset=4).tolist()
    things = f"{shape[0]:,} labels"
    if ndim == 3:
        things = f"{shape[0]:,} images of {shape[1]} x {shape[2]}"
    size, due = len(content) - 4 - 4 * ndim, int(np.prod(shape, dtype=np.int64))
    if size != due:
        return f"{things}, cut or padded to {size:,} of {due:,} bytes"
    return f"{things}, which are not MNIST's: damaged, or of another dataset"


def download(folder: Path, name: str) -> Path:
    """The packed file, fetched into the folder, whole or not at all.

    A mirror that is silent for ten seconds is left. Raises OSError with what each mirror did.
    """
    pooch.get_logger().setLevel("WARNING")
    fetch, failures = pooch.HTTPDownloader(progressbar=True, timeout=10), []
    for mirror in MIRRORS:
        try:
            url, md5 = f"{mirror}{name}.gz", f"md5:{FILES[name][1]}"
            return Path(pooch.retrieve(url, md5, fname=f"{name}.gz", path=folder, downloader=fetch))
        except (OSError, ValueError) as error:  # ValueError: it is another file
            failures.append(f"{mirror}: {error}")
    raise OSError(f"{name} could not be downloaded to {folder} ({'; '.join(failures)})")
