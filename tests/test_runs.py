"""The runs table, the checks before and after a notebook, and the workflow, on toy notebooks.

Every test has a repository of its own in a temporary folder; the project's notebooks are not run.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy
import pandas
import pytest

from xlcore import results, runs
from xlcore.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]

PARAMETERS = """\
# %% [markdown]
# # A toy

# %% tags=["parameters"]
shots: int = 8  # labelled examples per class
lr: float = 0.1  # step size
seeds: list[int] = [1, 2, 3]  # draws
length: int | None = None
languages: list[str] | str = "all"  # codes, or all
quick: bool = False
data: str = "auto"
profile: str = "pocket"
run_dir: str = ""  # where to write
"""

STUDY = """
# %%
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace

from xlcore.runs import finish

with open("ran.log", "a") as log:
    log.write(f"NAME {shots}\\n")

# %%
row = dict(study="NAME", task="topics", data=data, backbone="toy", method="prompt", seed=1)
row |= dict(shots=shots, metric="accuracy")
rows = [row | dict(language=code, value=v) for code, v in [("eng", 1 / 3), ("fra", 2 / 3)]]

# %%
FAULT

# %%
finish(rows, run_dir, device="cpu", weights=str(Path.cwd() / "model.bin"), python=sys.prefix)
"""

PROFILE = """\
description: a toy
data: auto
datasets: {embedded: pocket_topics, real: sib200}
defaults: {lr: 5e-3}
runs:
  - notebook: 01_toy
    grid: {shots: [4, 8]}
  - notebook: 02_toy
    parameters: {shots: 2}
  - notebook: 99_final_figures
