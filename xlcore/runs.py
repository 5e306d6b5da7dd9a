"""Profiles become a table of runs, and a run becomes a folder of checked results.

Stands around the notebooks: profiles/*.yaml -> table -> papermill x notebooks/ -> papermill_runs/.
No paper section: this is the bookkeeping that makes every number of the study repeatable.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib.metadata
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import tokenize
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from xlcore.errors import InputError, choose

if typing.TYPE_CHECKING:
    import pandas

REQUIRED = (
    "study", "task", "data", "backbone", "method", "language", "seed", "shots", "metric", "value",
)  # fmt: skip
SOURCES = ("auto", "embedded", "directory", "hub")
PROFILE_KEYS = ("description", "data", "datasets", "defaults", "runs")
ENTRY_KEYS = ("notebook", "name", "parameters", "grid")
RESERVED = ("data", "profile", "run_dir")  # set by the runner, so a profile cannot set them
OPTIONAL_SOURCES = ("figures", "statistics")  # read finished rows, cannot change them
FINAL = "99_final_figures"  # reads the rows of all other runs of its profile
PACKAGES = ("torch", "transformers", "peft", "datasets", "numpy", "papermill", "xlcore")
ADDED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that papermill puts in
KERNEL = "xlcore-this-python"
PACKAGE = Path(__file__).resolve().parent


class RunError(RuntimeError):
    """A notebook did not run to its end, or did not leave the rows it announced."""


@dataclass(frozen=True)
class Parameter:
    """One typed line of a notebook's parameters cell."""

    name: str
    annotation: str
    kind: object = field(repr=False)
    default: object
    comment: str


@dataclass(frozen=True)
class Run:
    """One execution of one notebook: everything that decides its rows, without a machine path."""

    profile: str
    id: str
    notebook: str
    parameters: dict = field(hash=False)
    data: str  # name of the data set, "pocket_topics" or "sib200"
    source: str  # "embedded", "directory" or "hub"
    fingerprint: str = ""


# ---- values: YAML in, typed parameters out ------------------------------------------------------


class _Yaml(yaml.SafeLoader):
    """YAML 1.2 scalars: 5e-3 is a number, and `no` is Norwegian, not False."""

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|None|", ["~", "n", "N", ""]),
    ("bool", r"true|True|false|False", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), _first)


def _yaml(text: str, where: str) -> object:
    try:
        return yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {error}") from error


def parse_overrides(pairs: Iterable[str]) -> dict[str, object]:
    """Return the `name=value` texts as a dictionary, each value read as YAML 1.2.

    Raises InputError for a text that is not `name=value` and for a name given twice.
    """
    overrides: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{pair!r} is not name=value, for example shots=8")
        if name in overrides:
            raise InputError(f"parameter {name!r} is given twice")
        overrides[name] = _yaml(value, pair)
    return overrides


def _kind(node: ast.expr) -> object:
    """The type that an annotation stands for, without evaluating any code."""
    scalars = {kind.__name__: kind for kind in (int, float, str, bool)}
    match node:
        case ast.Name(id=name) if name in scalars:
            return scalars[name]
        case ast.Constant(value=None):
            return types.NoneType
        case ast.Subscript(value=ast.Name(id="list"), slice=element):
            return list[_kind(element)]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _kind(left) | _kind(right)
    raise InputError(
        f"type {ast.unparse(node)!r} is not allowed for a parameter: "
        "use int, float, str, bool, list[...], None and | between them"
    )


