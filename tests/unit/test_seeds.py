"""What many seeds say, against scipy and by hand; which tasks a sweep has."""

import json

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from scipy import stats

import helpers as h
from study import seeds, sweep
from study.settings import PROJECT
from study.stamps import SEEDS, code_hash


def part(**values):
    rows = [{"result": name, "value": value, "unit": "nats", "digits": 1} for name, value in values.items()]
    return {"results": rows}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A seeds.json of three seeds of one notebook."""
    found = [("05_log_probability", seed, part(a=seed + 1.0, b=2 * seed, c=0.1)) for seed in range(3)]
    everything = seeds.gather({"data": "mnist"}, found)
    path = tmp_path / "seeds.json"
    path.write_text(json.dumps(everything), encoding="utf-8")
    monkeypatch.setattr(seeds, "SEEDS_FILE", path)
    return everything


def test_every_result_is_kept_by_seed(kept):
    assert kept["stamp"] == {"data": "mnist", "seeds": [0, 1, 2]}
    by_seed = {"0": 1.0, "1": 2.0, "2": 3.0}
    assert kept["notebooks"]["05_log_probability"]["a"] == {"unit": "nats", "digits": 1, "by_seed": by_seed}


def test_mean_and_range_are_shown_with_the_digits_of_the_result(kept):
    table = h.over_seeds("05_log_probability", "a", "b")
    assert table.loc["a"].tolist() == ["2.0", "1.0", "3.0", "nats", 3, "1.0"]
    assert table.loc["b"].tolist() == ["2.0", "0.0", "4.0", "nats", 3, "2.0"]
    with pytest.raises(ValueError, match=r"result must be one of 05_log_probability in seeds\.json, got 'd'"):
        h.over_seeds("05_log_probability", "d")


def test_two_results_are_compared_within_each_seed(kept):
    table = h.compare_over_seeds("05_log_probability", {"a over c": ("a", "c"), "a over 0": ("a",)})
    low, high = stats.t.interval(0.95, 2, 1.9, stats.sem([0.9, 1.9, 2.9]))
    row = table.loc["a over c"]
    assert list(row[["mean", "lowest", "highest", "unit", "trainings"]]) == ["1.9", "0.9", "2.9", "nats", 3]
    assert row["95 % interval of the mean (Student’s t)"] == f"−{-low:.1f} to {high:.1f}"
    assert row["from 0"] == "indistinguishable"
    assert list(table.loc["a over 0", ["mean", "lowest", "highest"]]) == list(
        h.over_seeds("05_log_probability", "a").loc["a", ["mean", "lowest", "highest"]]
    )


def test_a_difference_that_is_the_same_under_every_seed_is_told(tmp_path, monkeypatch):
    found = [
        ("01_supervised_cnn", seed, part(a=seed + 1.0, b=float(seed), c=seed + 0.01 * seed**2)) for seed in range(5)
    ]
    (tmp_path / "seeds.json").write_text(json.dumps(seeds.gather({"data": "mnist"}, found)), encoding="utf-8")
    monkeypatch.setattr(seeds, "SEEDS_FILE", tmp_path / "seeds.json")
    table = h.compare_over_seeds("01_supervised_cnn", {"a over c": ("a", "c"), "c over b": ("c", "b")})
    assert table.loc["a over c", "from 0"] == "different"
    assert list(table.loc["c over b", ["mean", "trainings"]]) == ["0.1", 5]


def test_without_a_sweep_its_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "SEEDS_FILE", tmp_path / "seeds.json")
    with pytest.raises(FileNotFoundError, match="make it with `make sweep`"):
        h.over_seeds("05_log_probability", "a")


@pytest.mark.parametrize("count", [2, 5, 40])
def test_the_interval_is_students(count):
    values = np.random.default_rng(0).normal(size=count)
    expected = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert seeds.interval(values) == pytest.approx(expected)
    with pytest.raises(ValueError, match="number of seeds"):
        seeds.interval(values[:1])


def test_the_figure_has_a_row_for_each_headline_that_is_there(tmp_path):
    names = [(notebook, result) for notebook, results in seeds.HEADLINES.items() for result in results]
    sizes = []
    for count in (1, len(names)):
        found = [(notebook, seed, part(**{result: seed})) for notebook, result in names[:count] for seed in range(5)]
        (tmp_path / "seeds.png").write_bytes(seeds.draw_seeds(seeds.gather({}, found)))
        sizes.append(Image.open(tmp_path / "seeds.png").size)
    assert sizes[1][1] > 3 * sizes[0][1]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("0,2, 5-7", [0, 2, 5, 6, 7]), ("1,0-2", [1, 0, 2])],
)
def test_seeds_are_read(word, expected):
    assert sweep.read_seeds(word) == expected


@pytest.mark.parametrize("word", ["", "4-0", "-1", "0-", "a", "0--4", "1.5", "4294967296", "0-4294967295", "٣"])
def test_other_words_are_no_seeds(word):
    with pytest.raises(ValueError, match="SEEDS must be seeds from 0 on, and ranges of them, as in SEEDS=0-4,7, got"):
        sweep.read_seeds(word)


def notebook(*sources, tags=()):
    cells = [new_code_cell(source) for source in sources]
    for cell, tag in zip(cells, tags, strict=False):
        cell.metadata["tags"] = [tag]
    return new_notebook(cells=cells)


def test_cells_that_show_what_seeds_say_are_left_out_of_stamps():
    bare, more = notebook("a = 1"), notebook("h.over_seeds()", "a = 1", tags=[SEEDS])
    assert code_hash(bare) == code_hash(more)
    assert code_hash(bare) != code_hash(notebook("h.over_seeds()", "a = 1", tags=["other"]))


def test_a_task_is_found_again_by_all_that_decides_it(tmp_path, monkeypatch):
    paths = [tmp_path / "01_a.ipynb", tmp_path / "02_b.ipynb"]
    for path in paths:
        nbformat.write(notebook("h.kl_divergence"), path)
    for name in ("SEED", "DEVICE", "DTYPE", "QUICK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA", "digits")
    tasks = sweep.find_tasks(paths, [0, 1])
    assert [task.name for task in tasks] == ["01_a, seed 0", "02_b, seed 0", "01_a, seed 1", "02_b, seed 1"]
    keys = {task.key for task in tasks}
    assert len(keys) == 4
    assert sweep.find_tasks(paths, [0, 1]) == tasks
    monkeypatch.setenv("DTYPE", "bfloat16")  # it is float32 always
    assert sweep.find_tasks(paths, [0, 1]) == tasks
    monkeypatch.setenv("QUICK", "1")
    quick = sweep.find_tasks(paths, [0])
    assert not keys & {task.key for task in quick}
    monkeypatch.delenv("QUICK")
    nbformat.write(notebook("h.kl_divergence", "more = 1"), paths[0])
    changed = {task.key for task in sweep.find_tasks(paths, [0, 1])}
    assert len(keys & changed) == 2
    monkeypatch.setattr(sweep, "versions", lambda: {"torch": "0.1"})
    assert not changed & {task.key for task in sweep.find_tasks(paths, [0, 1])}


def test_seeds_are_not_stamped_with_code_that_changed_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "01_a.ipynb"
    nbformat.write(notebook("a = 1"), path)
    for name, value in {"DATA": "digits", "QUICK": "1", "CACHE": f"{tmp_path}", "OUTPUT": f"{tmp_path}"}.items():
        monkeypatch.setenv(name, value)

    def edited_meanwhile(work, tasks, jobs):
        nbformat.write(notebook("a = 2"), path)
        for task in tasks:
            yield task, {"key": task.key, "part": part(a=1.0), "seconds": 1, "processor": "any"}

    monkeypatch.setattr(sweep, "locally", edited_meanwhile)
    with pytest.raises(ValueError, match="the code has changed while the sweep ran: start it again"):
        sweep.sweep([path], [0, 1], 1, None)
    assert not (tmp_path / "seeds.json").exists()
    monkeypatch.setattr(
        sweep, "locally", lambda work, tasks, jobs: iter([(t, {"error": "none is left"}) for t in tasks])
    )
    nbformat.write(notebook("a = 1"), path)
    assert sweep.sweep([path], [0, 1], 1, None)  # what was executed before is kept
    assert (tmp_path / "seeds.json").exists()


def test_every_headline_is_a_result():
    results = json.loads((PROJECT / "figures" / "results.json").read_text(encoding="utf-8"))
    for name, headlines in seeds.HEADLINES.items():
        assert set(headlines) <= {row["result"] for row in results[name]["results"]}


@pytest.mark.parametrize("lacking", ["key", "part", "processor"])
def test_a_record_that_lacks_something_is_not_believed(tmp_path, lacking):
    task = sweep.Task("01_a.ipynb", {"SEED": "0"}, "key")
    record = {"key": "key", "part": {"results": []}, "seconds": 1.0, "processor": "one"}
    path = sweep.record_path(tmp_path, task)
    path.write_text(json.dumps(record), encoding="utf-8")
    assert sweep.read_record(tmp_path, task) == record
    path.write_text(json.dumps(record | {"part": None}), encoding="utf-8")
    assert sweep.read_record(tmp_path, task)["part"] is None
    del record[lacking]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert sweep.read_record(tmp_path, task) is None
