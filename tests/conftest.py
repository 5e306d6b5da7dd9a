"""What every test shares: no network, no window, and the folder of real data where there is one."""

import functools
import operator
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: handing over costs more than it gives

import pytest
from hypothesis import settings

from xlcore import methods, mlm, training, tuning
from xlcore.backbones import weights_sha256

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("patient", deadline=None)  # other work on the machine slows examples down
settings.load_profile("patient")


def proven(train, place, part="model"):
    """Wrap a function that trains: the model it is given must keep its sha256, in every test.

    part: "model", or "model.base_model" where the head may move.
    """

    @functools.wraps(train)
    def checked(*args, **given):
        model = operator.attrgetter(part)(args[place])
        before = weights_sha256(model)
        try:
            return train(*args, **given)
        finally:
            assert weights_sha256(model) == before, f"{train.__qualname__} moved the frozen model"

    return checked


# Tests and modules that come after this one import these by name.
methods.train, training.fit = proven(methods.train, 0), proven(training.fit, 0)
tuning.tune = proven(tuning.tune, 1)
mlm.mine, mlm.gradients = proven(mlm.mine, 0), proven(mlm.gradients, 0)
mlm.fit_head = proven(mlm.fit_head, 0, "model.base_model")


def real_data() -> Path | None:
    """Return the folder of benchmark data: XLCORE_DATA, else shared/data beside the checkout."""
    named = os.environ.get("XLCORE_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if named and not folder.is_dir():
        raise pytest.UsageError(f"XLCORE_DATA names {named!r}, which is not a folder")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of benchmark data, or skip the test where there is none."""
    folder = real_data()
    if folder is None:
        pytest.skip("no benchmark data: set XLCORE_DATA to its folder")
    return folder


@pytest.fixture
def no_weights(monkeypatch):
    """Fail the test if weights are read, or the packages' weights converted."""
    from xlcore import checkpoints

    def read(*_):
        pytest.fail("weights were read before the plan was checked")

    monkeypatch.setattr(checkpoints.Checkpoint, "_weights", read)
    monkeypatch.setattr(checkpoints, "gemma_folder", read)
    monkeypatch.setattr(checkpoints, "e5_folder", read)