def _convert(name: str, value: object, kind: object, annotation: str) -> object:
    """Return `value` as `kind`; only an int may become a float, and a bool is never a number."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(value) in options:
        return value
    if type(value) is int and float in options:
        return float(value)
    for option in options:
        if typing.get_origin(option) is list and isinstance(value, list):
            (element,) = typing.get_args(option)
            return [
                _convert(f"{name}[{i}]", v, element, getattr(element, "__name__", str(element)))
                for i, v in enumerate(value)
            ]
    raise InputError(
        f"parameter {name} = {value!r} is of type {type(value).__name__}, wanted {annotation}"
    )


# ---- notebooks: the parameters cell and the code ------------------------------------------------


def _root(root: Path | None) -> Path:
    root = Path(root) if root is not None else Path.cwd()
    for folder in ("profiles", "notebooks"):
        if not (root / folder).is_dir():
            raise InputError(
                f"no folder {folder}/ in {root}: start from the root of the repository"
            )
    return root


def _read_notebook(notebook: str, root: Path):
    import jupytext

    choose("notebook", notebook, sorted(p.stem for p in (root / "notebooks").glob("*.py")))
    return jupytext.read(root / "notebooks" / f"{notebook}.py", fmt="py:percent")


def _is_parameters(cell) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def _code(notebook: str, root: Path) -> str:
    """The code cells alone; the parameters cell counts by its values, not by its text."""
    cells = _read_notebook(notebook, root).cells
    return "\n".join(c.source for c in cells if c.cell_type == "code" and not _is_parameters(c))


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def _parameter(statement: ast.stmt, comments: Mapping[int, str]) -> Parameter:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=node, value=ast.expr() as value):
            kind, annotation = _kind(node), ast.unparse(node)
        case _:
            line = ast.unparse(statement)
            raise InputError(f"{line!r} is not a typed parameter such as shots: int = 8")
    try:
        default = ast.literal_eval(value)
    except ValueError as error:
        raise InputError(f"default of parameter {name} is not a plain value") from error
    comment = comments.get(statement.lineno) or comments.get(statement.end_lineno, "")
    return Parameter(name, annotation, kind, _convert(name, default, kind, annotation), comment)


def parameters(notebook: str, root: Path | None = None) -> dict[str, Parameter]:
    """Return the typed parameters that `notebook` declares, in the order of its cell.

    Raises InputError for an unknown notebook, for not exactly one cell tagged `parameters`, and
    for a line in it that is not `name: type = plain value`.
    """
    cells = [c for c in _read_notebook(notebook, _root(root)).cells if _is_parameters(c)]
    if len(cells) != 1:
        raise InputError(f"notebook {notebook} has {len(cells)} cells tagged parameters, wanted 1")
    source = cells[0].source
    comments = _comments(source)
    try:
        found = [_parameter(statement, comments) for statement in ast.parse(source).body]
    except InputError as error:
        raise InputError(f"parameters of notebook {notebook}: {error}") from error
    return {p.name: p for p in found}


def check_parameters(
    notebook: str, given: Mapping[str, object], root: Path | None = None
) -> dict[str, object]:
    """Return all parameters of `notebook`: its defaults with the `given` values in their place.

    Raises InputError for a name the notebook does not declare (with the nearest three) and for a
    value of the wrong type. An int is accepted where a float is wanted; a bool is not a number.
    """
    declared = parameters(notebook, root)
    values = {name: p.default for name, p in declared.items()}
    for name, value in given.items():
        choose(f"parameter of notebook {notebook}", name, declared)
        values[name] = _convert(name, value, declared[name].kind, declared[name].annotation)
    return values


# ---- the runs table -----------------------------------------------------------------------------


def _check_keys(thing: str, found: object, allowed: Iterable[str]) -> dict:
    if not isinstance(found, dict):
        raise InputError(f"{thing} is a {type(found).__name__}, wanted names with values")
    for key in found:
        choose(f"key of {thing}", key, allowed)
    return found


def _profile(name: str, root: Path) -> dict:
    """The checked content of profiles/<name>.yaml, with every optional key filled in."""
    choose("profile", name, sorted(p.stem for p in (root / "profiles").glob("*.yaml")))
    path = root / "profiles" / f"{name}.yaml"
    spec = _yaml(path.read_text(encoding="utf-8"), path.name)
    spec = {"data": "auto", "defaults": {}} | _check_keys(path.name, spec, PROFILE_KEYS)
    for key, kind in {"datasets": dict, "runs": list, "defaults": dict}.items():
        if not isinstance(spec.get(key), kind):
            raise InputError(f"{key} of {path.name} is {spec.get(key)!r}, wanted a {kind.__name__}")
    if set(spec["datasets"]) != {"embedded", "real"}:
        raise InputError(f"datasets of {path.name} must name two: embedded and real")
    spec["runs"] = [_entry(path.name, entry) for entry in spec["runs"]]
    return spec


def _entry(where: str, entry: object) -> dict:
    """One checked item of a profile's list of runs."""
    entry = {"parameters": {}, "grid": {}} | _check_keys(f"run of {where}", entry, ENTRY_KEYS)
    if "notebook" not in entry:
        raise InputError(f"a run of {where} names no notebook: {entry}")
    for key in ("parameters", "grid"):
        if not isinstance(entry[key], dict):
            raise InputError(f"{key} of {entry['notebook']} in {where} are no names with values")
    for name in entry["parameters"].keys() & entry["grid"].keys():
        raise InputError(f"{name} stands in parameters and in grid of {where}")
    return entry


