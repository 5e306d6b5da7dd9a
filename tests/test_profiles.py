"""The learning rates of profile full, against the committed grids that chose them."""

from pathlib import Path

import pandas as pd
import pytest

from xlcore import runs

ROOT = Path(__file__).parents[1]
BASE = dict(
    method="soft_prompt", shots=8, length=5, init="uniform", position="suffix", loss="vocabulary",
    reparameterization="none", hidden=0,
)  # fmt: skip


def condition(**given) -> tuple:
    """A condition by name, the base one where nothing is said; hidden is 0 without a network."""
    values = {name: given.get(name, value) for name, value in BASE.items()}
    values["hidden"] *= values["reparameterization"] != "none"
    return tuple(values.values())


@pytest.fixture(scope="module")
def chosen() -> dict[tuple, float]:
    """The rate with the lowest mean dev loss of each condition, over all parts of its grid."""
    files = (ROOT / "papermill_runs/full").glob("sib200-rates-*/results.jsonl")
    tried = pd.concat(pd.read_json(path, lines=True) for path in files)
    tried = tried[tried.study == "learning_rates"]
    keys = [condition(**row) for row in tried[[*BASE]].to_dict("records")]
    means = tried.assign(key=keys).groupby(["key", "learning_rate"]).value.mean()
    return {key: part.idxmin()[1] for key, part in means.groupby("key")}


def used(run: runs.Run) -> dict[tuple, float]:
    """The rate of each condition that a run trains."""
    p = run.parameters
    if run.notebook == "02_prompt_length":
        pairs = zip(p["lengths"], p["rates"], strict=True)
        return {condition(**p | {"length": n}): rate for n, rate in pairs}
    if run.notebook == "03_reparameterization":
        nets = zip(p["kinds"], p["rates"], strict=True)
        of = [(dict(reparameterization=kind), rate) for kind, rate in nets]
        return {condition(**p, **kind, hidden=h): r for kind, r in of for h in p["widths"]}
    return {condition(**p): p["learning_rate"]}


def test_every_run_of_profile_full_has_the_rate_that_its_grid_chose(chosen, monkeypatch):
    """Conditions without a grid of their own have the rate of the base condition."""
    monkeypatch.chdir(ROOT)
    notebooks = ("02_prompt_length", "03_reparameterization", "10_one_condition")
    planned = [run for run in runs.table("full") if run.notebook in notebooks]
    trained = [run for run in planned if run.parameters.get("study") != "transfer_by_rate"]
    assert len(trained) > 30
    wrong = [
        (run.id, key, rate)
        for run in trained
        for key, rate in used(run).items()
        if rate != pytest.approx(chosen.get(key, chosen[condition()]))
    ]
    assert wrong == []