"""


def write_notebook(root: Path, name: str, fault: str = "pass") -> Path:
    path = root / "notebooks" / f"{name}.py"
    path.write_text(PARAMETERS + STUDY.replace("NAME", name).replace("FAULT", fault))
    return path


def build(folder: Path, monkeypatch) -> Path:
    """A small repository, with its own copy of the modules that a kernel imports."""
    library = folder / "library"
    (library / "xlcore").mkdir(parents=True)
    for name in ("errors.py", "results.py", "runs.py"):
        shutil.copy(REPOSITORY / "xlcore" / name, library / "xlcore" / name)
    (library / "xlcore" / "__init__.py").touch()
    (library / "xlcore" / "figures.py").touch()
    root = folder / "repository"
    for name in ("profiles", "notebooks", "data"):
        (root / name).mkdir(parents=True)
    (root / "data" / "topics.tsv").write_text("a text\n")
    for name in ("01_toy", "02_toy", "99_final_figures"):
        write_notebook(root, name)
    (root / "profiles" / "toy.yaml").write_text(PROFILE)
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.delenv("XLCORE_DATA", raising=False)
    monkeypatch.setattr(runs, "PACKAGE", library / "xlcore")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def root(tmp_path, monkeypatch):
    return build(tmp_path, monkeypatch)


@pytest.fixture
def real_data(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    monkeypatch.setenv("XLCORE_DATA", str(folder))
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def one_run(root: Path, fault: str = "pass", profile: str = "one") -> runs.Run:
    """The only run of a profile whose notebook does `fault` in its third cell."""
    write_notebook(root, "01_toy", fault)
    text = PROFILE[: PROFILE.index("defaults")] + "runs: [{notebook: 01_toy}]\n"
    (root / "profiles" / f"{profile}.yaml").write_text(text)
    return runs.table(profile)[0]


def row(**changes):
    keys = dict.fromkeys(results.REQUIRED, "x") | {"seed": 1, "shots": 8, "value": 0.5}
    return keys | changes


# ---- parameters ----------------------------------------------------------------------------------


def checked(**given):
    """The values that a run of 01_toy gets, with these in its profile."""
    text = PROFILE[: PROFILE.index("defaults")]
    text += f"runs: [{{notebook: 01_toy, parameters: {json.dumps(given)}}}]\n"
    Path("profiles/one.yaml").write_text(text)
    return runs.table("one")[0].parameters


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("shots", True, r"shots = True: .*integer"),
        ("shots", 1.5, r"shots = 1.5: .*integer"),
        ("shots", "8", r"shots = '8': .*integer"),
        ("lr", False, r"lr = False: .*number"),
        ("quick", 1, r"quick = 1: .*boolean"),
        ("seeds", [1, "2"], r"seeds.1 = '2': .*integer"),
        ("seeds", 1, r"seeds = 1: .*list"),
        ("length", 2.0, r"length = 2.0: .*integer"),
        ("languages", 3, r"languages.* = 3: .*list"),
    ],
)
def test_wrong_type_is_refused(root, name, value, told):
    with pytest.raises(InputError, match=f"notebook 01_toy: {told}"):
        checked(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("length", None), ("length", 5), ("languages", ["eng"]), ("languages", "eng"), ("seeds", [])],
)
def test_right_type_is_kept(root, name, value):
    assert checked(**{name: value})[name] == value


def test_int_becomes_float_where_a_float_is_wanted(root):
    assert type(checked(lr=1)["lr"]) is float


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("shots = 8", "'shots = 8' is not a parameter"),
        ("shots: int", "'shots: int' is not a parameter"),
        ("shots: int = 4 + n", "is not a parameter"),
        ("shots: dict = {}", "is not a parameter"),
        ("shots: int = 'eight'", "shots = 'eight': .*integer"),
    ],
)
def test_bad_parameters_cell_is_refused(root, line, told):
    edit(root / "notebooks" / "01_toy.py", "shots: int = 8", line)
    with pytest.raises(InputError, match=f"notebook 01_toy: .*{told}"):
        checked()


def test_annotations_call_nothing(root):
    edit(root / "notebooks" / "01_toy.py", "shots: int", "shots: open('ran.log', 'w')")
    with pytest.raises(InputError, match="is not a parameter"):
        runs.parameters("01_toy")
    assert not (root / "ran.log").exists()


def test_notebook_without_parameters_cell_is_refused(root):
    edit(root / "notebooks" / "01_toy.py", ' tags=["parameters"]', "")
    with pytest.raises(InputError, match="0 cells tagged parameters"):
        runs.parameters("01_toy")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-3", 0.005),
        ("1.5E3", 1500.0),
        ("[nob, en]", ["nob", "en"]),
        ("true", True),
        ("null", None),
        ("all", "all"),
        ("-3", -3),
        ("facebook/xglm-564M", "facebook/xglm-564M"),
    ],
)
def test_override_is_read_as_yaml(text, value):
    assert runs.parse_overrides([f"x={text}"]) == {"x": value}


@pytest.mark.parametrize(
    "pairs", [["shots"], ["=4"], ["a b=1"], ["x=[1"], ["x=1", "x=2"], [".x=1"], ["a.=1"]]
)
def test_bad_override_is_refused(pairs):
    with pytest.raises(InputError):
        runs.parse_overrides(pairs)


# ---- table ---------------------------------------------------------------------------------------


def test_table_is_the_cartesian_product(root):
    edit(root / "profiles" / "toy.yaml", "shots: [4, 8]", "shots: [4, 8], languages: [eng, [a, b]]")
    assert [run.id for run in runs.table("toy")][:4] == [
        f"pocket_topics-01_toy-{shots}-{languages}"
        for shots in (4, 8)
        for languages in ("eng", "a-b")
    ]


def test_defaults_reach_every_run_and_the_entry_wins(root):
    edit(root / "profiles" / "toy.yaml", "lr: 5e-3", "lr: 5e-3, shots: 1")
    assert [(r.parameters["lr"], r.parameters["shots"]) for r in runs.table("toy")] == [
        (0.005, 4),
        (0.005, 8),
        (0.005, 2),
        (0.005, 1),
    ]


def test_override_wins_and_narrows_the_grid(root):
    assert [(r.id, r.parameters["shots"]) for r in runs.table("toy", shots=16)] == [
        ("pocket_topics-01_toy-16", 16),
        ("pocket_topics-02_toy", 16),
        ("pocket_topics-99_final_figures", 16),
    ]


def test_runs_that_an_override_makes_equal_are_one(root):
    again = "- {notebook: 01_toy, name: again, parameters: {shots: 6}}\n  - notebook: 02_toy"
    edit(root / "profiles" / "toy.yaml", "- notebook: 02_toy", again)
    ids = [r.id.removeprefix("pocket_topics-") for r in runs.table("toy")]
    assert ids == ["01_toy-4", "01_toy-8", "again", "02_toy", "99_final_figures"]
    ids = [r.id.removeprefix("pocket_topics-") for r in runs.table("toy", shots=16)]
    assert ids == ["01_toy-16", "02_toy", "99_final_figures"]


def test_an_override_for_one_notebook_leaves_the_others_and_wins_there(root):
    given = runs.parse_overrides(["02_toy.shots=3", "shots=16"])
    assert [(r.id, r.parameters["shots"]) for r in runs.table("toy", **given)] == [
        ("pocket_topics-01_toy-16", 16),
        ("pocket_topics-02_toy", 3),
        ("pocket_topics-99_final_figures", 16),
    ]
    alone = runs.table("toy", **runs.parse_overrides(["02_toy.shots=3"]))
    assert [r.fingerprint for r in alone[:2]] == [r.fingerprint for r in runs.table("toy")[:2]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("02_tooy.shots", "unknown notebook of profile toy '02_tooy'; did you mean 02_toy"),
        ("02_toy.shot", "unknown parameter of notebook 02_toy 'shot'; did you mean shots"),
        ("02_toy.data", "unknown parameter of notebook 02_toy 'data'"),
    ],
)
def test_an_override_for_no_notebook_or_parameter_is_refused(root, name, message):
    with pytest.raises(InputError, match=message):
        runs.table("toy", **{name: 4})


def manifest(**changes) -> dict:
    """What a manifest says of the second run of the toy profile, with other parameters."""
    run = runs.table("toy")[1]
    return asdict(run) | dict(parameters=run.parameters | changes)


def test_the_command_of_a_run_as_planned_names_profile_and_run(root):
    assert runs.command(manifest()) == "make run PROFILE=toy RUN=pocket_topics-01_toy-8"


def test_the_command_sets_what_differs_from_the_profile(root):
    call = runs.command(manifest(languages=["eng", "swh"], lr=0.1))
    one = "make run PROFILE=toy RUN=pocket_topics-01_toy-8"
    assert call == f'{one} SET="lr=0.1 languages=[eng,swh]"'


def executed(call: str, monkeypatch) -> list[runs.Run]:
    """The runs that a command executes, after its way through make and a shell."""
    made = []
    monkeypatch.setattr(runs, "execute", lambda run: made.append(run) or dict(rows=2, seconds=1))
    for one in call.split(" && "):
        shown = one.replace("make", "make -s -n", 1)
        lines = subprocess.run(
            shown, shell=True, cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout
        words = shlex.split(next(x for x in lines.splitlines() if "-m xlcore.runs" in x))
        assert runs.main(words[words.index("xlcore.runs") + 1 :]) == 0
    return made


def test_the_command_makes_the_same_run_again_and_no_other(root, monkeypatch):
    wanted = manifest(languages=["eng", "swh"], lr=0.1, seeds=[4, 5], length=3, quick=True)
    found = executed(runs.command(wanted), monkeypatch)
    assert [run.id for run in found] == [wanted["id"]]
    assert found[0].parameters == wanted["parameters"]


def test_the_command_of_a_run_beyond_the_grid_sets_its_value(root, monkeypatch):
    wanted = runs.table("toy", shots=16)[0]
    call = runs.command(asdict(wanted))
    assert call == 'make run PROFILE=toy RUN=pocket_topics-01_toy-16 SET="shots=16"'
    assert executed(call, monkeypatch)[0].parameters == wanted.parameters


def test_runs_that_are_set_alike_share_a_command(root, monkeypatch):
    plan = [asdict(run) for run in runs.table("toy")[:3]]
    plan[1] = manifest(lr=0.1)
    call = runs.command(*plan)
    first, second = call.split(" && ")
    assert first == 'make run PROFILE=toy RUN="pocket_topics-01_toy-4 pocket_topics-02_toy"'
    assert second == 'make run PROFILE=toy RUN=pocket_topics-01_toy-8 SET="lr=0.1"'
    found = {run.id: run.parameters for run in executed(call, monkeypatch)}
    assert found == {one["id"]: one["parameters"] for one in plan}


def test_the_command_of_a_run_on_a_folder_asks_for_the_folder(root, real_data, monkeypatch):
    wanted = asdict(runs.table("toy")[0])
    call = runs.command(wanted)
    assert call == 'make run PROFILE=toy RUN=sib200-01_toy-4 SET="data=directory"'
    assert executed(call, monkeypatch)[0].parameters == wanted["parameters"]
    monkeypatch.delenv("XLCORE_DATA")
    assert runs.main(["execute", "toy", "data=directory", "--run", "sib200-01_toy-4"]) == 2


def test_a_run_that_left_its_profile_has_no_command(root):
    gone = manifest() | dict(id="pocket_topics-gone")
    with pytest.raises(InputError, match="toy has no run pocket_topics-gone any more"):
        runs.command(gone)


def test_run_name_replaces_the_notebook_in_the_id(root):
    edit(root / "profiles" / "toy.yaml", "- notebook: 02_toy", "- notebook: 02_toy\n    name: two")
    assert "pocket_topics-two" in [run.id for run in runs.table("toy")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("lr: 5e-3", "lrr: 5e-3", r"parameter of profile toy 'lrr'; did you mean lr"),
        ("{shots: 2}", "{shot: 2}", r"notebook 02_toy 'shot'; did you mean shots"),
        ("{shots: 2}", "{shots: two}", r"notebook 02_toy: shots = 'two'"),
        ("{shots: 2}", "{run_dir: x}", r"notebook 02_toy 'run_dir'"),
        ("shots: [4, 8]", "shots: 4", r"grid.shots = 4: .*list"),
        ("shots: [4, 8]", "shots: []", r"grid.shots = \[\]: .*at least 1 item"),
        ("shots: [4, 8]", "shots: [4, a]", r"notebook 01_toy: shots = 'a'"),
        ("notebook: 02_toy", "notebook: 02_tay", r"notebook '02_tay'; did you mean 02_toy"),
        ("notebook: 02_toy", "name: x", r"a run of toy.yaml: notebook = .*required"),
        ("notebook: 02_toy", "notebok: 02_toy", r"toy.yaml"),
        ("parameters:", "paramters:", r"a run of toy.yaml 'paramters'; did you mean parameters"),
        ("grid:", "parameters: {shots: 4}\n    grid:", r"shots .*01_toy is set in two places"),
        ("parameters:", "real: {shots: 4}\n    parameters:", r"shots .* is set in two places"),
        ("parameters: {shots: 2}", "real: {shot: 2}", r"02_toy 'shot'; did you mean shots"),
        ("parameters: {shots: 2}", "real: {shots: two}", r"02_toy: shots = 'two'"),
        ("data: auto", "data: hubb", r"data source 'hubb'; did you mean hub"),
        ("description", "descripton", r"toy.yaml"),
        ("data: auto", "dato: auto\ndata: auto", r"name in toy.yaml 'dato'; did you mean data"),
        ("notebook: 02_toy", "notebook: 99_final_figures", r"two different runs .*: give one"),
        ("{lr: 5e-3}", "", r"toy.yaml: defaults = None"),
        ("real: sib200", "true: sib200", r"toy.yaml: datasets"),
        ("runs:", "runs: [", r"toy.yaml is not valid YAML"),
    ],
)
def test_bad_profile_is_refused(root, old, new, told):
    edit(root / "profiles" / "toy.yaml", old, new)
    with pytest.raises(InputError, match=told):
        runs.table("toy")


def test_notebook_that_cannot_be_told_its_folder_is_refused(root):
    edit(root / "notebooks" / "02_toy.py", "run_dir: str", "place: str")
    with pytest.raises(InputError, match="notebook 02_toy must declare run_dir"):
        runs.table("toy")


@pytest.mark.parametrize("name", ["shot", "run_dir", "profile", "root"])
def test_override_that_no_notebook_takes_is_refused(root, name):
    with pytest.raises(InputError, match=f"unknown parameter of profile toy '{name}'"):
        runs.table("toy", **{name: 4})


@pytest.mark.parametrize(
    "told, cores, memory, gpu, overrides, number",
    [
        ("memory_gib: 6", 2, 16.5, None, [], 2),
        ("memory_gib: 6", 2, 15.5, None, [], 1),  # two would take more than three quarters
        ("memory_gib: 6", 1, 64, None, [], 1),
        ("memory_gib: 6", 8, 64, None, [], 2),
        ("memory_gib: 6", 16, 64, None, [], 4),
        ("memory_gib: 6", 64, 64, None, [], 8),
        ("memory_gib: 6", 16, 64, "/usr/bin/nvidia-smi", [], 1),
        ("memory_gib: 6", 16, 64, None, ["shots", "01_toy.lr"], 4),
        ("memory_gib: 6", 16, 64, None, ["shots", "01_toy.scope"], 1),
        ("memory_gib: 6", 16, 64, None, ["backbone"], 1),
        ("", 16, 64, None, [], 1),
    ],
)
def test_runs_share_a_machine_as_far_as_its_memory_goes(
    root, monkeypatch, told, cores, memory, gpu, overrides, number
):
    edit(root / "profiles" / "toy.yaml", "data: auto", f"data: auto\n{told}")
    monkeypatch.setattr(runs, "_memory_gib", lambda: memory)
    monkeypatch.setattr(runs.shutil, "which", lambda name: gpu)
    assert runs.side_by_side("toy", cores, overrides) == number


def test_a_profile_that_needs_no_memory_is_refused(root):
    edit(root / "profiles" / "toy.yaml", "data: auto", "data: auto\nmemory_gib: 0")
    with pytest.raises(InputError, match=r"toy.yaml: memory_gib"):
        runs.table("toy")


def test_this_machine_has_memory():
    assert 0.5 < runs._memory_gib() < 1e5


def test_unknown_profile_names_the_nearest(root):
    with pytest.raises(InputError, match="unknown profile 'tooy'; did you mean toy"):
        runs.table("tooy")


def test_a_folder_that_is_no_repository_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="start from the root of the repository"):
        runs.table("toy")


@pytest.mark.parametrize(
    ("wanted", "asked", "without", "with_folder"),
    [
        ("auto", False, "embedded", "directory"),
        ("embedded", False, "embedded", "embedded"),
        ("hub", False, "hub", "directory"),
        ("directory", False, None, "directory"),
        ("auto", True, "embedded", "directory"),
        ("hub", True, "hub", "hub"),
    ],
)
class TestDataSource:
    def test_without_a_folder(self, root, wanted, asked, without, with_folder):
        if without is None:
            with pytest.raises(InputError, match="XLCORE_DATA='' is not a folder"):
                runs.resolve_source(wanted, asked)
        else:
            assert runs.resolve_source(wanted, asked) == without

    def test_with_a_folder(self, root, real_data, wanted, asked, without, with_folder):
        assert runs.resolve_source(wanted, asked) == with_folder


def test_data_folder_that_is_not_there_is_refused(root, real_data):
    real_data.rmdir()
    with pytest.raises(InputError, match=r"XLCORE_DATA='.*benchmarks' is not a folder"):
        runs.table("toy")


def test_real_data_names_the_runs_and_reaches_them_as_a_word(root, real_data):
    run = runs.table("toy")[0]
    assert (run.id, run.data, run.parameters["data"]) == ("sib200-01_toy-4", "sib200", "directory")


@pytest.mark.parametrize(("data", "shots"), [("embedded", 3), ("directory", 5)])
def test_an_entry_sets_parameters_for_one_kind_of_data(root, real_data, data, shots):
    edit(
        root / "profiles" / "toy.yaml",
        "parameters: {shots: 2}",
        "embedded: {shots: 3}\n    real: {shots: 5}",
    )
    edit(root / "profiles" / "toy.yaml", "lr: 5e-3", "shots: 1")
    assert runs.table("toy", data=data)[2].parameters["shots"] == shots


def test_override_wins_over_the_kind_of_data(root, real_data):
    edit(root / "profiles" / "toy.yaml", "parameters: {shots: 2}", "real: {shots: 5}")
    assert runs.table("toy", shots=7)[1].parameters["shots"] == 7


def test_default_that_a_notebooks_type_refuses_names_both(root):
    edit(root / "profiles" / "toy.yaml", "lr: 5e-3", "languages: all")
    edit(root / "notebooks" / "02_toy.py", 'list[str] | str = "all"', 'list[str] = ["eng"]')
    with pytest.raises(InputError, match=r"notebook 02_toy: languages = 'all': .*list"):
        runs.table("toy")


@pytest.mark.parametrize("name", ["smoke", "pocket", "full", "paper"])
@pytest.mark.parametrize("data", ["embedded", "hub"])
def test_shipped_profiles_fit_the_shipped_notebooks(monkeypatch, name, data):
    monkeypatch.chdir(REPOSITORY)
    assert runs.table(name, data=data)


@pytest.mark.parametrize("name", ["full", "paper"])
def test_a_prompt_alone_gets_a_rate_of_its_grid(monkeypatch, name):
    """`rates` are in the methods' order; one that is meant for weights would not move a prompt."""
    monkeypatch.chdir(REPOSITORY)
    planned = [run.parameters for run in runs.table(name, data="hub")]
    (grid,) = (p["rates"] for p in planned if p.get("method") == "prompt_only")
    compared = [p for p in planned if "prompt_only" in p.get("methods", ())]
    assert compared
    for p in compared:
        own = dict(zip(p["methods"], p["rates"] or [p["prompt_rate"]] * 4, strict=True))
        assert own["prompt_only"] in grid


