"""Files that are written whole or not at all, by one process at a time."""

import contextlib
import glob
import hashlib
import io
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm


def atomic_write(path: Path, payload: bytes, locks: Path | None = None) -> None:
    """Write `payload` to `path` whole or not at all.

    A temporary file beside it is written, synced, then renamed. locks: as for `file_lock`, where
    other processes may write to the same path. Raises OSError (disk full, no permission); the old
    file, if any, is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path, locks) if locks else contextlib.nullcontext():
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


@contextlib.contextmanager
def file_lock(path: Path, locks: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same `path`.

    If another is, this one waits for it, and says so. locks: the folder of lock files. What a
    killed process left half written is removed. Where the folder cannot be written nothing is
    locked: what cannot be kept there is not shared either.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    lock = FileLock(locks / f".{path.name}.{digest}.lock")
    try:
        locks.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            with tqdm(total=1, desc=f"another process makes {path.name}: waiting", leave=False):
                lock.acquire()
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            leftover.unlink(missing_ok=True)
    except OSError:
        pass
    try:
        yield
    finally:
        lock.release()


def cached(path: Path, compute: Callable[[], dict]) -> dict:
    """`compute()`, or its result as an earlier call left it at `path`.

    The result is a dict of tensors, numbers, strings, lists and dicts, and is read back without
    running any code from the file. Its checksum goes with it: a damaged file is computed anew.
    Where two processes want the same, one computes it, and the other waits.
    """
    with file_lock(path, path.parent):
        try:
            checksum, _, payload = path.read_bytes().partition(b"\n")
            if hashlib.sha256(payload).hexdigest().encode() == checksum:
                return torch.load(io.BytesIO(payload), weights_only=True)
            warnings.warn(f"{path} is damaged and is computed again", stacklevel=2)
        except FileNotFoundError:
            pass
        except pickle.UnpicklingError:
            warnings.warn(
                f"{path} holds more than plain data, is not loaded, and is computed again",
                stacklevel=2,
            )
        except OSError as error:
            warnings.warn(f"{path} cannot be read ({error}): it is computed again", stacklevel=2)
        result = compute()
        buffer = io.BytesIO()
        torch.save(result, buffer)
        payload = buffer.getvalue()
        try:
            atomic_write(path, hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        except OSError as error:
            warnings.warn(
                f"{path} could not be written ({error}): the result is used, but not kept",
                stacklevel=2,
            )
    return result
