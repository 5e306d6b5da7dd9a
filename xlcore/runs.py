"""Profiles become a table of runs, and a run becomes a folder of checked results.

Stands around the notebooks: profiles/*.yaml -> table -> papermill x notebooks/ -> papermill_runs/.
No paper section: this is the bookkeeping that makes every number of the study repeatable.
"""

import argparse
import ast
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from xlcore.errors import InputError, choose
from xlcore.results import RunError, announced, finish

__all__ = ["Run", "RunError", "execute", "finish", "table"]  # notebooks close with runs.finish

SOURCES = ("auto", "embedded", "directory", "hub")
RESERVED = ("data", "profile", "run_dir")  # every notebook has them, and the runner sets them
FINAL = "99_final_figures"  # reads the rows of all other runs of its profile
PLOTTING = ("figures", "statistics", "claims", "claims_ltp")  # count for the final figures alone
PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "papermill")
PACKAGE = Path(__file__).resolve().parent
TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list)}
STRICT = ConfigDict(strict=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Entry(BaseModel, extra="forbid"):
    """One item of a profile's runs; what `embedded` or `real` sets holds for such data only."""

    notebook: str
    name: str = ""
    parameters: dict[str, Any] = {}
    embedded: dict[str, Any] = {}
    real: dict[str, Any] = {}
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}


class Profile(BaseModel, extra="forbid"):
    """The content of profiles/<name>.yaml."""

    description: str
    memory_gib: Annotated[float, Field(gt=0)] | None = None  # of the largest run; None: unknown
    data: str
    datasets: dict[Literal["embedded", "real"], str] = Field(min_length=2)
    defaults: dict[str, Any] = {}
    runs: list[Any]


@dataclass(frozen=True)
class Run:
    """One execution of one notebook: everything that decides its rows, without a machine path."""

    profile: str
    id: str
    notebook: str
    parameters: dict
    data: str  # name of the data set, "pocket_topics" or "sib200"
    source: str  # "embedded", "directory" or "hub"
    code_sha256: str
    fingerprint: str = ""  # of code, parameters, data and the runs whose rows are read


class _Yaml(yaml.SafeLoader):
    """YAML that also reads 5e-3 as a number, which PyYAML takes for text."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str, where: str) -> object:
    try:
        return yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {error}") from error


def _validated(where: str, model: type[BaseModel], content: object) -> BaseModel:
    """`content` as the model; InputError names the place, the value and the nearest known names."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            choose(f"name in {where}", place, model.model_fields)
        raise InputError(f"{where}: {place} = {first['input']!r}: {first['msg']}") from error


def parse_overrides(pairs: Iterable[str]) -> dict[str, object]:
    """Return the `name=value` texts as a dictionary, each value read as YAML.

    `notebook.name=value` is for one notebook only. Raises InputError for a text that is neither,
    and for a name given twice.
    """
    overrides: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        plain = name.rpartition(".")[2].isidentifier() and not name.startswith(".")
        if not equals or not plain or name in overrides:
            raise InputError(f"{pair!r} is not a new name=value, for example shots=8")
        overrides[name] = _yaml(value, pair)
    return overrides


def _read(notebook: str) -> Any:
    import jupytext  # takes a second, and a notebook that imports this module never reads one

    choose("notebook", notebook, sorted(p.stem for p in Path("notebooks").glob("*.py")))
    return jupytext.read(f"notebooks/{notebook}.py", fmt="py:percent")


def _cells(notebook: str) -> tuple[str, str]:
    """The source of the parameters cell, and that of all other code cells."""
    cells = _read(notebook).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise InputError(f"notebook {notebook} has {len(tagged)} cells tagged parameters, wanted 1")
    code = [cell.source for cell in cells if cell.cell_type == "code" and cell is not tagged[0]]
    return tagged[0].source, "\n".join(code)