def test_data_can_be_asked_for_by_an_override(root, real_data):
    assert runs.table("toy", data="embedded")[0].source == "embedded"


@pytest.mark.parametrize(
    ("name", "without", "with_folder"),
    [
        ("smoke", "embedded", "embedded"),
        ("pocket", "embedded", "directory"),
        ("full", "hub", "directory"),
        ("paper", "hub", "directory"),
    ],
)
def test_shipped_profiles_take_the_stated_data(monkeypatch, real_data, name, without, with_folder):
    monkeypatch.chdir(REPOSITORY)
    wanted = runs._profile(name)[0].data
    found = [runs.resolve_source(wanted)]
    monkeypatch.delenv("XLCORE_DATA")
    assert [runs.resolve_source(wanted), *found] == [without, with_folder]


# ---- fingerprints --------------------------------------------------------------------------------


def prints(profile="toy", **overrides) -> dict[str, str]:
    return {run.id: run.fingerprint for run in runs.table(profile, **overrides)}


FIRST, SECOND, FINAL = (
    {"pocket_topics-01_toy-4", "pocket_topics-01_toy-8"},
    {"pocket_topics-02_toy"},
    {"pocket_topics-99_final_figures"},
)


@pytest.mark.parametrize(
    ("path", "old", "new", "changed"),
    [
        ("notebooks/02_toy.py", "# # A toy", "# # Other prose", set()),
        ("notebooks/02_toy.py", "# step size", "# another comment", set()),
        ("notebooks/02_toy.py", "1 / 3", "1 / 4", SECOND | FINAL),
        ("notebooks/02_toy.py", "quick: bool = False", "quick: bool = True", SECOND | FINAL),
        ("notebooks/99_final_figures.py", "1 / 3", "1 / 4", FINAL),
        ("profiles/toy.yaml", "description: a toy", "description: the same", set()),
        ("profiles/toy.yaml", "shots: 2", "shots: 3", SECOND | FINAL),
        ("profiles/toy.yaml", "5e-3", "6e-3", FIRST | SECOND | FINAL),
        ("data/topics.tsv", "a text", "another", FIRST | SECOND | FINAL),
        ("../library/xlcore/errors.py", "allowed", "permitted", FIRST | SECOND | FINAL),
        ("../library/xlcore/results.py", "checked", "tested", FIRST | SECOND | FINAL),
        ("../library/xlcore/runs.py", "Profiles", "Files", set()),
    ],
)
def test_only_what_depends_on_a_change_gets_a_new_fingerprint(root, path, old, new, changed):
    before = prints()
    edit(root / path, old, new)
    after = prints()
    assert {name for name in after if after[name] != before[name]} == changed


