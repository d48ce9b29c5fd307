"""MNIST's four files, fetched and verified."""

import gzip
import hashlib
import http.client
import queue
import threading
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from study.cache import one_at_a_time, write_whole

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DamagedFile(OSError):
    """A data file that is not what it should be."""


def fetch_mnist(folder: Path) -> None:
    """See that MNIST's four files are in `folder`, intact; download those that are missing.

    Raises DamagedFile, which names the file, and OSError when no mirror delivers within five minutes, or when what it
    delivers cannot be written.
    """
    mnist = import_datasets().MNIST
    packed_md5 = dict(mnist.resources)
    deadline = time.monotonic() + 300
    for name, md5 in MNIST_MD5.items():
        path = folder / name
        found = md5_of(path)
        if found is None:
            urls = [f"{mirror}{name}.gz" for mirror in mnist.mirrors]
            with one_at_a_time(path):
                found = md5_of(path)  # another process may have brought it meanwhile
                if found is None:
                    content = gzip.decompress(download(urls, packed_md5[f"{name}.gz"], deadline))
                    try:
                        write_whole(path, content)
                    except OSError as error:
                        remedy = "make room, or set MNIST_ROOT to a folder that you may write to"
                        raise OSError(f"{path} cannot be written ({error.strerror}): {remedy}") from error
                    found = md5_of(path)
        if found != md5:
            raise DamagedFile(f"{path} is damaged (MD5 {found}, not {md5}): delete it, and it is downloaded anew")


def md5_of(path: Path) -> str | None:
    """The MD5 of a file, or None where there is none. Raises DamagedFile where it cannot be read."""
    try:
        return hashlib.md5(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "put a file there that you may read, or remove it, and it is downloaded anew"
        raise DamagedFile(f"{path} cannot be read ({error.strerror}): {remedy}") from error


def download(urls: Iterable[str], md5: str, deadline: float) -> bytes:
    """The content with this MD5 from the first of `urls` that delivers it before `deadline` (time.monotonic()).

    Raises OSError with what each mirror answered.
    """
    failures = []
    for url in urls:
        try:
            content = answer_of(url, deadline - time.monotonic())
            if hashlib.md5(content).hexdigest() == md5:
                return content
            failures.append(f"{url}: wrong content")
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
    raise OSError("; ".join(failures))


def answer_of(url: str, seconds: float) -> bytes:
    """What `url` answers within `seconds`. Raises OSError or HTTPException, TimeoutError when it takes longer.

    In a thread of its own: no trickle of bytes, in headers or in names' servers, can hold us longer than that.
    """
    answers = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "latent-digits"})
            with urllib.request.urlopen(request, timeout=10) as response:
                answers.put(response.read())
        except Exception as error:  # whatever it is, it is raised where somebody waits
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise TimeoutError("too slow") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def import_datasets():
    """torchvision.datasets, also where torchvision's compiled part does not fit this torch.

    The wheel on PyPI wants CUDA; beside a CPU-only torch its import stops at operators that no
    dataset uses. Declaring them, without an implementation, lets the rest load.
    """
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import datasets

        datasets.declared_operators = library  # the declarations last as long as this object
    return datasets


def read_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All of MNIST: train_x (60000, 1, 28, 28), train_y (60000,), test_x (10000, 1, 28, 28), test_y (10000,)."""
    arrays = []
    for train in (True, False):
        dataset = import_datasets().MNIST(root, train=train)
        arrays += [dataset.data.unsqueeze(1).float() / 255, dataset.targets]
    return tuple(arrays)
