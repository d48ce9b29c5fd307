"""Settings, checks, results: what a notebook says about itself."""

import base64
import io
import json
import math
import os
import sys
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

import helpers as h
import study.report
from latent_digits.precision import DTYPES, fast_bfloat16
from study.settings import PROJECT


@pytest.fixture
def report(settings, data):
    return h.Report("07_test", replace(settings, quick=False), data)


def test_settings_come_from_the_environment(tmp_path):
    default = h.Settings.from_environment({})
    assert (default.seed, default.quick, default.source) == (0, False, "auto")
    assert (default.per_class, default.test_size) == (2000, None)
    assert default.output == PROJECT / "report" / "figures"
    fast = fast_bfloat16(torch.device(default.device))
    assert default.dtype == ("bfloat16" if fast else "float32")
    for dtype in DTYPES:
        assert h.Settings.from_environment({"DTYPE": dtype}).dtype == dtype
    environ = {"SEED": "7", "QUICK": "1", "DATA": "digits", "OUTPUT": str(tmp_path), "CACHE": "kept", "DEVICE": "cpu"}
    changed = h.Settings.from_environment(environ)
    assert (changed.seed, changed.quick, changed.source, changed.device) == (7, True, "digits", "cpu")
    assert changed.output == tmp_path
    assert changed.cache == PROJECT / "kept"
    assert changed.per_class < default.per_class
    assert changed.scaled(h.VAEConfig()) == h.VAEConfig().smoke()
    assert default.scaled(h.VAEConfig()) == h.VAEConfig()
    assert not h.Settings.from_environment({"QUICK": "0"}).quick


@pytest.mark.parametrize("seed", ["one", "-1", "1.5"])
def test_a_seed_that_is_no_number(seed):
    with pytest.raises(ValueError, match=f"SEED must be a whole number, .* got '{seed}'"):
        h.Settings.from_environment({"SEED": seed})


def test_a_true_claim_is_printed_with_its_value(report, capsys):
    report.check("ten is more than nine", 10 > 9, "10")
    assert capsys.readouterr().out == "✓ ten is more than nine  (10)\n"


def test_a_false_claim_raises(report):
    with pytest.raises(AssertionError, match=r"✗ nine is more than ten  \(9\)"):
        report.check("nine is more than ten", 9 > 10, "9")
    assert report.checks == []


def test_quick_skips_visibly_all_but_what_always_holds(settings, data, capsys):
    report = h.Report("07_test", settings, data)
    capsys.readouterr()
    report.check("needs training", False)
    assert capsys.readouterr().out == "– skipped in a QUICK run: needs training\n"
    with pytest.raises(AssertionError):
        report.check("holds always", False, always=True)
    assert [c["passed"] for c in report.checks] == [None]


def test_the_report_says_which_data_and_scale(settings, data, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(study.report, "display", shown.append)
    h.Report("07_test", settings, data)
    out = capsys.readouterr().out
    assert "digits: 400 training, 200 test images" in out
    assert "QUICK" in out
    assert "prose of this notebook speaks of MNIST" in shown[0].data
    h.Report("07_test", replace(settings, quick=False), replace(data, name="mnist"))
    assert "full scale" in capsys.readouterr().out
    assert len(shown) == 1


def test_results_of_all_notebooks_share_one_file(settings, data):
    for name, value in (("07_test", 0.12345), ("08_test", 3), ("07_test", 0.98765)):
        report = h.Report(name, replace(settings, quick=False, seed=4), data)
        report.result("share", value, "%", digits=3)
        report.check("yes", True)
        table = report.finish()
    assert table.loc["share", "value"] == "0.988"
    stored = json.loads((settings.output / "results.json").read_text(encoding="utf-8"))
    assert list(stored) == ["07_test", "08_test"]
    assert stored["07_test"]["results"] == [{"result": "share", "value": 0.988, "unit": "%", "digits": 3}]
    assert (stored["07_test"]["data"], stored["07_test"]["seed"], stored["07_test"]["quick"]) == ("digits", 4, False)
    assert stored["08_test"]["checks"] == [{"claim": "yes", "value": "", "passed": True}]


def test_figures_are_saved_under_the_notebooks_number_when_all_went_well(report):
    figure = plt.figure()
    report.figure(figure, "curves")
    plt.close(figure)
    report.result("answer", 42)
    assert not report.settings.output.exists()
    report.finish()
    assert (report.settings.output / "07_curves.png").read_bytes().startswith(b"\x89PNG")


def test_by_data(report):
    assert report.by_data(mnist=1, digits=2) == 2


def test_a_figure_is_shown_once_with_its_words(report, monkeypatch):
    shown = []
    monkeypatch.setattr(study.report, "display", shown.append)
    for words, alt in (("Two  curves\n that fall.", "Two curves that fall."), ("", "the curves")):
        figure = plt.figure()
        report.figure(figure, "the_curves", words, headline=True)
        assert not plt.fignum_exists(figure.number)  # else the kernel shows it, too
        _, metadata = shown.pop()._repr_mimebundle_()
        assert metadata["image/png"]["alt"] == alt
    report.finish()
    stored = json.loads((report.settings.output / "results.json").read_text(encoding="utf-8"))["07_test"]["figures"]
    assert stored == [
        {"name": "the_curves", "file": "07_the_curves.png", "cell": None, "alt": "the curves", "headline": True}
    ]


@pytest.mark.cases
def test_d6_numbers_of_numpy_and_torch_and_broken_letters_are_kept(report):
    figure, _ = plt.subplots()
    report.figure(figure, "one", headline=np.bool_(True))
    facts = {"a": np.float32(1), "b": np.arange(2), "c": torch.arange(2), "d": [np.int64(3)]}
    report.explorer("map", torch.zeros(2, 1, 2, 2), **facts)
    report.check("half a pair \ud800", True, "\ud800", always=True)
    report.finish()
    folder = report.settings.output
    stored = json.loads((folder / "explore_map.json").read_text(encoding="utf-8"))
    assert {name: stored[name] for name in facts} == {"a": 1, "b": [0, 1], "c": [0, 1], "d": [3]}
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))[report.notebook]
    assert kept["figures"][0]["headline"] is True
    assert kept["checks"][0]["claim"] == "half a pair ?"


