"""The runs table, the checks before and after a notebook, and the workflow, on toy notebooks.

Every test has a repository of its own in a temporary folder; the project's notebooks are not run.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from xlcore import runs
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


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A small repository, with its own copy of the modules that a kernel imports."""
    library = tmp_path / "library"
    (library / "xlcore").mkdir(parents=True)
    for name in ("errors.py", "runs.py"):
        shutil.copy(REPOSITORY / "xlcore" / name, library / "xlcore" / name)
    (library / "xlcore" / "__init__.py").touch()
    (library / "xlcore" / "figures.py").touch()
    root = tmp_path / "repository"
    for folder in ("profiles", "notebooks", "data"):
        (root / folder).mkdir(parents=True)
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
def real_data(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "SHA256SUMS").write_text("00  a.tsv\n")
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
    keys = dict.fromkeys(runs.REQUIRED, "x") | {"seed": 1, "shots": 8, "value": 0.5}
    return keys | changes


# ---- parameters ----------------------------------------------------------------------------------


def test_parameters_carry_type_default_and_comment(root):
    found = runs.parameters("01_toy")["seeds"]
    assert (found.annotation, found.kind, found.default, found.comment) == (
        "list[int]",
        list[int],
        [1, 2, 3],
        "draws",
    )


def test_unknown_parameter_names_the_nearest(root):
    with pytest.raises(InputError, match=r"'shot'; did you mean shots, "):
        runs.check_parameters("01_toy", {"shot": 4})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("shots", True, r"shots = True is of type bool, wanted int"),
        ("shots", 1.5, r"shots = 1.5 is of type float, wanted int"),
        ("shots", "8", r"shots = '8' is of type str, wanted int"),
        ("lr", False, r"lr = False is of type bool, wanted float"),
        ("quick", 1, r"quick = 1 is of type int, wanted bool"),
        ("seeds", [1, "2"], r"seeds\[1\] = '2' is of type str, wanted int"),
        ("seeds", 1, r"seeds = 1 is of type int, wanted list\[int\]"),
        ("length", 2.0, r"length = 2.0 is of type float, wanted int \| None"),
        ("languages", 3, r"languages = 3 is of type int, wanted list\[str\] \| str"),
    ],
)
def test_wrong_type_is_refused(root, name, value, told):
    with pytest.raises(InputError, match=told):
        runs.check_parameters("01_toy", {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("length", None), ("length", 5), ("languages", ["eng"]), ("languages", "eng"), ("seeds", [])],
)
def test_right_type_is_kept(root, name, value):
    assert runs.check_parameters("01_toy", {name: value})[name] == value


def test_int_becomes_float_where_a_float_is_wanted(root):
    assert type(runs.check_parameters("01_toy", {"lr": 1})["lr"]) is float


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("shots = 8", "not a typed parameter"),
        ("shots: int", "not a typed parameter"),
        ("shots: int = 4 + n", "not a plain value"),
        ("shots: dict = {}", "type 'dict' is not allowed"),
        ("shots: open('ran.log', 'w') = 8", "is not allowed"),
        ("shots: int = 'eight'", "is of type str, wanted int"),
    ],
)
def test_bad_parameters_cell_is_refused(root, line, told):
    edit(root / "notebooks" / "01_toy.py", "shots: int = 8", line)
    with pytest.raises(InputError, match=told):
        runs.parameters("01_toy")


def test_annotations_are_never_executed(root):
    edit(root / "notebooks" / "01_toy.py", "shots: int", "shots: open('ran.log', 'w')")
    with pytest.raises(InputError):
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
        ("[no, en]", ["no", "en"]),
        ("true", True),
        ("null", None),
        ("all", "all"),
        ("-3", -3),
        ("facebook/xglm-564M", "facebook/xglm-564M"),
        ("1:30", "1:30"),
    ],
)
def test_override_is_read_as_yaml_1_2(text, value):
    assert runs.parse_overrides([f"x={text}"]) == {"x": value}