def parameters(notebook: str) -> type[BaseModel]:
    """Return the parameters that `notebook` lets a profile set, as a strict model with defaults.

    Only an int may become a float. Raises InputError for a line of the parameters cell that is not
    `name: type = plain value`, and where one of the RESERVED names is missing.
    """
    fields = {}
    for line in ast.parse(_cells(notebook)[0]).body:
        try:
            kind = eval(ast.unparse(line.annotation), {"__builtins__": {}}, TYPES)
            fields[line.target.id] = (kind, ast.literal_eval(line.value))
        except (AttributeError, NameError, TypeError, ValueError) as error:
            raise InputError(
                f"notebook {notebook}: {ast.unparse(line)!r} is not a parameter such as "
                "shots: int = 8, with int, float, str, bool, list[...], None and | between them"
            ) from error
    if missing := set(RESERVED) - set(fields):
        raise InputError(f"notebook {notebook} must declare {', '.join(sorted(missing))}")
    free = {name: field for name, field in fields.items() if name not in RESERVED}
    return create_model(notebook, __config__=STRICT, **free)


def _profile(name: str) -> tuple[Profile, list[Entry]]:
    if not Path("profiles").is_dir():
        raise InputError("no folder profiles/ here: start from the root of the repository")
    choose("profile", name, sorted(p.stem for p in Path("profiles").glob("*.yaml")))
    path = Path("profiles", f"{name}.yaml")
    profile = _validated(path.name, Profile, _yaml(path.read_text("utf-8"), path.name))
    return profile, [_validated(f"a run of {path.name}", Entry, entry) for entry in profile.runs]