def changed_by(path: Path, text: str) -> set[str]:
    before = prints()
    path.write_text(text)
    after = prints()
    return {name for name in after if after[name] != before[name]}


def test_figure_code_counts_only_for_the_final_figures(root):
    (runs.PACKAGE / "figures.py").write_text("style = 1\n")
    for notebook in ("99_final_figures", "02_toy"):
        path = root / "notebooks" / f"{notebook}.py"
        edit(path, "import os", "from xlcore import figures\nimport os")
    assert changed_by(runs.PACKAGE / "figures.py", "style = 2\n") == FINAL


def test_a_module_counts_where_it_is_imported_also_through_others(root):
    (runs.PACKAGE / "near.py").write_text("def late():\n    from xlcore.far import x\n")
    (runs.PACKAGE / "far.py").write_text("x = 1\n")
    (runs.PACKAGE / "other.py").write_text("x = 1\n")
    path = root / "notebooks" / "02_toy.py"
    edit(path, "import os", "%matplotlib inline\nimport xlcore.near\nimport os")
    assert changed_by(runs.PACKAGE / "far.py", "x = 2\n") == SECOND | FINAL
    assert not changed_by(runs.PACKAGE / "other.py", "x = 2\n")


def test_place_of_the_data_does_not_count_but_its_checksums_do(root, real_data, monkeypatch):
    before = prints()
    moved = real_data.rename(real_data.with_name("elsewhere"))
    monkeypatch.setenv("XLCORE_DATA", str(moved))
    same = prints()
    (runs.PACKAGE / "checksums").mkdir(exist_ok=True)
    (runs.PACKAGE / "checksums" / "a.sha256").write_text("11  a.tsv\n")
    other = prints()
    assert same == before and not set(other.values()) & set(before.values())