@pytest.mark.parametrize("pairs", [["shots"], ["=4"], ["a b=1"], ["x=[1"], ["x=1", "x=2"]])
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


def test_run_name_replaces_the_notebook_in_the_id(root):
    edit(root / "profiles" / "toy.yaml", "- notebook: 02_toy", "- notebook: 02_toy\n    name: two")
    assert "pocket_topics-two" in [run.id for run in runs.table("toy")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("lr: 5e-3", "lrr: 5e-3", r"default of profile toy 'lrr'; did you mean lr"),
        ("{shots: 2}", "{shot: 2}", r"parameter of notebook 02_toy 'shot'; did you mean shots"),
        ("{shots: 2}", "{shots: two}", r"shots = 'two' is of type str, wanted int"),
        ("{shots: 2}", "{run_dir: x}", r"parameter of notebook 02_toy 'run_dir'"),
        ("shots: [4, 8]", "shots: 4", r"grid of shots for 01_toy is 4, wanted a list"),
        ("shots: [4, 8]", "shots: []", r"grid of shots for 01_toy is \[\], wanted a list"),
        ("notebook: 02_toy", "notebook: 02_tay", r"notebook '02_tay'; did you mean 02_toy"),
        ("notebook: 02_toy", "name: x", r"names no notebook"),
        ("notebook: 02_toy", "notebok: 02_toy", r"'notebok'; did you mean notebook"),
        ("grid:", "parameters: {shots: 4}\n    grid:", r"shots stands in parameters and in grid"),
        ("data: auto", "data: hubb", r"data source 'hubb'; did you mean hub"),
        ("description", "descripton", r"key of toy.yaml 'descripton'; did you mean description"),
        ("notebook: 02_toy", "notebook: 99_final_figures", r"two runs .* the id .*: give one"),
        ("grid: {shots: [4, 8]}", "grid:", r"grid of 01_toy in toy.yaml are no names"),
        ("{lr: 5e-3}", "", r"defaults of toy.yaml is None, wanted a dict"),
        ("real: sib200", "true: sib200", r"datasets of toy.yaml must name two"),
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


def test_unknown_profile_names_the_nearest(root):
    with pytest.raises(InputError, match="unknown profile 'tooy'; did you mean toy"):
        runs.table("tooy")


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(InputError, match="start from the root of the repository"):
        runs.table("toy", tmp_path)


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


def test_folder_without_checksums_is_refused(root, real_data):
    (real_data / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="not a folder with a SHA256SUMS file"):
        runs.table("toy")


def test_real_data_names_the_runs_and_reaches_them_as_a_word(root, real_data):
    run = runs.table("toy")[0]
    assert (run.id, run.data, run.parameters["data"]) == ("sib200-01_toy-4", "sib200", "directory")


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
def test_shipped_profiles_take_the_stated_data(root, real_data, name, without, with_folder):
    wanted = runs._profile(name, REPOSITORY)["data"]
    found = [runs.resolve_source(wanted)]
    del os.environ["XLCORE_DATA"]
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
    ],
)
def test_only_what_depends_on_a_change_gets_a_new_fingerprint(root, path, old, new, changed):
    before = prints()
    edit(root / path, old, new)
    after = prints()
    assert {name for name in after if after[name] != before[name]} == changed


def test_figure_code_counts_only_where_it_is_named(root):
    edit(
        root / "notebooks" / "99_final_figures.py",
        "import os",
        "from xlcore import figures\nimport os",
    )
    before = prints()
    (runs.PACKAGE / "figures.py").write_text("style = 1\n")
    after = prints()
    assert {name for name in after if after[name] != before[name]} == FINAL


def test_place_of_the_data_does_not_count_but_its_content_does(root, real_data, monkeypatch):
    before = prints()
    moved = real_data.rename(real_data.with_name("elsewhere"))
    monkeypatch.setenv("XLCORE_DATA", str(moved))
    same = prints()
    (moved / "SHA256SUMS").write_text("11  a.tsv\n")
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
    assert all(list(json.loads(line)) == sorted(runs.REQUIRED) for line in lines)