def resolve_source(wanted: str, asked: bool = False) -> str:
    """Return the data source that `wanted` means here: embedded, directory or hub.

    A folder named by XLCORE_DATA goes before the Hub and before the embedded corpus; `embedded`
    stays embedded, and `asked` (named on the command line) takes every word literally. `auto`
    never goes to the network. Raises InputError where XLCORE_DATA does not hold the data.
    """
    choose("data source", wanted, SOURCES)
    folder = os.environ.get("XLCORE_DATA")
    source = {"auto": "embedded"}.get(wanted, wanted)
    if folder and (wanted == "auto" or (wanted == "hub" and not asked)):
        source = "directory"
    if source == "directory" and not (Path(folder or "") / "SHA256SUMS").is_file():
        raise InputError(f"XLCORE_DATA={folder or ''!r} is not a folder with a SHA256SUMS file")
    return source


def _check_used(what: str, names: Iterable[str], notebooks: Mapping[str, Mapping]) -> None:
    """Every name must be declared by a notebook, or a typing error would change nothing."""
    allowed = dict.fromkeys(name for declared in notebooks.values() for name in declared)
    for name in names:
        choose(what, name, [a for a in allowed if a not in RESERVED])


def _slug(value: object) -> str:
    """A value as part of a folder name: facebook/xglm-564M -> xglm-564M, [1, 2] -> 1-2."""
    text = str(value).split("/")[-1] if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "none"


def _points(entry: Mapping, overrides: Mapping) -> Iterator[dict]:
    """Each combination of the grid's values; an override leaves its axis with that one value."""
    grid = entry["grid"]
    axes = [[overrides[name]] if name in overrides else grid[name] for name in grid]
    for name, values in zip(grid, axes, strict=True):
        if not isinstance(values, list) or not values:
            raise InputError(f"grid of {name} for {entry['notebook']} is {values!r}, wanted a list")
    for point in itertools.product(*axes):
        yield dict(zip(grid, point, strict=True))


def _run_parameters(notebook: str, given: Mapping, root: Path | None = None) -> dict:
    """All parameters of a run but the folder, which its executor names."""
    values = check_parameters(notebook, given, root)
    if values.pop("run_dir", None) != "":
        raise InputError(f'notebook {notebook} must declare run_dir: str = ""')
    return values


def _expand(
    profile: str, spec: Mapping, entry: Mapping, overrides: Mapping, root: Path
) -> Iterator[Run]:
    """The runs of one entry of a profile, one for each point of its grid."""
    notebook, source = entry["notebook"], spec["source"]
    declared = parameters(notebook, root)
    given = [*entry["grid"], *entry["parameters"]]
    _check_used(f"parameter of notebook {notebook}", given, {notebook: declared})
    fixed = {"profile": profile, "data": source} | spec["defaults"]
    data = spec["datasets"]["embedded" if source == "embedded" else "real"]
    for point in _points(entry, overrides):
        wide = {k: v for k, v in (fixed | overrides).items() if k in declared}
        narrow = {k: v for k, v in entry["parameters"].items() if k not in overrides}
        values = _run_parameters(notebook, wide | narrow | point, root)
        name = "-".join([data, entry.get("name", notebook), *map(_slug, point.values())])
        yield Run(profile, name, notebook, values, data, source)


