"""Write the .ipynb that are read: each notebook's own cells with the outputs of its pocket run.

    python tools/notebooks.py [NAME ...]        all of notebooks/*.py without a name

The percent .py is the source; the paired .ipynb is committed with its outputs. Those come from the
profiles pocket and workers on the embedded corpus, whose parameters are the notebooks' defaults; a
run that is not there, or is not of this very code, is made first.
"""

import itertools
import os
import sys
from pathlib import Path

import jupytext
import nbformat

from xlcore import runs
from xlcore.errors import InputError, choose

WIDGET = "application/vnd.jupyter.widget-view+json"


def outputs(run: runs.Run) -> list[tuple[str, list]]:
    """Return source and outputs of a run's code cells, without progress bars and parameters."""
    notebook = nbformat.read(runs.folder(run) / "notebook.ipynb", as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    cells = [c for c in cells if "injected-parameters" not in c.metadata.get("tags", [])]
    shown = lambda o: o.get("name") != "stderr" and WIDGET not in o.get("data", {})  # noqa: E731
    return [(c.source, [o for o in c.outputs if shown(o)]) for c in cells]


def pair(run: runs.Run) -> None:
    """Write a notebook's .ipynb from its .py and its run; InputError if the two do not fit."""
    source = Path("notebooks", f"{run.notebook}.py")
    defaults = runs.parameters(run.notebook)().model_dump()
    changed = [name for name in defaults if run.parameters[name] != defaults[name]]
    if changed:
        names = ", ".join(changed)
        raise InputError(f"profile {run.profile} sets {names} of {run.notebook} otherwise")
    notebook = jupytext.read(source, fmt="py:percent")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, (cell, (text, shown)) in enumerate(zip(code, outputs(run), strict=True), 1):
        if cell.source != text:
            raise InputError(f"{run.notebook} is not what was run: {cell.source.splitlines()[0]}")
        cell.outputs, cell.execution_count = shown, number
        for output in shown:
            output.update({"execution_count": number} if "execution_count" in output else {})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03}"
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    print(f"wrote {source.with_suffix('.ipynb')}")


def main(names: list[str]) -> None:
    os.environ.pop("XLCORE_DATA", None)  # benchmark texts must never reach a committed notebook
    both = [runs.table(profile, data="embedded") for profile in ("workers", "pocket")]
    table = {run.notebook: run for run in itertools.chain(*both)}
    for name in names or table:
        run = table[choose("notebook", name, table)]
        if not runs.done(run):
            print(f"running {name}", flush=True)
            runs.execute(run)
        pair(run)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, runs.RunError) as error:
        sys.exit(f"error: {error}")