def test_missing_embedded_data_is_refused(root):
    shutil.rmtree(root / "data")
    with pytest.raises(InputError, match="no embedded data"):
        runs.table("toy")


# ---- finish --------------------------------------------------------------------------------------


def test_finish_writes_one_sorted_row_a_line(tmp_path):
    runs.finish([row(value=1 / 3), row(seed=2, value=2)], str(tmp_path))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == [0.333333, 2]
    assert all(list(json.loads(line)) == sorted(results.REQUIRED) for line in lines)


def test_finish_states_rows_and_hash(tmp_path):
    runs.finish([row()], str(tmp_path), device="cpu")
    closing = json.loads((tmp_path / "closing.json").read_text())
    digest = hashlib.sha256((tmp_path / "results.jsonl").read_bytes()).hexdigest()
    assert (closing["rows"], closing["results_sha256"], closing["facts"]) == (
        1,
        digest,
        {"device": "cpu"},
    )


def test_finish_states_the_memory_peak(tmp_path):
    runs.finish([row()], str(tmp_path))
    assert json.loads((tmp_path / "closing.json").read_text())["peak_memory_mib"] > 1


def test_finish_takes_numpy_numbers(tmp_path):
    frame = runs.finish([row(value=numpy.float32(0.25), seed=numpy.int64(3))], str(tmp_path))
    assert frame.to_dict("records") == [row(value=0.25, seed=3)]


def test_interactive_finish_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = runs.finish([row()], "")
    assert isinstance(frame, pandas.DataFrame) and not list(tmp_path.iterdir())


def test_finish_takes_a_frame_and_drops_its_empty_cells(tmp_path):
    frame = pandas.DataFrame([row(strategy="random"), row(seed=2)])
    runs.finish(frame, str(tmp_path))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert ["strategy" in json.loads(line) for line in lines] == [True, False]