@pytest.mark.cases
@pytest.mark.parametrize("fact", [object(), {"a": {1, 2}}, [len], {(1, 2): 3}])
def test_d6_facts_that_no_file_can_hold_are_refused_by_name(report, fact):
    with pytest.raises(ValueError, match="places must be numbers, words, or lists or arrays of them, got a"):
        report.explorer("map", torch.zeros(2, 1, 2, 2), places=fact)


@pytest.mark.cases
def test_d1_a_report_may_be_named_by_a_path(settings, data):
    assert h.Report(Path("notebooks") / "05_mine.ipynb", settings, data).notebook == "05_mine"
    assert h.Report("05_mine", settings, data).notebook == "05_mine"


@pytest.mark.cases
def test_d6_pixels_that_no_picture_can_hold_are_refused(report):
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from 0 to 255"):
        report.explorer("map", torch.tensor([0.0, 255.0]).view(2, 1, 1, 1))


def test_an_explorer_keeps_its_images_row_by_row(report):
    images = torch.arange(70.0)[:, None, None, None].expand(-1, 1, 2, 3) / 100
    report.explorer("walk", images, steps=7)
    assert not report.settings.output.exists()
    report.finish()
    stored = json.loads((report.settings.output / "explore_walk.json").read_text(encoding="utf-8"))
    assert stored["steps"] == 7
    sprites = stored["sprites"]
    assert (sprites["columns"], sprites["width"], sprites["height"]) == (64, 3, 2)
    sheet = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(sprites["source"].partition(",")[2]))))
    for index in (0, 63, 64, 69):
        left, top = 3 * (index % 64), 2 * (index // 64)
        assert (sheet[top : top + 2, left : left + 3] == round(255 * index / 100)).all()


# numbers of all kinds, cells that run twice, and what fails at the end (CASES, kinds D and G)

NUMBERS = {
    "float32": np.float32(0.5),
    "float64": np.float64(0.5),
    "array of one": np.array([0.5]),
    "tensor": torch.tensor(0.5),
    "tensor of one": torch.tensor([[0.5]]),
    "with a gradient": torch.tensor(0.5, requires_grad=True),
    "half": torch.tensor(0.5, dtype=torch.bfloat16),
    "fraction": Fraction(1, 2),
    "decimal": Decimal("0.5"),
    "column": pd.Series([0.5]),
}


def stored(report):
    report.finish()
    return json.loads((report.settings.output / "results.json").read_text(encoding="utf-8"))[report.notebook]


@pytest.mark.cases
@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_d2_numbers_of_numpy_and_torch_are_numbers(report, value):
    report.check("c", True, value)
    report.check("d", np.bool_(True), np.float32(0.5))
    report.check("e", torch.tensor([True]), 0)
    report.result("r", value, digits=np.int64(3))
    report.result("s", value, digits=torch.tensor(2))
    entry = stored(report)
    assert [row["value"] for row in entry["checks"][1:]] == ["0.5", "0"]
    assert [(row["value"], row["digits"]) for row in entry["results"]] == [(0.5, 3), (0.5, 2)]


@pytest.mark.cases
@pytest.mark.parametrize("value", ["many", "0.5", None, [1.0], np.ones(2), torch.ones(2), 1j, object(), math.nan])
def test_d2_what_is_no_number_is_refused_by_name_at_its_call(report, value):
    with pytest.raises(ValueError, match=r"accuracy must be a (finite )?number, got "):
        report.result("accuracy", value)
    with pytest.raises(ValueError, match=r"digits must be "):
        report.result("accuracy", 1, digits="two")
    assert stored(report)["results"] == []


@pytest.mark.cases
def test_d2_several_truth_values_are_refused_by_name(report):
    for passed in (torch.ones(2, dtype=torch.bool), np.zeros(0, bool)):
        with pytest.raises(TypeError, match="passed must be True or False, got"):
            report.check("all", passed)


@pytest.mark.cases
def test_g3_a_cell_that_is_run_twice_leaves_its_results_once(report):
    for value in (1, 2):
        report.result("first", value)
        report.result("second", value)
        report.check("claim", True, f"{value}")
        report.check("other", True, f"{value}")
    entry = stored(report)
    assert [(row["result"], row["value"]) for row in entry["results"]] == [("first", 2), ("second", 2)]
    assert [(row["claim"], row["value"]) for row in entry["checks"]] == [("claim", "2"), ("other", "2")]
    with pytest.raises(AssertionError):
        report.check("claim", False)
    assert [row["claim"] for row in stored(report)["checks"]] == ["other"]  # it holds no longer


@pytest.mark.cases
def test_g2_what_was_kept_is_listed_whatever_the_source_calls_it(report):
    name = "from_a_variable"
    report.figure(plt.figure(), 'single')  # fmt: skip
    report.figure(figure=plt.gcf(), name=name)
    plt.close("all")
    files = [(figure["name"], figure["file"]) for figure in stored(report)["figures"]]
    assert files == [("single", "07_single.png"), ("from_a_variable", "07_from_a_variable.png")]


@pytest.mark.cases
@pytest.mark.parametrize("name", ["07_test-Copy1", "mine", "07_other"])
def test_d1_notebooks_of_one_number_or_none_do_not_take_each_others_figures(report, settings, data, name):
    other = h.Report(name, replace(settings, quick=False), data)
    for one in (report, other):
        one.figure(plt.figure(), "curves")
        plt.close("all")
    first, second = stored(report)["figures"], stored(other)["figures"]
    assert first[0]["file"] == "07_curves.png"
    assert second[0]["file"] == f"{name}_curves.png"
    assert len(list(settings.output.glob("*.png"))) == 2


@pytest.mark.cases
def test_g4_a_dataset_of_ones_own_is_named_as_such(settings, data, monkeypatch):
    shown = []
    monkeypatch.setattr(study.report, "display", shown.append)
    h.Report("07_test", settings, replace(data, name="my scans"))
    assert "a dataset of one's own, my scans" in shown[0].data
    assert "scikit-learn" not in shown[0].data


@pytest.mark.cases
@pytest.mark.parametrize("content", [b"<<<<<<< HEAD\n{}", b"\xff\xfe", b"[]", b'{"01": 3}', b""])
def test_d3_a_damaged_results_file_costs_itself(report, content):
    report.settings.output.mkdir(parents=True)
    (report.settings.output / "results.json").write_bytes(content)
    report.result("answer", 42)
    with pytest.warns(UserWarning, match=r"results\.json is begun anew"):
        report.finish()
    assert (report.settings.output / "results.json.damaged").read_bytes() == content
    assert stored(report)["results"][0]["value"] == 42


@pytest.mark.cases
def test_d3_a_picture_that_cannot_be_written_costs_itself(report):
    (report.settings.output / "07_taken.png").mkdir(parents=True)
    for name in ("taken", "free"):
        report.figure(plt.figure(), name)
    plt.close("all")
    report.result("answer", 42)
    with pytest.warns(UserWarning, match="the figure taken could not be written"):
        entry = stored(report)
    assert [figure["name"] for figure in entry["figures"]] == ["free"]
    assert entry["results"][0]["value"] == 42


@pytest.mark.cases
def test_d2_what_is_no_figure_or_no_name_is_refused_at_its_call(report):
    for figure, name in ((None, "curves"), (plt.figure(), 3), (plt.figure(), "a/b")):
        with pytest.raises(ValueError, match=r"(figure|name) must be .*, got"):
            report.figure(figure, name)
    plt.close("all")


@pytest.mark.cases
def test_d1_a_copy_is_called_by_its_own_name_and_leaves_its_part(settings, data, tmp_path):
    part = tmp_path / "02_mine.json"
    report = h.Report("02_amortized_vae", replace(settings, quick=False, part=part), data)
    report.result("answer", 42)
    assert stored(report)["results"] == json.loads(part.read_text(encoding="utf-8"))["results"]
    assert report.notebook == "02_mine"


@pytest.mark.cases
def test_c4_a_terminal_of_another_alphabet_costs_a_letter(report, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding="cp1252"))
    report.check("π is more than three", True)
    sys.stdout.flush()
    assert buffer.getvalue() == b"? ? is more than three\n".replace(b"\n", os.linesep.encode())
