"""Run the notebooks on their embedded defaults and write the .ipynb that is read.

    python tools/notebooks.py [NAME ...]        all of notebooks/*.py without a name

The percent .py is the source; the paired .ipynb is committed with its outputs. A notebook that
fails is not written.
"""

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def execute(source: Path) -> None:
    """Run one notebook and write its pair, without what would differ from run to run."""
    notebook = jupytext.read(source)
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOKS}},
        config=Config(KernelManager={"transport_encryption": "auto"}),  # else the kernel warns
    )
    client.execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03}"
        cell.metadata.pop("execution", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3", "language": "python", "name": "python3",
    }  # fmt: skip
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata.setdefault("jupytext", {})["formats"] = "ipynb,py:percent"
    nbformat.validate(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))


def main(names: list[str]) -> None:
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.pop("XLCORE_DATA", None)  # benchmark texts must never reach a committed notebook
    for source in sorted(NOTEBOOKS.glob("*.py")):
        if not names or source.stem in names:
            started = time.perf_counter()
            execute(source)
            print(f"{source.stem}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