def test_a_whole_number_beside_an_empty_cell_stays_one(tmp_path):
    runs.finish(pandas.DataFrame([row(length=5), row(seed=2)]), str(tmp_path))
    assert '"length": 5,' in (tmp_path / "results.jsonl").read_text()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(value=float("nan"))], "row 1: value = nan"),
        ([row(value=float("inf"))], "row 1: value = inf"),
        ([row(loss=float("nan"))], "row 1: loss = nan"),
        ([row(value="0.5")], "value is '0.5', wanted a number"),
        ([row(value=True)], "value is True, wanted a number"),
        ([row(language=None)], "row 1 has no language"),
        ([{k: v for k, v in row().items() if k != "seed"}], "row 1 has no seed"),
        ([row(), row(value=0.6)], "rows 1 and 2 differ in nothing but value"),
        ([row(language=object())], "row 1: language = <object"),
        (pandas.DataFrame([row(value=float("nan"))]), "row 1 has no value"),
        ([], "no rows"),
    ],
)
def test_finish_refuses(tmp_path, rows, told):
    with pytest.raises(InputError, match=told):
        runs.finish(rows, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_finish_takes_no_rows_where_it_is_said(tmp_path):
    runs.finish([], str(tmp_path), allow_empty=True)
    assert (tmp_path / "results.jsonl").read_text() == ""


# ---- execute -------------------------------------------------------------------------------------


def left(profile: str = "one") -> list[Path]:
    """What runs left in the place where they work."""
    return list(Path("papermill_runs", profile, ".work").glob("*"))


def older_results(run: runs.Run) -> Path:
    place = runs.folder(run)
    place.mkdir(parents=True)
    (place / "results.jsonl").write_text("older\n")
    return place


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A repository with one run done, over older results and beside the user's bad kernels."""
    with pytest.MonkeyPatch.context() as patch:
        root = build(tmp_path_factory.mktemp("good"), patch)
        spec = root / "user" / "kernels" / "python3"
        spec.mkdir(parents=True)
        bad = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(bad))
        patch.setenv("JUPYTER_PATH", str(root / "user"))
        run = one_run(root, "rows[0]['python'] = os.path.realpath(sys.executable)")
        stale = older_results(run) / "stale.txt"
        stale.touch()
        before = runs.done(run)
        manifest = runs.execute(run)
        after = runs.done(run), runs.done(runs.table("one", shots=5)[0])
    return SimpleNamespace(
        run=run, root=root, place=stale.parent, manifest=manifest, done=(before, *after)
    )


class TestGoodRun:
    def test_leaves_three_files_and_nothing_older(self, good):
        (place,) = (good.root / "papermill_runs" / "one").glob("*[!.]01_toy")
        names = sorted(p.name for p in place.iterdir())
        assert names == ["manifest.json", "notebook.ipynb", "results.jsonl"]

    def test_leaves_no_place_of_work(self, good):
        assert not list((good.root / "papermill_runs" / "one" / ".work").iterdir())

    def test_is_done_until_its_fingerprint_changes(self, good):
        assert good.done == (False, True, False)

    def test_manifest_is_written_as_returned(self, good):
        (path,) = (good.root / "papermill_runs").glob("one/*/manifest.json")
        assert json.loads(path.read_text()) == good.manifest

    def test_manifest_has_the_parameters_without_the_folder(self, good):
        assert good.manifest["parameters"] == good.run.parameters
        assert "run_dir" not in good.run.parameters

    def test_manifest_names_run_fingerprint_and_code(self, good):
        keys = ("id", "fingerprint", "code_sha256", "source")
        assert [good.manifest[k] for k in keys] == [getattr(good.run, k) for k in keys]

    def test_manifest_outside_of_git_names_no_commit(self, good):
        assert good.manifest["commit"] is None

    def test_manifest_matches_the_rows(self, good):
        (path,) = (good.root / "papermill_runs").glob("one/*/results.jsonl")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert (good.manifest["rows"], good.manifest["results_sha256"]) == (2, digest)

    def test_manifest_has_versions_and_costs(self, good):
        assert good.manifest["versions"]["papermill"] and good.manifest["seconds"] > 0
        assert good.manifest["peak_memory_mib"] > 1

    def test_manifest_names_no_place_on_the_machine(self, good):
        text = json.dumps(good.manifest)
        assert good.manifest["facts"]["weights"] == ".../model.bin"
        assert str(good.root) not in text and os.path.dirname(sys.prefix) not in text

    def test_kernel_is_this_interpreter_whatever_the_user_installed(self, good):
        (path,) = (good.root / "papermill_runs").glob("one/*/results.jsonl")
        first = json.loads(path.read_text().splitlines()[0])
        assert first["python"] == os.path.realpath(sys.executable)


def test_the_commit_is_marked_where_code_differs_from_it(root):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "notebooks", "profiles")
    git("commit", "-qm", "all")
    (root / "figures").mkdir(exist_ok=True)
    (root / "figures" / "a.png").touch()  # what a run makes is no code
    assert runs._commit() == git("rev-parse", "HEAD")
    edit(root / "notebooks" / "02_toy.py", "shots: int = 8", "shots: int = 5")
    assert runs._commit() == git("rev-parse", "HEAD") + "+"


