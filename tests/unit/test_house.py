"""How the code is laid out: which names, how long, how many arguments, and nothing that happens on import."""

import ast
from collections import Counter

import pytest

from study.settings import PROJECT

MODULES = sorted([*PROJECT.glob("latent_digits/*.py"), *PROJECT.glob("study/*.py")])
# signatures of the contract, and constructors
MANY_ARGUMENTS = {"infer_latents", "importance_log_prob", "load_data", "__init__"}
LONG = {"em.py": "the E step, the M step and what both need belong together"}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions():
    for path in MODULES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node


def names_of(node):
    targets = node.targets if isinstance(node, ast.Assign) else [node]
    return [name for target in targets if (name := getattr(target, "name", getattr(target, "id", None)))]


def test_a_name_is_defined_in_one_module_only():
    counts = Counter(name for path in MODULES for node in tree(path).body for name in names_of(node))
    assert [name for name, count in counts.items() if count > 1] == []


def test_helpers_defines_nothing():
    (door,) = [node for node in tree(PROJECT / "helpers.py").body if isinstance(node, ast.With)]
    assert {type(node) for node in door.body} == {ast.ImportFrom}
    assert all(alias.asname == alias.name for node in door.body for alias in node.names)


def is_start(node):
    """Whether it is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__main__"], ids=lambda path: path.stem)
def test_importing_does_nothing(path):
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.Expr)
    for node in [node for node in tree(path).body if not is_start(node)]:
        assert isinstance(node, allowed), ast.unparse(node)
        assert not isinstance(node, ast.Expr) or isinstance(node.value, ast.Constant), ast.unparse(node)


def test_modules_and_functions_are_short_and_take_few_arguments():
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350 or path.name in LONG, path
    for path, node in functions():
        arguments = [a.arg for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
        assert len(arguments) <= 6 or node.name in MANY_ARGUMENTS, (path, node.name)
        words = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
        assert node.end_lineno - node.lineno + 1 - words <= 41, (path, node.name)


def test_files_of_tests_have_names_of_their_own():
    """Else pytest cannot collect them together, as `pytest -m cases` does."""
    names = [path.name for path in PROJECT.glob("tests/**/test_*.py")]
    assert sorted(names) == sorted(set(names))
