"""What `make mutate` demands, without running it: its parts and reasons are about code that is there."""

import ast

import mutation
import pytest

from study.cache import SOURCE


def test_every_part_is_made_of_functions_and_classes_that_mutmut_takes():
    there = {node.name: node for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for name in [name for names in mutation.PARTS.values() for name in names]:
        assert name in there
        assert isinstance(there[name], ast.ClassDef) or not there[name].decorator_list, f"{name}: would be left out"


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
    assert mutation.name_of("latent_digits.log_prob.x_anneal__mutmut_12") == "anneal"
    assert mutation.name_of("latent_digits.mixture.xǁGaussianMixtureǁ_start__mutmut_3") == "GaussianMixture"


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