FAULTS = {
    "raise": ("raise ValueError('wrong')", r"cell .raise ValueError.*: ValueError: wrong"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", r"cell .os.kill.*DeadKernelError"),
    "polite exit": ("finish(rows, run_dir); sys.exit(0)", r"cell .finish.*: SystemExit: 0"),
    "skip": ("finish = lambda *a, **k: None", r"did not close with finish"),
    "nan": ("rows[0]['value'] = float('nan')", r"InputError: row 1: value = nan"),
    "tampered": (
        "write = finish\ndef finish(*a, **k):\n    write(*a, **k)\n"
        "    open(run_dir + '/results.jsonl', 'a').write('{}\\n')",
        r"results.jsonl was changed after finish wrote it: now it has .'rows': 3",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_failed_run_tells_where_keeps_its_notebook_and_the_older_results(root, kind):
    fault, told = FAULTS[kind]
    run = one_run(root, fault)
    place = older_results(run)
    kept = f"papermill_runs/one/.failed/{run.id}.ipynb"
    with pytest.raises(runs.RunError, match=told + rf"(?s:.*)executed notebook: {re.escape(kept)}"):
        runs.execute(run)
    assert [p.read_text() for p in place.iterdir()] == ["older\n"]
    assert Path(kept).is_file() and left() == []


SLEEP = """import os; from pathlib import Path; import time
if not Path('awake').exists():
    Path('asleep').write_text(str(os.getppid())); time.sleep(100)"""


def asleep(process: subprocess.Popen) -> int:
    """The process of the run whose notebook has reached its sleeping cell."""
    while not (Path("asleep").exists() and Path("asleep").read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    return int(Path("asleep").read_text())


def test_a_politely_killed_run_leaves_the_older_results_alone(root):
    run = one_run(root, SLEEP)
    place = older_results(run)
    words = [sys.executable, "-m", "xlcore.runs", "execute", run.profile, "--run", run.id]
    process = subprocess.Popen(words)
    assert asleep(process) == process.pid
    process.terminate()
    assert process.wait(60) == 130
    assert [p.name for p in place.iterdir()] == ["results.jsonl"] and left() == []


def test_folder_swap_that_fails_brings_the_older_results_back(root, monkeypatch):
    run = one_run(root)
    place = older_results(run)
    # A run that leaves no folder: the first of the two renames works, the second does not.
    monkeypatch.setattr(runs, "_execute_in", lambda work, run: work.rmdir())
    with pytest.raises(FileNotFoundError):
        runs.execute(run)
    assert (place / "results.jsonl").read_text() == "older\n"


def test_results_put_aside_by_a_killed_swap_come_back(root, monkeypatch):
    run = one_run(root)
    place = older_results(run)
    aside = place.parent / ".work" / run.id / "old"
    aside.parent.mkdir(parents=True)
    place.rename(aside)

    def fail(work, run):
        raise runs.RunError("no")

    monkeypatch.setattr(runs, "_execute_in", fail)
    with pytest.raises(runs.RunError):
        runs.execute(run)
    assert (place / "results.jsonl").read_text() == "older\n"


def test_what_a_killed_run_left_is_not_for_git():
    rules = (REPOSITORY / ".gitignore").read_text().splitlines()
    allowed = rules.index("!papermill_runs/**/results.jsonl")
    assert "papermill_runs/*/.*/" in rules[allowed:]


# ---- command line --------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_status_2(root, capsys):
    assert runs.main(["execute", "toy", "shot=4", "--run", "pocket_topics-01_toy-4"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: unknown parameter")
    assert told.err.count("\n") == 1


def test_unknown_run_names_the_nearest(root, capsys):
    assert runs.main(["execute", "toy", "--run", "01_toy-4"]) == 2
    assert "did you mean pocket_topics-01_toy-4" in capsys.readouterr().err


def test_no_run_is_told_how_to_name_one(root, capsys):
    assert runs.main(["execute", "toy", "--run"]) == 2
    told = capsys.readouterr().err
    assert 'no run named: make run PROFILE=toy RUN="ID ..."' in told
    assert "pocket_topics-02_toy" in told


def test_nothing_starts_before_every_run_is_known(root, monkeypatch):
    monkeypatch.setattr(runs, "execute", lambda run: pytest.fail("it started"))
    assert runs.main(["execute", "toy", "--run", "pocket_topics-02_toy", "gone"]) == 2


def test_overrides_may_stand_behind_the_runs(root, capsys, monkeypatch):
    found = []
    monkeypatch.setattr(runs, "execute", lambda run: found.append(run) or dict(rows=0, seconds=0))
    name = "pocket_topics-01_toy-4"
    words = [["shots=4", "--run", name], ["--run", name, "shots=4"], ["--run", "shots=4", name]]
    for given in words:
        assert runs.main(["execute", "toy", *given]) == 0
    assert len({run.fingerprint for run in found}) == 1 and len(found) == 3
    assert runs.main(["execute", "toy", "--run", name, "shot=4"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown parameter")


def test_failed_run_is_one_line_and_status_1(root, capsys, monkeypatch):
    def fail(work, run):
        raise runs.RunError("two\nlines")

    monkeypatch.setattr(runs, "_execute_in", fail)
    run = one_run(root)
    assert runs.main(["execute", "one", "--run", run.id]) == 1
    assert capsys.readouterr().err.startswith(f"error: {run.id} failed: two lines; executed")


def test_table_lists_every_run(root, capsys):
    assert runs.main(["table", "toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [run.id for run in runs.table("toy")]


@pytest.fixture
def summary(root, capsys):
    """What `summary` prints of one run with two seeds in English, French and Swahili."""
    place = older_results(one_run(root))
    values = {("eng", 1): 80, ("eng", 2): 60, ("fra", 1): 30, ("fra", 2): 20, ("swh", 1): 45}
    same = dict(metric="accuracy", study="s", backbone="b", method="m", shots=8)
    rows = [row(**same, language=k, seed=n, value=v, length=5) for (k, n), v in values.items()]
    rows = [r | {"selection": "best_dev"} for r in rows]
    rows += [r | {"selection": "last", "value": 0} for r in rows]
    rows += [row(**same | {"metric": "loss"}), row(**same | {"method": "majority", "value": 14.3})]
    rows[-1]["language"] = "eng"
    rows.append(row(**same | dict(method="ltp", language="eng", value=50)))
    rows[-1]["selection"] = "best_dev_accuracy"
    rows.append(row(**same, language="eng", value=10, length=5, selection="best_dev"))
    rows[-1] |= dict(reparameterization="mlp", hidden=50)
    runs.finish(rows, str(place))
    drawn = root / "figures" / "one" / "pocket_topics"
    drawn.mkdir(parents=True)
    (drawn / "a.png").touch()
    (drawn / "a.svg").touch()
    edit(root / "profiles" / "one.yaml", "01_toy}", "01_toy}, {notebook: 02_toy}")
    runs.main(["summary", "one"])
    return [line.split() for line in capsys.readouterr().out.splitlines()]


class TestSummary:
    def test_means_of_english_and_the_others_at_the_best_epoch(self, summary):
        # English (80 + 60) / 2 = 70; the others ((30 + 20) / 2 + 45) / 2 = 35
        assert summary[1] == ["s", "b", "m", "8", "5", "-", "3", "2", "70.0", "35.0"]

    def test_what_is_not_there_is_a_dash(self, summary):
        assert summary[2] == ["s", "b", "majority", "8", "-", "-", "1", "1", "14.3", "-"]

    def test_an_epoch_kept_by_accuracy_counts(self, summary):
        assert summary[3] == ["s", "b", "ltp", "8", "-", "-", "1", "1", "50.0", "-"]

    def test_each_network_has_its_line(self, summary):
        assert summary[4] == ["s", "b", "m", "8", "5", "mlp", "50", "1", "1", "10.0", "-"]

    def test_runs_without_results_and_figures_are_listed(self, summary):
        assert summary[5:] == [
            ["not", "run", "yet:", "pocket_topics-02_toy"],
            ["figures/one/pocket_topics/a.png"],
        ]


def test_rows_without_a_word_of_networks_or_epochs_have_a_summary(root, capsys):
    place = older_results(one_run(root))
    same = dict(metric="accuracy", study="s", backbone="b", method="m", shots=8, seed=1)
    runs.finish([row(**same, language="eng", value=80)], str(place))
    runs.main(["summary", "one"])
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line == ["s", "b", "m", "8", "-", "-", "1", "1", "80.0", "-"]


# ---- workflow ------------------------------------------------------------------------------------


def command(*overrides: str) -> list[str]:
    """The call behind `make reproduce`, on the toy profile."""
    place = REPOSITORY / "workflow"
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(place / "Snakefile")]
    words += ["--workflow-profile", str(place / "profiles" / "local"), "--config", "profile=toy"]
    return [*words, f"overrides={' '.join(overrides)}"]


def call(*overrides: str) -> SimpleNamespace:
    """One call: the runs that executed, in their order, and what was printed."""
    Path("ran.log").unlink(missing_ok=True)
    done = subprocess.run(command(*overrides), capture_output=True, text=True, timeout=110)
    ran = Path("ran.log").read_text().splitlines() if Path("ran.log").exists() else []
    return SimpleNamespace(ran=ran, status=done.returncode, out=done.stdout, err=done.stderr)


def killed() -> int:
    """Kill a call and its sleeping run, and return the status of the call."""
    process = subprocess.Popen(
        command("lr=5e-2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    run = asleep(process)
    process.kill()
    os.kill(run, signal.SIGKILL)
    return process.wait(60)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Calls one after the other in one repository, with what changed between them."""
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        root = build(tmp_path_factory.mktemp("story"), patch)
        second, profile = root / "notebooks" / "02_toy.py", root / "profiles" / "toy.yaml"
        place = root / "papermill_runs" / "toy" / "pocket_topics-02_toy"
        edit(profile, "[4, 8]", "[4]")
        seen["refused"] = call("shot=4")
        seen["first"] = call("lr=5e-2")
        seen["manifest"] = json.loads((place / "manifest.json").read_text())
        edit(profile, "description: a toy", "description: the same")
        edit(second, "# step size", "# other prose")
        for path in root.glob("notebooks/*"):
            path.touch()
        seen["touched"] = call("lr=5e-2")
        # A clone has neither the workflow's own files nor executed notebooks.
        for path in (".snakemake", "papermill_runs/toy/.stamps"):
            shutil.rmtree(path)
        (place.with_name("pocket_topics-01_toy-4") / "notebook.ipynb").unlink()
        edit(second, "pass", "raise ValueError('wrong')")
        older = (place / "results.jsonl").read_bytes()
        seen["failing"] = call("lr=5e-2")
        edit(second, "raise ValueError('wrong')", SLEEP)
        seen["killed"] = killed(), len(left("toy"))
        seen["older kept"] = (place / "results.jsonl").read_bytes() == older
        Path("awake").touch()
        seen["completing"] = call("lr=5e-2")
        seen["left"] = left("toy")
    return seen


@pytest.mark.slow
@pytest.mark.timeout(240)
class TestWorkflow:
    def test_bad_override_is_told_and_runs_nothing(self, story):
        result = story["refused"]
        assert result.status != 0 and "did you mean shots" in result.err and result.ran == []

    def test_first_call_runs_all_and_the_final_figures_last(self, story):
        ran = story["first"].ran
        assert (sorted(ran), ran[-1]) == (
            ["01_toy 4", "02_toy 2", "99_final_figures 8"],
            "99_final_figures 8",
        )

    def test_each_run_says_that_it_starts_and_what_it_made(self, story):
        lines = story["first"].out.splitlines()
        assert all(re.fullmatch(r"\S+ starts", line) for line in lines[::2])
        assert all(re.fullmatch(r"\S+: 2 rows in \d+ s", line) for line in lines[1::2])
        assert len(lines) == 6

    def test_override_reaches_the_run(self, story):
        assert story["manifest"]["parameters"]["lr"] == 0.05

    def test_second_call_runs_nothing_though_prose_and_dates_changed(self, story):
        assert (story["touched"].status, story["touched"].ran) == (0, [])

    def test_missing_notebook_runs_again_beside_a_failing_run_and_no_figures(self, story):
        assert sorted(story["failing"].ran) == ["01_toy 4", "02_toy 2"]

    def test_failing_run_is_told(self, story):
        assert story["failing"].status == 1 and "ValueError: wrong" in story["failing"].err

    def test_failing_and_killed_runs_leave_older_results(self, story):
        assert story["older kept"]

    def test_killed_call_has_something_to_clear_up(self, story):
        status, remains = story["killed"]
        assert status != 0 and remains == 1

    def test_call_after_a_kill_completes_with_what_is_missing(self, story):
        assert story["completing"].status == 0
        assert story["completing"].ran == ["02_toy 2", "99_final_figures 8"]

    def test_call_after_a_kill_leaves_nothing(self, story):
        assert story["left"] == []