def table(profile: str, root: Path | None = None, /, **overrides: object) -> list[Run]:
    """Return the runs of `profile`, fully checked, the final figures' fingerprint depending on all.

    `overrides` replace parameters wherever a notebook declares them; `data` among them replaces
    the profile's data source. Raises InputError for anything unknown, of the wrong type, declared
    by no notebook, or two runs with one id.
    """
    root = _root(root)
    spec = _profile(profile, root)
    asked = "data" in overrides
    spec["source"] = resolve_source(overrides.pop("data", spec["data"]), asked)
    notebooks = {e["notebook"]: parameters(e["notebook"], root) for e in spec["runs"]}
    _check_used(f"default of profile {profile}", spec["defaults"], notebooks)
    _check_used(f"parameter of profile {profile}", overrides, notebooks)
    runs = [r for entry in spec["runs"] for r in _expand(profile, spec, entry, overrides, root)]
    ids = [run.id for run in runs]
    for i in ids:
        if ids.count(i) > 1:
            raise InputError(f"two runs of profile {profile} have the id {i}: give one a name")
    runs = [replace(r, fingerprint=fingerprint(r, root)) for r in runs]
    return [replace(r, fingerprint=fingerprint(r, root, needs(r, runs))) for r in runs]


def needs(run: Run, runs: Iterable[Run]) -> list[Run]:
    """Return the runs whose rows `run` reads: all others for the final figures, else none."""
    return [r for r in runs if r.notebook != FINAL] if run.notebook == FINAL else []


# ---- what a result depends on -------------------------------------------------------------------


def _sha256(*parts: str | bytes) -> str:
    """One hash of several parts, each hashed first so that no two lists of parts collide."""
    raw = (p.encode() if isinstance(p, str) else p for p in parts)
    return hashlib.sha256(b"".join(hashlib.sha256(p).digest() for p in raw)).hexdigest()


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_sha256(notebook: str, root: Path | None = None) -> str:
    """Return one hash of the notebook's code cells and the xlcore modules that can change its rows.

    Figures and statistics count only for a notebook that names them.
    """
    code = _code(notebook, _root(root))
    sources = [
        path
        for path in sorted(PACKAGE.iterdir())
        if path.suffix in (".py", ".tsv")
        if path.stem not in OPTIONAL_SOURCES or re.search(rf"\b{path.stem}\b", code)
    ]
    return _sha256(code, *(f"{p.name} {_file_sha256(p)}" for p in sources))


def _data_identity(source: str, root: Path) -> str:
    """What stands for the data's content; the Hub's ids are constants in the hashed sources."""
    if source == "directory":
        return _file_sha256(Path(os.environ["XLCORE_DATA"]) / "SHA256SUMS")
    if source == "hub":
        return "hub"
    files = sorted(p for p in (root / "data").rglob("*") if p.is_file())
    if not files:
        raise InputError(f"no embedded data: the folder data/ in {root} is missing or empty")
    return _sha256(*(f"{p.relative_to(root).as_posix()} {_file_sha256(p)}" for p in files))


def fingerprint(run: Run, root: Path | None = None, upstream: Iterable[Run] = ()) -> str:
    """Return the sha256 over all that decides a run's rows: code, parameters, data, earlier runs.

    Prose, file dates and the place on disk do not enter.
    """
    root = _root(root)
    return _sha256(
        code_sha256(run.notebook, root),
        json.dumps(run.parameters, sort_keys=True),
        run.source,
        _data_identity(run.source, root),
        *(r.fingerprint for r in upstream),
    )


