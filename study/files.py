"""Files that are written whole or not at all, by one process at a time."""

import contextlib
import glob
import hashlib
import io
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm


def atomic_write(path: Path, payload: bytes) -> None:
    """Write `payload` to `path` whole or not at all.

    A temporary file beside it is written, synced, then renamed. Raises OSError (disk full, no
    permission); the old file, if any, is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path, 3600)  # younger ones may be at work, where the path is not locked
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's own 0600 would shut out other readers
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path, age: float = 0.0) -> None:
    """Remove what killed processes left of `path` half written, `age` seconds ago or more."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # another process removes it, or it is not ours
            if time.time() - leftover.stat().st_mtime >= age:
                leftover.unlink()


@contextlib.contextmanager
def file_lock(path: Path, locks: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same `path`.

    If another is, this one waits for it, and says so. locks: the folder of lock files. What a
    killed process left half written is removed. Where the folder cannot be written nothing is
    locked: what cannot be kept there is not shared either.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    lock = FileLock(locks / f".{path.name}.{digest}.lock")
    with contextlib.suppress(OSError):
        locks.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            with tqdm(total=1, desc=f"another process makes {path.name}: waiting", leave=False):
                lock.acquire()
        remove_leftovers(path)
    try:
        yield
    finally:
        lock.release()


def cached(path: Path, compute: Callable[[], dict], read: Callable = dict) -> object:
    """read(compute()), or of what an earlier call of compute left at `path`.

    That is a dict of tensors, numbers, strings, lists and dicts, and is loaded without running any
    code from the file. Its checksum goes with it: a file that is damaged, or that `read` cannot
    make sense of, is computed anew. Where two processes want the same, one computes it, and the
    other waits.
    """
    with file_lock(path, path.parent):
        try:
            checksum, _, payload = path.read_bytes().partition(b"\n")
            if hashlib.sha256(payload).hexdigest().encode() != checksum:
                raise OSError("it is damaged")
            return read(torch.load(io.BytesIO(payload), weights_only=True))
        except FileNotFoundError:
            pass
        except pickle.UnpicklingError:
            warnings.warn(f"{path} is computed again: it holds more than plain data", stacklevel=2)
        except Exception as error:  # whatever a forged file leads to
            warnings.warn(f"{path} is computed again: {error}", stacklevel=2)
        record, buffer = compute(), io.BytesIO()
        torch.save(record, buffer)
        checksum = hashlib.sha256(buffer.getvalue()).hexdigest().encode()
        try:
            atomic_write(path, checksum + b"\n" + buffer.getvalue())
        except OSError as error:
            warnings.warn(f"{path} could not be written, and is not kept: {error}", stacklevel=2)
    return read(record)