def side_by_side(profile: str, cores: int, overrides: Iterable[str] = ()) -> int:
    """Return how many runs of a profile share this machine, each with its part of the cores.

    Small models leave many cores idle: two at a time, or one for every four cores, as far as three
    quarters of the memory hold them. One where the profile does not tell its `memory_gib`, where
    overrides change what that rests on (the model, or which weights learn), or where an NVIDIA GPU
    would be shared. Raises InputError as `table`.
    """
    need = _profile(profile)[0].memory_gib
    changed = {name.rpartition(".")[2] for name in overrides} & {"backbone", "encoder", "scope"}
    if need is None or changed or shutil.which("nvidia-smi"):
        return 1
    return max(1, min(cores, max(2, cores // 4), int(0.75 * _memory_gib() / need)))


def _memory_gib() -> float:
    """Return the memory that processes may use here: the machine's, or less in a container."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a number, or "max" for none
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory / 2**30


def resolve_source(wanted: str, asked: bool = False) -> str:
    """Return the data source that `wanted` means here: embedded, directory or hub.

    A folder named by XLCORE_DATA goes before the Hub and before the embedded corpus; `embedded`
    stays embedded, and `asked` (named on the command line) takes every word literally. `auto`
    never goes to the network. Raises InputError where XLCORE_DATA does not hold the data.
    """
    choose("data source", wanted, SOURCES)
    folder = os.environ.get("XLCORE_DATA")
    source = "embedded" if wanted == "auto" else wanted
    if folder and (wanted == "auto" or (wanted == "hub" and not asked)):
        source = "directory"
    if source == "directory" and not Path(folder or "no folder named").is_dir():
        raise InputError(f"XLCORE_DATA={folder or ''!r} is not a folder")
    return source


def _slug(value: object) -> str:
    """A value as part of a folder name: facebook/xglm-564M -> xglm-564M, [1, 2] -> 1-2."""
    text = value.split("/")[-1] if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "none"


def _points(
    entry: Entry, kind: str, model: type[BaseModel], defaults: Mapping, overrides: Mapping
) -> Iterator[tuple[str, dict]]:
    """A name and all parameters for each point of an entry's grid, with one kind of data.

    A later one wins of the notebook's value, the profile's default, the entry's own (which must
    stand in one place), the override, and the override for this notebook only. An override narrows
    a grid to the one value.
    """
    own = [*entry.parameters, *entry.grid, *(entry.embedded | entry.real)]
    for name in own:
        if own.count(name) > 1:
            raise InputError(f"{name} of a run of notebook {entry.notebook} is set in two places")
    wide = {name: defaults[name] for name in defaults if name in model.model_fields}
    asked = {name: (f"{entry.notebook}.{name}", name) for name in model.model_fields}
    last = {n: overrides[x] for n, names in asked.items() for x in names[::-1] if x in overrides}
    axes = [[last[name]] if name in last else entry.grid[name] for name in entry.grid]
    for values in itertools.product(*axes):
        point = dict(zip(entry.grid, values, strict=True))
        given = wide | entry.parameters | getattr(entry, kind) | last | point
        checked = _validated(f"notebook {entry.notebook}", model, given)
        yield "-".join([entry.name or entry.notebook, *map(_slug, values)]), checked.model_dump()


def table(profile: str, /, **overrides: object) -> list[Run]:
    """Return the runs of `profile`, fully checked, the final figures' fingerprint depending on all.

    `overrides` replace parameters wherever a notebook declares them, or in the one notebook of
    `notebook.name`; `data` among them replaces the profile's data source. Runs that overrides make
    equal are one run, the first. Raises InputError for anything unknown, of the wrong type,
    declared by no notebook, or two different runs with one id.
    """
    spec, entries = _profile(profile)
    asked = "data" in overrides
    source = resolve_source(overrides.pop("data", spec.data), asked)
    notebooks = dict.fromkeys(entry.notebook for entry in entries)
    models = {notebook: parameters(notebook) for notebook in notebooks}
    codes = {notebook: code_sha256(notebook) for notebook in notebooks}
    known = dict.fromkeys(name for model in models.values() for name in model.model_fields)
    for name in [*spec.defaults, *overrides]:
        notebook, _, own = name.rpartition(".")
        one = notebook and choose(f"notebook of profile {profile}", notebook, notebooks)
        where = f"notebook {one}" if one else f"profile {profile}"
        choose(f"parameter of {where}", own, models[one].model_fields if one else known)
    chosen, other = ("embedded", "real") if source == "embedded" else ("real", "embedded")
    data, runs = spec.datasets[chosen], {}
    for entry in entries:
        given = (models[entry.notebook], spec.defaults, overrides)
        list(_points(entry, other, *given))  # no typing error waits for the other kind of data
        for name, values in _points(entry, chosen, *given):
            values |= {"profile": profile, "data": source}
            code = codes[entry.notebook]
            run = Run(profile, f"{data}-{name}", entry.notebook, values, data, source, code)
            run = replace(run, fingerprint=_fingerprint(run))
            again = bool(overrides) and run.fingerprint in {r.fingerprint for r in runs.values()}
            if run.id in runs and not again:
                raise InputError(
                    f"two different runs of {profile} have the id {run.id}: give one a name in "
                    "the profile, or override in one notebook only, as in 02_prompt_length.shots=4"
                )
            if not again:
                runs[run.id] = run
    found = list(runs.values())
    return [replace(r, fingerprint=_fingerprint(r, needs(r, found))) for r in found]


def command(*manifests: Mapping) -> str:
    """Return the `make run` call that makes finished runs again, in the root of the repository.

    Parameters that differ from what their profile says today stand in SET, those that a notebook
    no longer has do not; runs with another SET have a call of their own, after `&&`. A run on the
    files of a folder wants it in XLCORE_DATA where its profile would else be embedded. Raises
    InputError if a profile has no such run any more.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for manifest in manifests:
        alike.setdefault((manifest["profile"], _changes(manifest)), []).append(manifest["id"])
    calls = []
    for (profile, words), ids in alike.items():
        wanted = ids[0] if len(ids) == 1 else f'"{" ".join(ids)}"'
        calls.append(f"make run PROFILE={profile} RUN={wanted}" + (f' SET="{words}"' * bool(words)))
    return " && ".join(calls)


def _changes(manifest: Mapping) -> str:
    """What a finished run sets otherwise than its profile does today, as name=value words."""
    spec, entries = _profile(manifest["profile"])
    kind = "embedded" if manifest["source"] == "embedded" else "real"
    model, given, planned = parameters(manifest["notebook"]), manifest["parameters"], {}
    for entry in (e for e in entries if e.notebook == manifest["notebook"]):
        point = {n: given[n] for n in entry.grid if n in given}  # perhaps not one of the grid's own
        beyond = {n for n, value in point.items() if value not in entry.grid[n]}
        for name, values in _points(entry, kind, model, spec.defaults, point):
            planned[f"{manifest['data']}-{name}"] = values, beyond
    if manifest["id"] not in planned:
        raise InputError(f"profile {manifest['profile']} has no run {manifest['id']} any more")
    today, beyond = planned[manifest["id"]]
    own = [n for n in given if n in model.model_fields]
    changed = {n: given[n] for n in own if given[n] != today[n] or n in beyond}
    if kind == "real" and spec.data in ("auto", "embedded"):
        changed["data"] = manifest["source"]
    texts = [f"{n}={json.dumps(v, separators=(',', ':'))}" for n, v in changed.items()]
    return " ".join(texts).replace('"', "")  # YAML reads plain words, and a shell drops quotes


def needs(run: Run, runs: Iterable[Run]) -> list[Run]:
    """Return the runs whose rows `run` reads: all others for the final figures, else none."""
    return [r for r in runs if r.notebook != FINAL] if run.notebook == FINAL else []


def _sha256(*parts: str | Path) -> str:
    """One hash of texts and of files with their names, each hashed first."""
    total = hashlib.sha256()
    for part in parts:
        file = isinstance(part, Path)
        content = f"{part.name}\n".encode() + part.read_bytes() if file else part.encode()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def code_sha256(notebook: str) -> str:
    """Return one hash of the notebook's code cells and the xlcore modules that can change its rows.

    These are the modules it imports, directly or through others. The parameters cell counts by its
    values, this module not at all, and PLOTTING only for the final figures.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    code = _cells(notebook)[1]
    found = set() if notebook == FINAL else set(PLOTTING)
    queue = _imported(TransformerManager().transform_cell(code)) - found  # magics are no Python
    while queue:
        found |= queue
        sources = [(PACKAGE / f"{name}.py").read_text("utf-8") for name in queue]
        queue = set().union(*map(_imported, sources)) - found
    left_out = {"runs"} if notebook == FINAL else {"runs", *PLOTTING}
    modules = [PACKAGE / f"{name}.py" for name in sorted(found - left_out)]
    return _sha256(code, *modules, *sorted(PACKAGE.glob("*.tsv")))


def _imported(code: str) -> set[str]:
    """The modules of xlcore that some code imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.removeprefix(f"{PACKAGE.name}."))
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix(f"{PACKAGE.name}.") for alias in node.names}
    return {name for name in names if (PACKAGE / f"{name}.py").is_file()}


