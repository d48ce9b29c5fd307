"""Nothing that is loaded runs code; versions are pinned, audited and tested."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import nbformat
import pytest
import yaml

from study.files import cached
from study.settings import PROJECT

FOLDERS = ("", "latent_digits/", "study/", "tests/**/", "benchmarks/")
CODE = sorted(path for folder in FOLDERS for path in PROJECT.glob(f"{folder}*.py"))
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
WORKFLOW = yaml.safe_load((PROJECT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))


@functools.cache
def trees():
    """The syntax trees of all code, that of notebooks too, by file name."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in CODE}
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        sources[path.name] = "\n".join(cells)
    return [(name, ast.parse(source)) for name, source in sources.items()]


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
    yield from loaders.intersection(imports(tree)) - {"pickle", "joblib"}


def test_nothing_is_loaded_that_could_run_code():
    found = {name: list(unsafe(tree)) for name, tree in trees()}
    assert {name: calls for name, calls in found.items() if calls} == {}
    bad = (
        "torch.load(path)\ntorch.load(path, weights_only=False)\npickle.load(file)\nnp.load(path)\neval(x)\nimport dill"
    )
    assert len(list(unsafe(ast.parse(bad)))) == 6


def pins(name):
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_requirement_is_pinned_and_everything_imported_is_required():
    names = set()
    required = pins("requirements.txt") + pins("requirements-cluster.txt")
    for line in required + pins("constraints.txt"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    for line in required:
        names.add(line.split("==")[0].lower().replace("_", "-"))
    ours = {path.stem for path in CODE} | {"pythae", "tests", "latent_digits", "study"}
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
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
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
    with pytest.raises(UserWarning, match="is computed again: it is damaged"):
        cached(path, dict)
