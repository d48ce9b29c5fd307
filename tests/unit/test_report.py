"""Settings, checks, results: what a notebook says about itself."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
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
    stored = json.loads((settings.output / "results.json").read_text())
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


def test_show_source_shows_the_single_definition(monkeypatch):
    shown = []
    monkeypatch.setattr(study.report, "display", shown.append)
    h.show_source(h.kl_divergence, h.reparameterize)
    assert "def kl_divergence" in shown[0].data
    assert "def reparameterize" in shown[0].data
