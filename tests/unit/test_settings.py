"""Settings and notebooks' names: what is wrong with them is said at the start (CASES, kinds D and F)."""

import nbformat
import pytest
from nbformat.v4 import new_notebook

import helpers as h
from study.arguments import ORDER, find_notebooks
from study.settings import PROJECT

pytestmark = pytest.mark.cases


@pytest.mark.parametrize("word", ["1", "yes", "true", "on", "Yes", "TRUE", "On", " on "])
def test_f3_quick_takes_every_yes(word):
    assert h.Settings.from_environment({"QUICK": word}).quick is True


@pytest.mark.parametrize("word", ["", "0", "no", "false", "off", "No", "FALSE", "Off"])
def test_f3_quick_takes_every_no(word):
    assert h.Settings.from_environment({"QUICK": word}).quick is False


@pytest.mark.parametrize("word", ["2", "maybe", "-1", "quick", "yesno", "None"])
def test_f3_quick_refuses_other_words_by_name(word):
    with pytest.raises(ValueError, match=rf"QUICK must be one of 1, yes, true, on, 0, no, false, off, got '{word}'"):
        h.Settings.from_environment({"QUICK": word})


@pytest.mark.parametrize("seed", [str(2**32), "9" * 30, "9" * 5000, "٣٣٣٣٣٣٣٣٣٣٣٣", "1e3", " 1"])
def test_d5_a_seed_that_a_generator_refuses_is_refused_at_the_start(seed):
    with pytest.raises(ValueError, match=r"SEED must be a whole number, from 0 to 4294967295, as in SEED=1, got '"):
        h.Settings.from_environment({"SEED": seed})


def test_d5_the_largest_seed_is_taken_by_all_that_the_notebooks_seed():
    seed = h.Settings.from_environment({"SEED": str(2**32 - 1)}).seed
    h.make_generator(1_000 * (seed + 1) + seed)
    h.GaussianMixture(2, random_state=seed).fit([[0.0], [1.0], [2.0], [3.0]])


@pytest.mark.parametrize("name", ["OUTPUT", "CACHE"])
@pytest.mark.parametrize("below", ["", "/figures"])
def test_d3_a_file_in_place_of_a_folder_is_refused_at_the_start(tmp_path, name, below):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"{name} must be a folder, got .*file{below}: .*file is no folder"):
        h.Settings.from_environment({name: f"{tmp_path}/file{below}"})
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["OUTPUT", "CACHE"])
def test_d3_a_link_to_nowhere_and_a_name_too_long_are_refused_at_the_start(tmp_path, name):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for below in ("", "/figures"):
        with pytest.raises(ValueError, match=rf"{name} must be a folder, got .*link{below}: .*link is no folder"):
            h.Settings.from_environment({name: f"{tmp_path}/link{below}"})
    with pytest.raises(ValueError, match=f"{name} must be a folder, got a name of more than 255 bytes"):
        h.Settings.from_environment({name: f"{tmp_path}/{'x' * 256}/figures"})
    (tmp_path / "folder").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "folder")
    h.Settings.from_environment({name: f"{tmp_path}/good/figures"})


def test_d3_folders_that_may_not_be_written_are_told_at_the_start(with_nobody):
    folder, become_nobody = with_nobody
    folder.chmod(0o555)
    become_nobody()
    with pytest.raises(PermissionError, match=r"OUTPUT must be a folder that may be written, got .*deep"):
        h.Settings.from_environment({"OUTPUT": f"{folder}/very/deep"})
    with pytest.warns(UserWarning, match=r"CACHE=.*kept may not be written: what is trained is not kept"):
        h.Settings.from_environment({"OUTPUT": "/tmp", "CACHE": f"{folder}/kept"})  # it may be read by many


def test_d3_a_folder_that_is_not_there_yet_is_not_made_before_there_is_something_in_it(tmp_path):
    h.Settings.from_environment({"OUTPUT": f"{tmp_path}/a/b", "CACHE": f"{tmp_path}/c"})
    assert list(tmp_path.iterdir()) == []


# which notebooks


@pytest.fixture
def folder(tmp_path):
    """Six known notebooks, a seventh, a renamed one, a copy."""
    for name in (
        "01_a", "02_b", "03_c", "04_d", "05_e", "06_f", "07_mine", "renamed", "02_b-Copy1", "with a space"
    ):  # fmt: skip
        nbformat.write(new_notebook(), tmp_path / f"{name}.ipynb")
    (tmp_path / ".hidden.ipynb").write_bytes(b"")
    return tmp_path


def test_d1_all_notebooks_are_taken_known_ones_first(folder):
    names = [path.stem for path in find_notebooks((), folder)]
    assert names[0] == "02_b"
    assert [name[:2] for name in names if name[:2].isdigit() and "Copy" not in name] == [*ORDER, "07"]
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    assert f"number,{' '.join(ORDER)}," in text
    assert {"07_mine", "renamed", "02_b-Copy1", "with a space"} < set(names)
    assert len(names) == 10


def test_f4_names_patterns_and_folders_are_taken(folder):
    def stems(*given):
        return [path.stem for path in find_notebooks(given)]

    assert stems(folder / "07_mine.ipynb", folder / "01_a.ipynb") == ["07_mine", "01_a"]
    assert stems(f"{folder}/0[12]_*") == ["01_a", "02_b", "02_b-Copy1"]
    assert len(stems(folder)) == 10
    assert stems(folder / "01_a.ipynb", f"{folder}/01*") == ["01_a"]  # once


@pytest.mark.parametrize("word", ["notebooks/09*", "nowhere.ipynb", "README*"])
def test_f4_a_name_that_matches_nothing_is_refused(word, monkeypatch):
    monkeypatch.chdir(PROJECT / "tests")
    with pytest.raises(
        ValueError, match=r"NOTEBOOKS must name notebooks, got .*: there are .*01_supervised_cnn\.ipynb"
    ):
        find_notebooks([word])


def test_d1_what_cannot_be_run_is_refused_at_the_start(folder):
    (folder / "other").mkdir()
    nbformat.write(new_notebook(), folder / "other" / "01_a.ipynb")
    with pytest.raises(ValueError, match=r"names of their own, got .*01_a.ipynb and .*other.01_a\.ipynb"):
        find_notebooks([folder / "01_a.ipynb", folder / "other" / "01_a.ipynb"])
    (folder / "broken.ipynb").write_bytes(b"<<<<<<< HEAD\n")
    (folder / "mine.py").write_bytes(b"print()")
    for name in ("broken.ipynb", "mine.py"):
        with pytest.raises(ValueError, match=rf"{name} must be a notebook: "):
            find_notebooks([folder / name])
    nbformat.write(new_notebook(), folder / "index.ipynb")
    with pytest.raises(ValueError, match=r"index\.ipynb must have another name"):
        find_notebooks([folder / "index.ipynb"])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="must name notebooks"):
        find_notebooks([folder / "empty"])