def _fingerprint(run: Run, upstream: Iterable[Run] = ()) -> str:
    """One hash of all that decides the rows; prose, file dates and the place do not enter.

    What stands for a directory's data are the pinned checksums that every file is held against,
    and for the Hub's data the ids in the hashed modules.
    """
    files = sorted(PACKAGE.glob("checksums/*")) if run.source == "directory" else []
    if run.source == "embedded":
        files = sorted(path for path in Path("data").rglob("*") if path.is_file())
        if not files:
            raise InputError("no embedded data: the folder data/ is missing or empty")
    values = json.dumps(run.parameters, sort_keys=True)
    return _sha256(run.code_sha256, values, run.source, *files, *(r.fingerprint for r in upstream))


def folder(run: Run) -> Path:
    """Return the place of a run's results: papermill_runs/<profile>/<id>."""
    return Path("papermill_runs", run.profile, run.id)


def done(run: Run) -> bool:
    """Return whether the folder of `run` is complete, intact and of this very fingerprint."""
    try:
        manifest = json.loads((folder(run) / "manifest.json").read_text("utf-8"))
        found = hashlib.sha256((folder(run) / "results.jsonl").read_bytes()).hexdigest()
    except (OSError, ValueError):
        return False
    whole = (folder(run) / "notebook.ipynb").is_file() and found == manifest.get("results_sha256")
    return whole and manifest.get("fingerprint") == run.fingerprint


