"""The main job with the real model: a prompt learned on English, frozen weights, real answers."""

import os

import pytest
import torch
from conftest import real_data

from xlcore import evaluation
from xlcore.backbones import weights_sha256
from xlcore.study import Study

ENOUGH = 35.0  # percent; the most frequent label is 25.0 on SIB-200 and 14.3 on Pocket Topics


@pytest.fixture(autouse=True)
def all_cores():
    """Use every core here; other tests run tiny models on one thread, which is faster for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def learn_and_answer(source):
    """Train one short prompt for a few epochs; return its English accuracy on 70 test texts."""
    study = Study.plan(
        "gemma-3-270m", ["eng"], source, seeds=[1], lengths=[5], epochs=4, learning_rate=0.05
    )
    model = study.load()
    before = weights_sha256(model.model)
    _, (trained,) = study.train(model)
    assert weights_sha256(model.model) == before
    test = study.data.examples("eng", "test").iloc[:70]
    scores = evaluation.score(model, [trained.best], test.text, study.verbalizer)
    gold = study.verbalizer.index(test.label).numpy()
    return evaluation.accuracy(gold, scores[0].argmax(-1).numpy())


@pytest.mark.real_model
@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gemma_learns_topics_from_eight_examples_a_class():
    """On SIB-200 where its folder is there, else on the embedded corpus."""
    folder = real_data()
    assert learn_and_answer(str(folder) if folder else "embedded") > ENOUGH
