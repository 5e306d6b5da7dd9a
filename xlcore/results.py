"""The rows a study leaves: checked before they are written, checked again before they count.

Stands between a notebook's closing cell and papermill_runs/: finish writes, announced reads back.
No paper section: this is the bookkeeping that makes every number of the study repeatable.
"""

import hashlib
import json
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from xlcore.errors import InputError

REQUIRED = (
    "study", "task", "data", "backbone", "method", "language", "seed", "shots", "metric", "value",
)  # fmt: skip


class RunError(RuntimeError):
    """A notebook did not run to its end, or did not leave the rows it announced."""


def finish(
    rows: Iterable[Mapping] | pd.DataFrame,
    run_dir: str,
    *,
    allow_empty: bool = False,
    **facts: object,
) -> pd.DataFrame:
    """Check a notebook's result rows, write them where a run asks for it, and return them.

    `rows` are dictionaries or a DataFrame with at least the columns REQUIRED; floats keep six
    significant digits. With `run_dir` "" nothing is written. `facts` (data, backbone, device, ...)
    go to the manifest. Raises InputError for missing keys, numbers that are not finite, repeated
    rows, and for no rows at all unless `allow_empty`.
    """
    clean = _checked(rows)
    if not clean and not allow_empty:
        raise InputError("no rows: a study that measured nothing has no results to write")
    facts = _plain("facts", facts)
    if run_dir:
        lines = [json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in clean]
        (Path(run_dir) / "results.jsonl").write_text("".join(lines), encoding="utf-8")
        closing = _count(Path(run_dir)) | {"facts": facts} | _peaks()
        (Path(run_dir) / "closing.json").write_text(json.dumps(closing), encoding="utf-8")
    return pd.DataFrame(clean)


def announced(run_dir: Path) -> dict:
    """Return what `finish` wrote about its rows; RunError if the rows there are not these."""
    try:
        closing = json.loads((run_dir / "closing.json").read_text(encoding="utf-8"))
        found = _count(run_dir)
    except (OSError, ValueError) as error:
        raise RunError("the notebook did not close with finish(rows, run_dir)") from error
    if not found.items() <= closing.items():
        raise RunError(f"results.jsonl was changed after finish wrote it: now it has {found}")
    return closing


def _count(run_dir: Path) -> dict:
    written = (run_dir / "results.jsonl").read_bytes()
    return {"rows": written.count(b"\n"), "results_sha256": hashlib.sha256(written).hexdigest()}


def _checked(rows: Iterable[Mapping] | pd.DataFrame) -> list[dict]:
    """The rows in plain types; InputError for a missing key, a non-number, a repeated row."""
    if isinstance(rows, pd.DataFrame):
        # an empty cell means that the row lacks the column; a 5 that stood beside one is no 5.0
        floats = rows.select_dtypes("float").drop(columns="value", errors="ignore")
        whole = floats.columns[(floats.isna() | (floats % 1 == 0)).all()]
        rows = rows.astype(dict.fromkeys(whole, "Int64"))
        rows = [row.dropna().to_dict() for _, row in rows.iterrows()]
    clean: list[dict] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        row = {k: _plain(f"row {number}: {k}", v) for k, v in row.items()}
        for key in REQUIRED:
            if row.get(key) is None:
                raise InputError(f"row {number} has no {key}; it needs {', '.join(REQUIRED)}")
        if type(row["value"]) not in (int, float):
            raise InputError(f"row {number}: value is {row['value']!r}, wanted a number")
        key = json.dumps(row | {"value": None}, sort_keys=True)
        if key in seen:
            raise InputError(f"rows {seen[key]} and {number} differ in nothing but value: {key}")
        seen[key] = number
        clean.append(row)
    return clean


def _plain(where: str, value: object) -> object:
    """`value` as JSON can hold it: numpy and torch scalars as numbers, floats with six digits."""
    try:
        text = json.dumps(value, allow_nan=False, default=lambda scalar: scalar.item())
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} = {value!r} cannot be written: {error}") from error
    return json.loads(text, parse_float=lambda digits: float(f"{float(digits):.6g}"))


def _peaks() -> dict[str, float]:
    """The memory peaks of this process, the kernel, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peaks = {"peak_memory_mib": round(peak / 2**20, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peaks["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks
