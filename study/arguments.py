"""What a command is given: which notebooks, found and looked at before anything takes time."""

import glob
from collections.abc import Sequence
from pathlib import Path

import nbformat

PROJECT = Path(__file__).resolve().parents[1]
# in an order in which none waits long for what another trains, as the Makefile has it; then others
ORDER = ("02", "03", "01", "06", "05", "04")


def find_notebooks(given: Sequence[str | Path] = (), folder: Path | None = None) -> list[Path]:
    """The notebooks of these names, patterns or folders; all of notebooks/ where none is given.

    Raises ValueError for what matches none, for two of one name, of which the report could show
    one, and for what is no notebook.
    """
    folder = folder or PROJECT / "notebooks"
    found = {}
    for path in [path for word in given for path in matches(word)] if given else in_order(folder):
        if path.stem == "index":
            raise ValueError(f"{path} must have another name: index is the report's first page")
        before = found.setdefault(path.stem, path)
        if before.resolve() != path.resolve():
            raise ValueError(f"notebooks must have names of their own, got {before} and {path}")
    if not found:
        raise ValueError(f"{folder} must have a notebook, got none")
    for path in found.values():
        require_notebook(path)
    return list(found.values())


def in_order(folder: Path) -> list[Path]:
    """The notebooks of a folder: known ones in their order, then the others by name."""

    def place(path: Path) -> tuple[int, str]:
        number = path.stem.partition("_")[0]
        return ORDER.index(number) if number in ORDER else len(ORDER), path.stem

    return sorted(folder.glob("[!.]*.ipynb"), key=place)


def matches(word: str | Path) -> list[Path]:
    """The notebooks that one word names. Raises ValueError where there are none."""
    path = Path(word).expanduser()
    if path.is_dir():
        found = in_order(path)
    elif path.exists():
        found = [path]
    else:  # a pattern that no shell has resolved
        found = sorted(map(Path, glob.glob(str(path))), key=lambda one: one.stem)
        found = [one for one in found if one.suffix == ".ipynb"]
    if not found:
        there = ", ".join(one.name for one in in_order(PROJECT / "notebooks"))
        raise ValueError(f"NOTEBOOKS must name notebooks, got {str(word)!r}: there are {there}")
    return found


def require_notebook(path: Path) -> None:
    """Raise ValueError for a file that is no notebook."""
    try:
        if path.suffix != ".ipynb":
            raise ValueError("its name does not end in .ipynb")
        nbformat.read(path, as_version=4)
    except Exception as error:  # whatever a broken file leads to
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"{path} must be a notebook: {reason}") from error
