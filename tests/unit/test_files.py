"""Files are written whole or not at all, and damaged ones are noticed."""

import os

import pytest
import torch

from study.files import atomic_write, cached, file_lock


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda b: b""]
)
def test_a_damaged_file_is_noticed_and_rebuilt(tmp_path, damage):
    path = tmp_path / "kept.pt"
    expected = cached(path, lambda: {"weights": torch.arange(1000.0)})["weights"]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="is computed again: it is damaged"):
        found = cached(path, lambda: {"weights": torch.arange(1000.0)})["weights"]
    assert torch.equal(found, expected)
    assert torch.equal(cached(path, lambda: pytest.fail("it was not kept"))["weights"], expected)


def test_a_full_disk_costs_the_cache_but_not_the_result(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"could not be written, and is not kept: .*No space left"):
        result = cached(tmp_path / "kept.pt", lambda: {"value": 1})
    assert result == {"value": 1}
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_cache_files_cannot_run_code(tmp_path, capfd):
    class Harmful:
        def __reduce__(self):
            return (print, ("code from a cache file ran",))

    path = tmp_path / "kept.pt"
    cached(path, lambda: {"value": Harmful()})  # with the right checksum
    with pytest.warns(UserWarning, match="is computed again: it holds more than plain data"):
        assert cached(path, lambda: {"value": 1}) == {"value": 1}
    assert cached(path, dict) == {"value": 1}
    assert "ran" not in capfd.readouterr().out


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_atomic_write_removes_what_a_killed_process_left_and_nothing_that_is_being_written(tmp_path):
    old, new = tmp_path / ".file.a.part", tmp_path / ".file.b.part"
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    atomic_write(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", new.name}


def test_within_a_lock_nobody_else_is_at_work_so_that_leftovers_go_at_once(tmp_path):
    path, half = tmp_path / "file", tmp_path / ".file.a.part"
    half.write_bytes(b"half")
    with file_lock(path, tmp_path / "locks"):
        assert not half.exists()
