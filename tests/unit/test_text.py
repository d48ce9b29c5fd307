"""Text is UTF-8 wherever this runs: each call that reads or writes some says so (CASES, kind C)."""

import ast

import nbformat
import pytest

from study.settings import PROJECT

pytestmark = pytest.mark.cases
FOLDERS = ("", "latent_digits/", "study/", "benchmarks/", "tests/", "tests/*/")
CODE = sorted(path for folder in FOLDERS for path in PROJECT.glob(f"{folder}*.py"))
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
# the place of the mode among the arguments, of what takes one
MODE = {"open": 1, "io.open": 1, "os.fdopen": 1, "codecs.open": 1, "tempfile.NamedTemporaryFile": 0, ".open": 0}
TEXT = (".read_text", ".write_text", "io.TextIOWrapper", "TextIOWrapper", "np.loadtxt", "np.genfromtxt", "np.savetxt")
# these open no text
BINARY = ("archive.open", "Image.open", "gzip.open", "super().open", "webbrowser.open", "os.open", "urllib")
BINARY_UNLESS_SAID = ("tempfile.NamedTemporaryFile",)


def unencoded(tree):
    """Calls that read or write text, of files or of other processes, without a word on its encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = f".{called.rpartition('.')[2]}"
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in given or called.startswith(BINARY):
            continue
        if called in MODE or (last in MODE and isinstance(node.func, ast.Attribute)):
            place = MODE.get(called, MODE.get(last))
            mode = given.get("mode") or (node.args[place] if len(node.args) > place else None)
            mode = "wb" if mode is None and called in BINARY_UNLESS_SAID else mode and ast.unparse(mode)
            if "b" not in (mode or ""):
                yield node
        elif last in TEXT or called in TEXT:
            # the encoding is read_text's first argument, and write_text's second
            if len(node.args) < {".read_text": 1, ".write_text": 2}.get(last, 9):
                yield node
        elif any(
            ast.unparse(given.get(name, ast.Constant(False))) == "True" for name in ("text", "universal_newlines")
        ):
            yield node


@pytest.mark.parametrize("path", [*CODE, *NOTEBOOKS], ids=lambda path: str(path.relative_to(PROJECT)))
def test_c1_text_is_read_and_written_in_a_named_encoding(path):
    if path.suffix == ".ipynb":
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        tree = ast.parse("\n".join(cells))
    else:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in unencoded(tree)] == []


def test_c1_calls_without_an_encoding_are_seen():
    bad = """
open(path)
open(path, "w")
path.open()
path.open(mode="a")
path.read_text()
path.write_text(text)
io.open(path)
os.fdopen(handle, "w")
io.TextIOWrapper(buffer)
tempfile.NamedTemporaryFile("w")
subprocess.run(command, text=True)
subprocess.Popen(command, universal_newlines=True)
np.loadtxt(path)"""
    good = """
open(path, "rb")
path.open("wb")
path.open(mode="rb")
path.read_text("utf-8")
path.write_text(text, encoding="utf-8")
path.read_bytes()
os.fdopen(handle, "wb")
tempfile.NamedTemporaryFile()
archive.open(name)
subprocess.run(command, text=True, encoding="utf-8")
subprocess.run(command)"""
    assert len(list(unencoded(ast.parse(bad)))) == 13
    assert list(unencoded(ast.parse(good))) == []
