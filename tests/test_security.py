"""Nothing that is loaded runs code, JupyterLab keeps its token, versions are pinned, stored notebooks tell no tales."""

import ast
import getpass
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml

import helpers as h

CODE = sorted([*h.PROJECT.glob("*.py"), *h.PROJECT.glob("tests/*.py"), *h.PROJECT.glob("benchmarks/*.py")])
NOTEBOOKS = sorted((h.PROJECT / "notebooks").glob("*.ipynb"))
WORKFLOW = yaml.safe_load((h.PROJECT / ".github" / "workflows" / "test.yml").read_text())


def trees():
    """The syntax trees of all code, that of notebooks too, by file name."""
    for path in CODE:
        yield path.name, ast.parse(path.read_text())
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        yield path.name, ast.parse("\n".join(cells))


def imports(tree):
    """The names of the top-level packages that a tree imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def unsafe(tree):
    """What in a tree can run code from a file."""
    loaders = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in ("torch.load", "jit.load", "torch.jit.load") and options.get("weights_only") != "True":
                yield ast.unparse(node)
            if called.endswith(".load") and called.split(".")[0] in loaders | {"np", "numpy", "yaml"}:
                yield ast.unparse(node)
            if called in ("eval", "exec", "pd.read_pickle", "os.system"):
                yield ast.unparse(node)
    yield from loaders.intersection(imports(tree)) - {"pickle"}


def test_nothing_is_loaded_that_could_run_code():
    found = {name: list(unsafe(tree)) for name, tree in trees()}
    assert {name: calls for name, calls in found.items() if calls} == {}
    bad = (
        "torch.load(path)\ntorch.load(path, weights_only=False)\npickle.load(file)\nnp.load(path)\neval(x)\nimport dill"
    )
    assert len(list(unsafe(ast.parse(bad)))) == 6


def pins(name):
    lines = (h.PROJECT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_pinned_and_everything_imported_is_required():
    names = set()
    for line in pins("requirements.txt") + pins("constraints.txt"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    for line in pins("requirements.txt"):
        names.add(line.split("==")[0].lower().replace("_", "-"))
    ours = {path.stem for path in CODE} | {"pythae", "tests"}
    distributions = packages_distributions()
    for name, tree in trees():
        for package in set(imports(tree)) - sys.stdlib_module_names - ours:
            providers = {provider.lower().replace("_", "-") for provider in distributions.get(package, [package])}
            assert providers & names, f"{name} imports {package}, which requirements.txt does not pin"


def test_nothing_compiles_grammars_while_it_is_imported():
    assert {"plotly", "nbformat"} <= set(sys.modules)
    assert "rfc3987_syntax" not in sys.modules, "it takes seconds in every kernel: see constraints.txt"


def test_dependencies_are_audited_and_tested_in_all_their_versions():
    """The workflow runs pip-audit, and tests every Python and the ends of the range of torch that are allowed."""
    project = tomllib.loads((h.PROJECT / "pyproject.toml").read_text())["project"]
    commands = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    assert any("pip-audit" in command and "requirements.txt" in command for command in commands)
    cases = WORKFLOW["jobs"]["versions"]["strategy"]["matrix"]["include"]
    pythons = {classifier.rsplit(" ", 1)[1] for classifier in project["classifiers"]}
    assert {case["python"] for case in cases} == pythons == {"3.11", "3.12", "3.13"}
    assert project["requires-python"] == f">={min(pythons)}"
    (torch_range,) = [line for line in project["dependencies"] if line.startswith("torch>")]
    oldest, newest = re.fullmatch(r"torch>=([\d.]+),<=([\d.]+)", torch_range).groups()
    (pinned,) = [line.split("==")[1] for line in pins("requirements.txt") if line.startswith("torch==")]
    assert {case["torch"] for case in cases} == {oldest, pinned, newest}


def test_a_warning_from_our_own_code_is_an_error(tmp_path):
    path = tmp_path / "kept.pt"
    path.write_bytes(b"damaged")
    with pytest.raises(UserWarning, match="is damaged and is computed again"):
        h.cached(path, dict)


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
    for path in (h.PROJECT / "figures").glob("*.png"):
        content, position = path.read_bytes(), 8
        while position < len(content):
            length, kind = struct.unpack(">I4s", content[position : position + 8])
            if kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"):
                assert content[position + 8 : position + 17] == b"Software\0", path.name
            position += 12 + length


def test_jupyterlab_keeps_its_token(tmp_path):
    """Started as `make lab` starts it: who has no token gets nothing, and only this machine can ask."""
    plain = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "JUPYTER_TOKEN")}
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "lab", f"BIN={Path(sys.executable).parent}"],
        cwd=h.PROJECT, env=plain, capture_output=True, text=True, check=True,
    )  # fmt: skip
    command = told.stdout.splitlines()[-1].split()
    assert command[1] == "lab"
    (tmp_path / "play").mkdir()
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        [*command, "--no-browser", "--allow-root", "--port=0"],
        cwd=tmp_path, env=plain | folders, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (found := list((tmp_path / "runtime").glob("jpserver-*.json"))):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        about = json.loads(found[0].read_text())
        assert len(about["token"]) >= 40
        assert about["hostname"] in ("localhost", "127.0.0.1")
        address = about["url"].replace("localhost", "127.0.0.1") + "api/contents"
        while True:
            try:
                urllib.request.urlopen(address, timeout=30)
                pytest.fail("JupyterLab answered without a token")
            except urllib.error.HTTPError as error:
                refused = error.code
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.2)
        assert refused == 403
        asked = urllib.request.Request(address, headers={"Authorization": f"token {about['token']}"})
        assert urllib.request.urlopen(asked, timeout=30).status == 200
    finally:
        server.terminate()
        server.wait(60)
        log.close()
