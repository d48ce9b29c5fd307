"""What is stored tells nothing about a machine or a person, and no secret."""

import getpass
import json
import re
import socket
import struct

import nbformat
import pytest

from study.settings import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))

# what a stored notebook must not tell

SECRETS = re.compile(
    r"ghp_\w{20}|github_pat_\w{20}|AKIA[0-9A-Z]{16}|-----BEGIN|hf_\w{30}|sk-\w{20}|xox[bp]-"
    r"|(?:password|passwd|secret|api_key|token)\s*[=:]\s*[\"']?\w{6}",
    re.I,
)
MACHINE = re.compile(
    r"(?<![\w.:/])/(?:home|root|tmp|Users|usr|work|mnt|private|opt|var|srv|data)/\w|[A-Z]:\\\\?\w"
    r"|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b|[\w.+-]+@[\w-]+\.\w{2,}"
)


def told(text):
    """What in a text is about a machine or a person, or secret."""
    found = [match[0] for pattern in (SECRETS, MACHINE) for match in pattern.finditer(text)]
    names = {getpass.getuser(), socket.gethostname()} - {"root", "localhost"}
    return found + [name for name in names if re.search(rf"\b{re.escape(name)}\b", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebooks_carry_no_paths_names_or_secrets(path):
    """In sources, metadata and outputs; the bytes of pictures are looked at below."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    assert told(json.dumps(notebook, ensure_ascii=False).replace("\\n", "\n")) == []


def test_what_is_told_is_noticed():
    for text in (
        "/home/ann/work/x.py",
        'File "/tmp/ipykernel_1/2.py"',
        r"C:\\Users\\ann",
        "ann@example.org",
        "token = 'abcdef123'",
        "10.0.0.12",
        "ghp_" + 30 * "a",
    ):
        assert told(text), text
    assert told("https://keras.io/examples/home/ and 3/4 of the data/ folder") == []


def test_pictures_carry_nothing_but_the_name_of_their_software():
    for path in (PROJECT / "figures").glob("*.png"):
        content, position = path.read_bytes(), 8
        while position < len(content):
            length, kind = struct.unpack(">I4s", content[position : position + 8])
            if kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"):
                assert content[position + 8 : position + 17] == b"Software\0", path.name
            position += 12 + length