def stamp(run: Run) -> str:
    """Return the path of the empty file by which the workflow knows that `run` is done."""
    return f"papermill_runs/{run.profile}/.stamps/{run.id}.{run.fingerprint[:12]}"


def _papermill(run: Run, work: Path, home: str) -> None:
    """Execute the notebook in `work` with this Python; no kernel or start-up file of the user."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    class ThisPython(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict(), env={"IPYTHONDIR": home})

    # It warns of every `X | None` parameter and repeats what the caller reports.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    papermill.execute_notebook(
        _read(run.notebook),
        work / "notebook.ipynb",
        parameters=run.parameters | {"run_dir": work.as_posix()},
        kernel_name="python3",
        language="python",
        kernel_manager_class=ThisPython,
        config=Config(KernelManager={"transport_encryption": "auto"}),  # else the kernel warns
        progress_bar=False,
    )


def _fault(path: Path, error: Exception | None) -> str | None:
    """Where an executed notebook stopped, and why; None if all its cells ran without an error."""
    cells = json.loads(path.read_text("utf-8"))["cells"] if path.is_file() else []
    at, why = "before the first cell", f"{type(error).__name__}: {error}"
    for cell in cells:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] != "code" or not source:
            continue
        if cell["metadata"]["papermill"]["start_time"] is None:
            return f"{at}: {why if error else 'the next cell did not run'}"
        at = f"cell {source.splitlines()[0]!r}"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                return f"{at}: {output['ename']}: {output['evalue']}"
    return f"{at}: {why}" if error else None


def _commit() -> str | None:
    """The checkout's commit, with a + if code differs from it; None outside of git."""
    code = ("xlcore", "notebooks/*.py")
    try:
        return _git("rev-parse", "HEAD") + "+" * bool(_git("status", "--porcelain", "--", *code))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _manifest(run: Run, closing: Mapping, seconds: float, commit: str | None) -> dict:
    about = {
        "commit": commit,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": [platform.system(), platform.machine(), f"Python {platform.python_version()}"],
        "seconds": round(seconds, 1),
    }
    text = json.dumps(asdict(run) | about | closing, ensure_ascii=False, allow_nan=False)
    # Absolute paths are cut to their last name: a manifest names no place on the machine.
    return json.loads(re.sub(r"((?<![\w:/.~])|(?<=\\n))~?/([\w.+@-]+/)+", ".../", text))


def _execute_in(work: Path, run: Run) -> dict:
    """Execute and check a run in `work`, and leave there exactly what a result folder holds."""
    started, commit, error = time.monotonic(), _commit(), None
    try:
        with tempfile.TemporaryDirectory() as home:
            _papermill(run, work, home)
    except Exception as caught:  # papermill, nbclient and the kernel each raise their own kinds
        error = caught
    if fault := _fault(work / "notebook.ipynb", error):
        raise RunError(fault) from error
    manifest = _manifest(run, announced(work), time.monotonic() - started, commit)
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (work / "manifest.json").write_text(text + "\n", encoding="utf-8")
    (work / "closing.json").unlink()
    return manifest


def _clear(area: Path, final: Path) -> None:
    """Remove what a run left; if it ended between its two renames, older results come back."""
    if (area / "old").exists() and not final.exists():
        (area / "old").rename(final)
    shutil.rmtree(area, ignore_errors=True)