def test_finish_states_rows_and_hash(tmp_path):
    runs.finish([row()], str(tmp_path), device="cpu")
    closing = json.loads((tmp_path / "closing.json").read_text())
    digest = hashlib.sha256((tmp_path / "results.jsonl").read_bytes()).hexdigest()
    assert (closing["rows"], closing["results_sha256"], closing["facts"]) == (
        1,
        digest,
        {"device": "cpu"},
    )


def test_finish_counts_seconds_and_memory(tmp_path):
    runs.finish([row()], str(tmp_path))
    closing = json.loads((tmp_path / "closing.json").read_text())
    assert closing["seconds"] > 0 and closing["peak_memory_mib"] > 1


def test_interactive_finish_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = runs.finish([row()], "")
    assert isinstance(frame, pandas.DataFrame) and not list(tmp_path.iterdir())


def test_finish_takes_a_frame_and_drops_its_empty_cells(tmp_path):
    frame = pandas.DataFrame([row(strategy="random"), row(seed=2)])
    runs.finish(frame, str(tmp_path))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert ["strategy" in json.loads(line) for line in lines] == [True, False]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row(value=float("nan"))], "row 1: value is nan"),
        ([row(value=float("inf"))], "row 1: value is inf"),
        ([row(loss=float("nan"))], "row 1: loss is nan"),
        ([row(value="0.5")], "value is '0.5', wanted a number"),
        ([row(value=True)], "value is True, wanted a number"),
        ([row(language=None)], "row 1 has no language"),
        ([{k: v for k, v in row().items() if k != "seed"}], "row 1 has no seed"),
        ([row(), row(value=0.6)], "rows 1 and 2 differ in nothing but value"),
        ([row(language=object())], "row 1: language is a object"),
        (pandas.DataFrame([row(value=float("nan"))]), "row 1: value is nan"),
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


def hidden(root: Path, profile: str = "one") -> list[str]:
    """What a run left beside its folder, apart from failed notebooks and stamps."""
    names = (path.name for path in (root / "papermill_runs" / profile).iterdir())
    return [n for n in names if n.startswith(".") and n not in (".failed", ".stamps")]


def older_results(run: runs.Run) -> Path:
    place = runs.folder(run)
    place.mkdir(parents=True)
    (place / "results.jsonl").write_text("older\n")
    return place


def test_a_good_run_leaves_three_files(root):
    place = runs.execute(one_run(root))
    assert sorted(p.name for p in place.iterdir()) == [
        "manifest.json",
        "notebook.ipynb",
        "results.jsonl",
    ]
    assert hidden(root) == []


def test_a_good_run_is_done_until_its_fingerprint_changes(root):
    run = one_run(root)
    before = runs.done(run)
    runs.execute(run)
    other = runs.table("one", shots=5)[0]
    assert (before, runs.done(run), runs.done(other)) == (False, True, False)


def test_manifest_matches_the_run_and_its_rows(root):
    run = one_run(root)
    place = runs.execute(run)
    manifest = json.loads((place / "manifest.json").read_text())
    results = (place / "results.jsonl").read_bytes()
    assert manifest["parameters"] == run.parameters and "run_dir" not in run.parameters
    assert (manifest["id"], manifest["fingerprint"]) == (run.id, run.fingerprint)
    assert manifest["results_sha256"] == hashlib.sha256(results).hexdigest()
    assert manifest["rows"] == len(results.splitlines())


def test_manifest_names_no_place_on_the_machine(root):
    place = runs.execute(one_run(root))
    manifest = (place / "manifest.json").read_text()
    assert json.loads(manifest)["facts"]["weights"] == ".../model.bin"
    assert str(root) not in manifest and os.path.dirname(sys.prefix) not in manifest


