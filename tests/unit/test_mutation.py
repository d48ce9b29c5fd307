"""What `make mutate` demands, without running it: its parts and reasons are about code that is there."""

import ast
from fnmatch import fnmatch

import mutation
import pytest

from study.settings import PROJECT

SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in (PROJECT / "latent_digits").glob("*.py"))


def test_every_part_names_what_is_there():
    there = []
    for path in (PROJECT / "latent_digits").glob("*.py"):
        parts = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        there += [f"{path.stem}.{node.name}" for node in parts]
    for pattern in [pattern for patterns in mutation.PARTS.values() for pattern in patterns]:
        assert any(fnmatch(name, pattern) for name in there), pattern


def test_every_reason_is_about_a_line_that_is_there():
    lines = {line.strip() for line in SOURCE.splitlines()}
    reasons = mutation.known_reasons()
    assert reasons
    for change, reason in reasons.items():
        old = [line.removeprefix("- ") for line in change.splitlines() if line.startswith("- ")]
        assert old, change
        assert set(old) <= lines, change
        assert reason, change


def test_a_mutant_is_of_its_function_or_class():
    assert mutation.name_of("latent_digits.log_prob.x_anneal__mutmut_12") == "log_prob.anneal"
    assert mutation.name_of("latent_digits.mixture.xǁGaussianMixtureǁ_start__mutmut_3") == "mixture.GaussianMixture"


@pytest.mark.parametrize(
    ("outcomes", "reasons", "wrong"),
    [
        (["killed"] * 9 + ["survived"], {"- a": "equal"}, []),
        (["killed"] * 8 + ["timeout", "survived"], {"- a": "equal"}, []),
        (["killed"] * 9 + ["survived"], {}, ["9 survived, without a reason"]),
        (["killed"] * 8 + ["survived"] * 2, {"- a": "equal"}, ["80.0% killed, less than 90%"]),
        (["killed"] * 9 + ["no tests"], {"- a": "equal"}, ["9: no tests"]),
        (["killed"] * 9 + ["not checked"], {"- a": "equal"}, ["9: not checked"]),
        (["killed"] * 9 + ["segfault"], {"- a": "equal"}, ["9: segfault"]),
    ],
)
def test_what_is_demanded_of_a_part(outcomes, reasons, wrong, capsys):
    outcomes = {str(number): outcome for number, outcome in enumerate(outcomes)}
    found = mutation.judge("EM", outcomes, dict.fromkeys(outcomes, "- a"), reasons)
    assert len(found) == len(wrong)
    assert all(words in line for words, line in zip(wrong, found, strict=True))
    assert "of 10 mutants killed" in capsys.readouterr().out
