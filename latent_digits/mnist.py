"""MNIST's four files (LeCun et al. 1998), verified, and downloaded where they are missing."""

import gzip
import hashlib
import zlib
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


class CorruptFileError(OSError):
    """A data file that is not what it should be."""


def read_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of MNIST: images (n, 1, 28, 28) in [0, 1] and digits (n,), 60,000 and 10,000 of each.

    As train_x, train_y, test_x, test_y. root: the folder that has it in torchvision's layout,
    MNIST/raw/, packed or not; what is missing is downloaded. Raises CorruptFileError, which names
    the file, and OSError where no mirror delivers what is missing.
    """
    arrays = []
    for name in FILES:
        content = read_verified(root / "MNIST" / "raw", name)
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


def read_verified(folder: Path, name: str) -> bytes:
    """The content of one file, from `name` or `name`.gz in the folder, else from a mirror."""
    unfit = []
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            content, found = read_unpacked(path)
            if found == FILES[name][0]:
                return content
            unfit.append(f"{path} ({found})")
    if unfit:
        remedy = (
            "move it elsewhere, and it is downloaded, or set MNIST_ROOT to a folder that has MNIST"
        )
        raise CorruptFileError(f"{' and '.join(unfit)} must have MD5 {FILES[name][0]}: {remedy}")
    return read_unpacked(download(folder, name))[0]


def read_unpacked(path: Path) -> tuple[bytes, str]:
    """A file's content, unpacked, and its MD5, or why it cannot be unpacked.

    Raises CorruptFileError where it cannot be read.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return b"", f"not a gzip file: {error}"
    except OSError as error:
        raise CorruptFileError(
            f"{path} must be a file that may be read, got: {error.strerror}"
        ) from error
    return content, hashlib.md5(content).hexdigest()


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