def execute(run: Run) -> dict:
    """Execute `run`, fill its folder and return its manifest.

    The folder (notebook.ipynb, results.jsonl, manifest.json) appears whole or not at all, and older
    results stay until then. Raises RunError with the failing cell and the kept notebook's path.
    """
    final = folder(run)
    area, kept = final.parent / ".work" / run.id, final.parent / ".failed" / f"{run.id}.ipynb"
    work = area / str(os.getpid())
    _clear(area, final)
    work.mkdir(parents=True)
    try:
        manifest = _execute_in(work, run)
        if final.exists():
            final.rename(area / "old")
        work.rename(final)
        return manifest
    except RunError as error:
        if (work / "notebook.ipynb").is_file():
            kept.parent.mkdir(exist_ok=True)
            (work / "notebook.ipynb").replace(kept)
        raise RunError(f"{run.id} failed: {error}; executed notebook: {kept}") from error
    finally:
        _clear(area, final)


def _execute_all(profile: str, runs: list[Run], wanted: list[str]) -> None:
    by_id = {run.id: run for run in runs}
    if not wanted:
        raise InputError(
            f'no run named: make run PROFILE={profile} RUN="ID ..."; allowed: {", ".join(by_id)}'
        )
    for name in wanted:
        choose(f"run of profile {profile}", name, by_id)
    for name in wanted:
        print(f"{name} starts", flush=True)
        manifest = execute(by_id[name])
        print(f"{name}: {manifest['rows']} rows in {manifest['seconds']:.0f} s", flush=True)


def _print_table(runs: list[Run]) -> None:
    for run in runs:
        state = "done" if done(run) else "to run"
        print(f"{run.id:<40} {run.data} ({run.source}) {run.fingerprint[:12]} {state}")


def _summarize(run: Run) -> pd.DataFrame:
    """Accuracies averaged over seeds: English, and the mean of the other languages."""
    rows = pd.read_json(folder(run) / "results.jsonl", lines=True)
    keys = ["study", "backbone", "method", "shots", "length", "network"]
    both = ["reparameterization", "hidden"]
    rows = rows.reindex(columns=[*keys, *both, "selection", "metric", "language", "seed", "value"])
    rows = rows[(rows.metric == "accuracy") & (rows.selection != "last")]
    named = zip(rows.reparameterization, rows.hidden, strict=True)
    rows["network"] = [f"{kind} {width:.0f}" if width > 0 else None for kind, width in named]
    lines = []
    for key, part in rows.astype({"length": "Int64"}).groupby(keys, dropna=False, sort=False):
        means = part.groupby("language").value.mean()
        others = means.drop("eng", errors="ignore").mean()
        lines.append([*key, len(means), part.seed.nunique(), means.get("eng"), others])
    return pd.DataFrame(lines, columns=[*keys, "languages", "seeds", "English", "others"])


def _print_summary(runs: list[Run]) -> None:
    there = [run for run in runs if (folder(run) / "results.jsonl").is_file()]
    found = [summary for run in there if len(summary := _summarize(run))]
    if found:
        lines = pd.concat(found).round(1).astype(object)
        print(lines.where(lines.notna(), "-").to_string(index=False))
    drawn = Path("figures", runs[0].profile, runs[0].data)
    figures = sorted(p.as_posix() for p in drawn.glob("*") if p.suffix in (".png", ".md", ".csv"))
    print(*(f"not run yet: {run.id}" for run in runs if run not in there), *figures, sep="\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 2 for bad input, 1 for a failed run."""
    parser = argparse.ArgumentParser("python -m xlcore.runs", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["table", "execute", "summary"])
    parser.add_argument("profile", help="a file of profiles/, without .yaml")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="values as YAML")
    parser.add_argument("--run", metavar="ID", nargs="*", default=[], help="the runs to execute")
    args = parser.parse_intermixed_args(argv)
    pairs = [*args.overrides, *(word for word in args.run if "=" in word)]  # no ID has one
    wanted = [word for word in args.run if "=" not in word]
    # A polite kill, such as a scheduler's, takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runs = table(args.profile, **parse_overrides(pairs))
        if args.command == "execute":
            _execute_all(args.profile, runs, wanted)
        else:
            {"table": _print_table, "summary": _print_summary}[args.command](runs)
    except (InputError, RunError) as error:
        print(" ".join(f"error: {error}".split()), file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