def folder(run: Run, root: Path | None = None) -> Path:
    """Return the place of a run's results: papermill_runs/<profile>/<id>."""
    return _root(root) / "papermill_runs" / run.profile / run.id


def done(run: Run, root: Path | None = None) -> bool:
    """Return whether the folder of `run` is complete, intact and of this very fingerprint."""
    place = folder(run, root)
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        intact = _file_sha256(place / "results.jsonl") == manifest["results_sha256"]
    except (OSError, ValueError, KeyError):
        return False
    notebook = (place / "notebook.ipynb").is_file()
    return intact and notebook and manifest.get("fingerprint") == run.fingerprint


def stamp(run: Run) -> str:
    """Return the path of the empty file by which the workflow knows that `run` is done."""
    return f"papermill_runs/{run.profile}/.stamps/{run.id}.{run.fingerprint[:12]}"


def sync_stamps(runs: Iterable[Run], root: Path | None = None) -> int:
    """Make the stamps say what the result folders say, the only truth; return how many are done."""
    root = _root(root)
    count = 0
    for run in runs:
        path = root / stamp(run)
        if not done(run, root):
            path.unlink(missing_ok=True)
            continue
        count += 1
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return count


# ---- executing one run --------------------------------------------------------------------------


@contextlib.contextmanager
def _this_python() -> Iterator[None]:
    """Offer the running interpreter as a kernel; no kernel or start-up file of the user is seen."""
    from ipykernel.kernelspec import write_kernel_spec

    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        write_kernel_spec(str(Path(home, "kernels", KERNEL)))
        search = os.pathsep.join(filter(None, [home, os.environ.get("JUPYTER_PATH")]))
        for name, value in {"JUPYTER_PATH": search, "IPYTHONDIR": f"{home}/ipython"}.items():
            stack.callback(_restore, name, os.environ.get(name))
            os.environ[name] = value
        yield