def test_the_kernel_is_this_interpreter_whatever_the_user_installed(root, tmp_path, monkeypatch):
    for name in ("python3", runs.KERNEL):
        spec = tmp_path / "user" / "kernels" / name
        spec.mkdir(parents=True)
        bad = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(bad))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "user"))
    place = runs.execute(one_run(root, "rows[0]['python'] = sys.executable"))
    first = json.loads((place / "results.jsonl").read_text().splitlines()[0])
    assert first["python"] == sys.executable


def test_older_results_are_replaced_whole(root):
    run = one_run(root)
    place = older_results(run)
    (place / "stale.txt").touch()
    runs.execute(run)
    assert not (place / "stale.txt").exists() and runs.done(run)


FAULTS = {
    "raise": ("raise ValueError('wrong')", r"\(raise ValueError.*: ValueError: wrong"),
    "exit": ("os._exit(1)", r"cell 5 \(os._exit\(1\)\): DeadKernelError"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", r"cell 5 \(os.kill.*DeadKernelError"),
    "skip": ("finish = lambda *a, **k: None", r"did not close with finish"),
    "nan": ("rows[0]['value'] = float('nan')", r"InputError: row 1: value is nan"),
    "missing key": ("del rows[0]['seed']", r"InputError: row 1 has no seed"),
    "killed after finish": (
        "finish(rows, run_dir); os._exit(0)",
        r"cell 5 .*: DeadKernelError",
    ),
    "tampered": (
        "write = finish\ndef finish(*a, **k):\n    write(*a, **k)\n"
        "    open(run_dir + '/results.jsonl', 'a').write('{}\\n')",
        r"results.jsonl has rows 3, finish wrote 2",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_failed_run_tells_where_keeps_its_notebook_and_the_older_results(root, kind):
    fault, told = FAULTS[kind]
    run = one_run(root, fault)
    place = older_results(run)
    kept = f"papermill_runs/one/.failed/{run.id}/notebook.ipynb"
    with pytest.raises(runs.RunError, match=told + rf"(?s:.*)executed notebook: {re.escape(kept)}"):
        runs.execute(run)
    assert (place / "results.jsonl").read_text() == "older\n"
    assert Path(kept).is_file() and hidden(root) == []


def started(run: runs.Run, wait: float = 60.0) -> subprocess.Popen:
    """The command line's process of a run whose notebook is in its sleeping cell."""
    words = [sys.executable, "-m", "xlcore.runs", "execute", run.profile, run.id]
    # A test runner started in the background ignores SIGINT, and children inherit that.
    process = subprocess.Popen(
        words, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    )
    deadline = time.monotonic() + wait
    while not Path("asleep").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return process


SLEEP = "Path('asleep').touch(); time.sleep(100 if not Path('awake').exists() else 0)"


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_older_results_alone(root, kind):
    run = one_run(root, SLEEP)
    place = older_results(run)
    process = started(run)
    process.send_signal(kind)
    assert process.wait(60) == 130
    assert [p.name for p in place.iterdir()] == ["results.jsonl"] and hidden(root) == []


def test_a_killed_run_leaves_no_folder_and_the_next_clears_up(root):
    run = one_run(root, SLEEP)
    process = started(run)
    process.kill()
    process.wait(60)
    assert not runs.folder(run).exists() and len(hidden(root)) == 1
    Path("awake").touch()
    runs.execute(run)
    assert runs.done(run) and hidden(root) == []


def test_folder_swap_that_fails_brings_the_older_results_back(root, monkeypatch):
    place = older_results(one_run(root))
    with pytest.raises(FileNotFoundError):
        runs._replace_folder(place.with_name("not there"), place)
    assert (place / "results.jsonl").read_text() == "older\n"


def test_results_put_aside_by_a_killed_swap_come_back(root):
    place = older_results(one_run(root))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    place.rename(place.with_name(f".{place.name}.{gone.pid}.old"))
    runs._clear_leftovers(place)
    assert (place / "results.jsonl").read_text() == "older\n"


def test_leftovers_of_a_living_process_and_of_other_runs_stay(root):
    place = older_results(one_run(root))
    others = [f".{place.name}.{os.getppid()}.tmp", f".{place.name}.7.1.tmp"]
    for name in others:
        place.with_name(name).mkdir()
    runs._clear_leftovers(place)
    assert sorted(hidden(root)) == sorted(others)


# ---- command line --------------------------------------------------------------------------------


def test_bad_input_is_one_line_and_status_2(root, capsys):
    assert runs.main(["execute", "toy", "pocket_topics-01_toy-4", "shot=4"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: unknown parameter")
    assert told.err.count("\n") == 1


def test_failed_run_is_one_line_and_status_1(root, capsys):
    run = one_run(root, "raise ValueError('two\\nlines')")
    assert runs.main(["execute", "one", run.id]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {run.id} failed: cell 5")


def test_table_lists_every_run(root, capsys):
    assert runs.main(["table", "toy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [run.id for run in runs.table("toy")]


def test_parameters_lists_type_default_and_comment(root, capsys):
    runs.main(["parameters", "01_toy"])
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[1]) == ["shots", "int", "8", "labelled examples per class"]


def test_single_notebook_goes_to_the_named_folder(root, capsys):
    assert runs.main(["notebook", "01_toy", "shots=3", "--out", "mine/first"]) == 0
    manifest = json.loads((root / "mine" / "first" / "manifest.json").read_text())
    assert (manifest["parameters"]["shots"], manifest["source"]) == (3, "embedded")


def test_summary_averages_over_seeds_then_languages(root, capsys):
    run = one_run(root)
    place = older_results(run)
    values = {("eng", 1): 0.8, ("eng", 2): 0.6, ("fra", 1): 0.3}
    rows = [
        row(language=code, seed=seed, metric="accuracy", value=v, study="s", method="m")
        for (code, seed), v in values.items()
    ]
    runs.finish(rows, str(place))
    (root / "figures" / "one").mkdir(parents=True)
    (root / "figures" / "one" / "a.svg").touch()
    runs.main(["summary", "one"])
    lines = capsys.readouterr().out.splitlines()
    # ((0.8 + 0.6) / 2 + 0.3) / 2 = 0.5
    assert re.split(r"\s{2,}", lines[1])[1:] == ["s", "m", "2", "0.5", "0.3 to 0.7"]
    assert lines[-1] == "figures/one/a.svg"


# ---- workflow ------------------------------------------------------------------------------------


def command(*overrides: str) -> list[str]:
    """The call behind `make reproduce`, on the toy profile."""
    place = REPOSITORY / "workflow"
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(place / "Snakefile")]
    words += ["--workflow-profile", str(place / "profiles" / "local"), "--config", "profile=toy"]
    return words + ([f"overrides={' '.join(overrides)}"] if overrides else [])


def snakemake(*overrides: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*overrides), capture_output=True, text=True, timeout=110)


def ran() -> set[str]:
    """The runs that executed since the last call, as `notebook shots`."""
    path = Path("ran.log")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    assert len(lines) == len(set(lines))
    return set(lines)


ALL = {"01_toy 4", "01_toy 8", "02_toy 2", "99_final_figures 8"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Where the first complete workflow call is kept, to be looked at and copied."""
    return tmp_path_factory.mktemp("finished") / "repository"


@pytest.fixture
def first_call(root, finished):
    """A repository after its first call, with what that call printed; the first test pays."""
    if not finished.exists():
        result = snakemake()
        assert result.returncode == 0, result.stderr
        Path("printed").write_text(result.stdout)
        shutil.copytree(root, finished)
    shutil.copytree(finished, root, dirs_exist_ok=True)
    return root


@pytest.fixture
def workflow(first_call):
    """A repository with all its runs done."""
    ran()
    return first_call


@pytest.mark.slow
class TestWorkflow:
    def test_first_call_runs_all_and_the_final_figures_last(self, first_call):
        order = Path("ran.log").read_text().splitlines()
        assert (set(order), order[-1], len(order)) == (ALL, "99_final_figures 8", len(ALL))

    def test_one_line_per_run_on_standard_output(self, first_call):
        lines = Path("printed").read_text().splitlines()
        assert all(re.fullmatch(r"\S+: 2 rows in \d+ min \d\d s", line) for line in lines)
        assert len(lines) == len(ALL)

    def test_second_call_runs_nothing(self, workflow):
        assert snakemake().returncode == 0
        assert ran() == set()

    def test_touched_files_run_nothing(self, workflow):
        for path in [*Path("notebooks").iterdir(), *Path("profiles").iterdir()]:
            path.touch()
        snakemake()
        assert ran() == set()

    def test_changed_code_cell_runs_its_notebook_and_the_figures(self, workflow):
        edit(Path("notebooks/02_toy.py"), "1 / 3", "1 / 4")
        snakemake()
        assert ran() == {"02_toy 2", "99_final_figures 8"}

    def test_changed_parameter_runs_its_run_and_the_figures(self, workflow):
        edit(Path("profiles/toy.yaml"), "shots: 2", "shots: 3")
        snakemake()
        assert ran() == {"02_toy 3", "99_final_figures 8"}

    def test_override_runs_what_takes_it(self, workflow):
        result = snakemake("lr=5e-2", "data=embedded")
        assert result.returncode == 0, result.stderr
        assert ran() == ALL

    def test_fresh_clone_runs_everything(self, workflow):
        for path in Path("papermill_runs/toy").glob("*/notebook.ipynb"):
            path.unlink()
        shutil.rmtree("papermill_runs/toy/.stamps")
        shutil.rmtree(".snakemake")
        snakemake()
        assert ran() == ALL

    def test_deleted_results_run_again_though_their_stamp_is_there(self, workflow):
        shutil.rmtree("papermill_runs/toy/pocket_topics-02_toy")
        snakemake()
        assert "02_toy 2" in ran()

    def test_failing_run_leaves_its_own_and_the_others_results(self, workflow):
        edit(Path("notebooks/02_toy.py"), "pass", "raise ValueError('wrong')")
        edit(Path("notebooks/01_toy.py"), "1 / 3", "1 / 4")
        older = Path("papermill_runs/toy/pocket_topics-02_toy/results.jsonl").read_bytes()
        result = snakemake()
        assert result.returncode == 1 and "ValueError: wrong" in result.stderr
        assert ran() == {"01_toy 4", "01_toy 8", "02_toy 2"}
        assert Path("papermill_runs/toy/pocket_topics-02_toy/results.jsonl").read_bytes() == older

    def test_repaired_run_is_all_that_the_next_call_needs(self, workflow):
        edit(Path("notebooks/02_toy.py"), "pass", "raise ValueError('wrong')")
        snakemake()
        ran()
        edit(Path("notebooks/02_toy.py"), "raise ValueError('wrong')", "pass; 1")
        assert snakemake().returncode == 0
        assert ran() == {"02_toy 2", "99_final_figures 8"}

    @pytest.mark.parametrize("victim", ["run", "workflow"])
    def test_call_after_a_kill_completes(self, workflow, victim):
        edit(Path("notebooks/02_toy.py"), "pass", SLEEP)
        process = subprocess.Popen(command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not Path("asleep").exists():
            time.sleep(0.1)
        (left,) = hidden(workflow, "toy")
        if victim == "workflow":
            process.kill()
        os.kill(int(left.split(".")[-2]), signal.SIGKILL)
        assert process.wait(60) != 0
        ran()
        Path("awake").touch()
        assert snakemake().returncode == 0
        assert ran() == {"02_toy 2", "99_final_figures 8"} and hidden(workflow, "toy") == []

    def test_bad_override_is_told_and_runs_nothing(self, root):
        result = snakemake("shot=4")
        assert result.returncode != 0 and "did you mean shots" in result.stderr
        assert ran() == set()