def _restore(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill, such as a scheduler's, takes the same way out as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _papermill(run: Run, work: Path, root: Path) -> None:
    """Execute the notebook in `work`; what papermill says about success is not used."""
    import jupytext
    import papermill
    from traitlets.config import Config

    # It warns of every `X | None` parameter and repeats what the caller reports.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    book = _read_notebook(run.notebook, root)
    book.metadata["kernelspec"] = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
    jupytext.write(book, work / "source.ipynb", fmt="ipynb")
    with _this_python():
        papermill.execute_notebook(
            work / "source.ipynb",
            work / "notebook.ipynb",
            parameters=run.parameters | {"run_dir": os.path.relpath(work, root)},
            kernel_name=KERNEL,
            cwd=root,
            config=Config(KernelManager={"transport_encryption": "auto"}),  # else ipykernel warns
            log_output=False,
            progress_bar=False,
        )


def _fault(path: Path, error: Exception | None) -> str | None:
    """The cell at which an executed notebook stopped, and why; None where every cell ran."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    number, reached, skipped = 0, "before the first cell", not cells
    for cell in cells:
        number += not ADDED & set(cell["metadata"].get("tags", []))  # as in the .py
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] != "code" or not source:
            continue
        name = f"cell {number} ({source.splitlines()[0]})"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                return f"{name}: {output['ename']}: {output['evalue']}"
        skipped |= cell["execution_count"] is None
        # A dead kernel's cell has no count; that papermill began it is all that is known.
        reached = name if cell["metadata"].get("papermill", {}).get("start_time") else reached
    if error is None and not skipped:
        return None
    return f"{reached}: " + (f"{type(error).__name__}: {error}" if error else "it did not finish")


def _closing(work: Path) -> dict:
    """What the closing cell wrote, after its word about the rows was checked."""
    try:
        closing = json.loads((work / "closing.json").read_text(encoding="utf-8"))
        results = (work / "results.jsonl").read_bytes()
    except (OSError, ValueError) as error:
        raise RunError("the notebook did not close with finish(rows, run_dir)") from error
    found = {"rows": results.count(b"\n"), "results_sha256": hashlib.sha256(results).hexdigest()}
    for key, value in found.items():
        if closing.get(key) != value:
            raise RunError(f"results.jsonl has {key} {value}, finish wrote {closing.get(key)}")
    return closing


def _tidy_notebook(run: Run, path: Path) -> None:
    """Leave a notebook that opens with any kernel, and without the temporary folder's name."""
    book = json.loads(path.read_text(encoding="utf-8"))
    book["metadata"]["kernelspec"] = {
        "name": "python3", "display_name": "Python 3", "language": "python",
    }  # fmt: skip
    book["metadata"].get("papermill", {}).update(
        input_path=f"notebooks/{run.notebook}.py", output_path="notebook.ipynb", parameters={}
    )
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _public(value: object) -> object:
    """`value` with each absolute path in a text cut to its last name: no machine in a manifest."""
    if isinstance(value, Mapping):
        return {k: _public(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(v) for v in value]
    if isinstance(value, str):
        return re.sub(r"(?<![\w:/.~])~?/([\w.+@-]+/)+", ".../", value)
    return value


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _manifest(run: Run, closing: Mapping, root: Path) -> dict:
    machine = {
        "system": platform.system(), "machine": platform.machine(), "cpu_count": os.cpu_count(),
    }  # fmt: skip
    about = {"code_sha256": code_sha256(run.notebook, root), "versions": _versions()}
    return _public(asdict(run) | about | {"platform": machine} | dict(closing))


def _leftovers(final: Path) -> Iterator[tuple[Path, str]]:
    """Folders that a killed run of the same id left: its pid is gone, or is ours by chance."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.(\d+)\.(tmp|old)")
    for path in final.parent.iterdir() if final.parent.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            yield path, match[2]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _clear_leftovers(final: Path) -> None:
    for path, kind in list(_leftovers(final)):
        if kind == "old" and not final.exists():
            path.rename(final)  # killed between the two renames: the old results come back
        else:
            shutil.rmtree(path)


def _replace_folder(new: Path, final: Path) -> None:
    """Put `new` in the place of `final`; at no moment is a half-written folder in that place."""
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    try:
        if final.exists():
            final.rename(old)
        new.rename(final)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _keep_failed(work: Path, final: Path) -> Path:
    """Keep what a failed run executed, for reading; the next failure of the run replaces it."""
    failed = final.parent / ".failed" / final.name
    failed.mkdir(parents=True, exist_ok=True)
    if (work / "notebook.ipynb").is_file():
        (work / "notebook.ipynb").replace(failed / "notebook.ipynb")
    return failed / "notebook.ipynb"


def _execute_in(run: Run, work: Path, root: Path) -> None:
    """Execute and check a run in `work`, and leave there exactly what a result folder holds."""
    error: Exception | None = None
    try:
        _papermill(run, work, root)
    except Exception as caught:  # papermill, nbclient and the kernel each raise their own kinds
        error = caught
    if fault := _fault(work / "notebook.ipynb", error):
        raise RunError(fault) from error
    manifest = _manifest(run, _closing(work), root)
    _tidy_notebook(run, work / "notebook.ipynb")
    _write_json(work / "manifest.json", manifest)
    for name in ("source.ipynb", "closing.json"):
        (work / name).unlink()


def _write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def execute(run: Run, root: Path | None = None, out: Path | None = None) -> Path:
    """Execute `run` and return its folder (or `out`): notebook.ipynb, results.jsonl, manifest.json.

    The folder appears whole or not at all, and older results stay until then. Raises RunError
    with the failing cell and the kept notebook's path; Ctrl-C and SIGTERM raise KeyboardInterrupt.
    """
    root = _root(root).resolve()
    final = root / out if out else folder(run, root)
    work = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with _sigterm_as_interrupt():
        _clear_leftovers(final)
        work.mkdir(parents=True)
        try:
            _execute_in(run, work, root)
            _replace_folder(work, final)
        except RunError as error:
            kept = os.path.relpath(_keep_failed(work, final), root)
            raise RunError(f"{run.id} failed: {error}; executed notebook: {kept}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return final


# ---- the closing cell ---------------------------------------------------------------------------


def _plain(where: str, value: object) -> object:
    """`value` as JSON can hold it, a float with six significant digits."""
    if hasattr(value, "item") and getattr(value, "ndim", None) in (None, 0):
        value = value.item()  # numpy and torch scalars
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: every number must be finite")
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(k): _plain(f"{where}.{k}", v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{where}[{i}]", v) for i, v in enumerate(value)]
    if value is None or isinstance(value, (str, int)):
        return value
    raise InputError(f"{where} is a {type(value).__name__}: wanted text, a number, a list or none")


def _records(rows: object) -> list[dict]:
    """`rows` as dictionaries; an empty cell of a DataFrame means that the row lacks the column."""
    import pandas

    if not isinstance(rows, pandas.DataFrame):
        return [dict(row) for row in rows]
    return [
        {
            k: v
            for k, v in row.items()
            if k in REQUIRED or not (pandas.api.types.is_scalar(v) and pandas.isna(v))
        }
        for row in rows.to_dict("records")
    ]


def _check_rows(rows: object) -> list[dict]:
    """The rows in plain types; InputError for a missing key, a non-number, a repeated row."""
    clean: list[dict] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(_records(rows), 1):
        row = {k: _plain(f"row {number}: {k}", v) for k, v in sorted(row.items())}
        for key in REQUIRED:
            if row.get(key) is None:
                raise InputError(f"row {number} has no {key}; it needs {', '.join(REQUIRED)}")
        if isinstance(row["value"], bool) or not isinstance(row["value"], (int, float)):
            raise InputError(f"row {number}: value is {row['value']!r}, wanted a number")
        key = json.dumps({k: v for k, v in row.items() if k != "value"}, sort_keys=True)
        if key in seen:
            raise InputError(f"rows {seen[key]} and {number} differ in nothing but value: {key}")
        seen[key] = number
        clean.append(row)
    return clean


def _costs() -> dict[str, float]:
    """Seconds since this process, the kernel, began, and its memory peaks in MiB."""
    import psutil

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    costs = {
        "seconds": round(time.time() - psutil.Process().create_time(), 1),
        "peak_memory_mib": round(peak, 1),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        costs["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return costs


def finish(
    rows: object, run_dir: str, *, allow_empty: bool = False, **facts: object
) -> "pandas.DataFrame":
    """Check a notebook's result rows, write them where a run asks for it, and return them.

    `rows` are dictionaries or a DataFrame with at least the columns REQUIRED; floats keep six
    significant digits. With `run_dir` "" nothing is written. `facts` (data, backbone, device, ...)
    go to the manifest. Raises InputError for missing keys, numbers that are not finite, repeated
    rows, and for no rows at all unless `allow_empty`.
    """
    import pandas

    clean = _check_rows(rows)
    if not clean and not allow_empty:
        raise InputError("no rows: a study that measured nothing has no results to write")
    told = _plain("facts", facts)
    if run_dir:
        lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in clean]
        text = "".join(lines).encode()
        (Path(run_dir) / "results.jsonl").write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        closing = {"rows": len(clean), "results_sha256": digest, "facts": told} | _costs()
        _write_json(Path(run_dir) / "closing.json", closing)
    return pandas.DataFrame(clean)


# ---- command line -------------------------------------------------------------------------------


def _print_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


def _command_table(args: argparse.Namespace) -> None:
    runs = table(args.profile, **parse_overrides(args.overrides))
    rows = [
        (r.id, r.notebook, f"{r.data} ({r.source})", r.fingerprint[:12], "yes" if done(r) else "no")
        for r in runs
    ]
    _print_table(("run", "notebook", "data", "fingerprint", "done"), rows)


def _told(run: Run, out: Path | None = None) -> None:
    """Execute a run and say so in one line, its name first and its outcome when it is there."""
    start = time.monotonic()
    print(f"{run.id}: ", end="", flush=True)
    try:
        place = execute(run, out=out)
    except BaseException as error:
        print("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", flush=True)
        raise
    rows = json.loads((place / "manifest.json").read_text(encoding="utf-8"))["rows"]
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(f"{rows} rows in {minutes} min {seconds:02d} s", flush=True)


def _command_execute(args: argparse.Namespace) -> None:
    runs = table(args.profile, **parse_overrides(args.overrides))
    chosen = choose(f"run of profile {args.profile}", args.run, [r.id for r in runs])
    _told(next(r for r in runs if r.id == chosen))


def _command_notebook(args: argparse.Namespace) -> None:
    given = parse_overrides(args.overrides)
    values = _run_parameters(args.notebook, given)
    source = resolve_source(values.get("data", "auto"), "data" in given)
    values |= {"data": source} if "data" in values else {}
    data = "pocket_topics" if source == "embedded" else "sib200"
    run = Run(values.get("profile", "pocket"), args.out.name, args.notebook, values, data, source)
    _told(replace(run, fingerprint=fingerprint(run)), out=args.out)


def _summarize(run: Run) -> list[tuple]:
    """One line per study and method: accuracy averaged over seeds, then over languages."""
    import pandas

    path = folder(run) / "results.jsonl"
    if not path.is_file():
        return [(run.id, "not run yet", "", "", "", "")]
    rows = pandas.DataFrame([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    rows = rows[rows.metric == "accuracy"] if len(rows) else rows
    if rows.empty:
        return [(run.id, "no accuracies", "", "", "", "")]
    lines = []
    for (study, method), part in rows.groupby(["study", "method"], sort=False):
        means = part.groupby("language").value.mean()
        spread = f"{means.min():.3g} to {means.max():.3g}"
        lines.append((run.id, study, method, len(means), f"{means.mean():.3g}", spread))
    return lines


def _command_summary(args: argparse.Namespace) -> None:
    runs = table(args.profile, **parse_overrides(args.overrides))
    header = ("run", "study", "method", "languages", "mean accuracy", "range over languages")
    _print_table(header, [line for run in runs for line in _summarize(run)])
    figures = sorted(p.as_posix() for p in Path("figures", args.profile).glob("*") if p.is_file())
    print("\n".join(["", f"{len(figures)} files in figures/{args.profile}/", *figures]))


def _command_parameters(args: argparse.Namespace) -> None:
    rows = [
        (p.name, p.annotation, repr(p.default), p.comment)
        for p in parameters(args.notebook).values()
    ]
    _print_table(("parameter", "type", "default", "meaning"), rows)


def _parser() -> argparse.ArgumentParser:
    about = __doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m xlcore.runs", description=about)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, call: typing.Callable, text: str, *names: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        for positional in names:
            command.add_argument(positional)
        return command

    override = {"nargs": "*", "metavar": "name=value", "help": "parameters to set, values as YAML"}
    for name, call, text, *names in (
        ("table", _command_table, "print the runs of a profile", "profile"),
        ("execute", _command_execute, "execute one run of a profile", "profile", "run"),
        ("summary", _command_summary, "print what the runs of a profile found", "profile"),
    ):
        add(name, call, text, *names).add_argument("overrides", **override)
    once = add("notebook", _command_notebook, "execute one notebook on its own", "notebook")
    once.add_argument("overrides", **override)
    once.add_argument("--out", type=Path, required=True, help="folder for its results")
    add("parameters", _command_parameters, "print a notebook's parameters", "notebook")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 2 for bad input, 1 for a failed run."""
    args = _parser().parse_args(argv)
    try:
        args.call(args)
    except (InputError, RunError) as error:
        print(" ".join(f"error: {error}".split()), file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
