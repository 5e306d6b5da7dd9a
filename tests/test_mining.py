"""Mining through the cache is mining without it, to the bit; a changed setting is another file.

Reference: `mlm.fit_head` and `mlm.mine` called one by one.
"""

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from xlcore import mining, mlm, tickets
from xlcore.backbones import weights_sha256
from xlcore.checkpoints import find, tiny_tokenizer
from xlcore.encoders import start_head
from xlcore.errors import InputError
from xlcore.methods import METHODS
from xlcore.mining import mined
from xlcore.prose import Text, read

FEW = mlm.Settings(steps=3, learning_rate=3e-3, batch_size=4, seed=2)


@pytest.fixture(scope="module")
def blocks():
    torch.set_num_threads(1)  # thread hand-over costs more than these models' arithmetic
    text = read("embedded")
    return mlm.pack(Text("few", "eng", text.paragraphs[:200]), tiny_tokenizer(True), 32, 8)


def encoder(headless=True):
    fresh = find("tiny-bert", "encoder").fresh(torch.float32)
    if headless:
        start_head(fresh.model, ["head.bias"])
    return fresh


def same(one, two):
    """Whether two results of mining are equal, to the bit."""
    plain = [json.dumps([x.history, x.about, x.head]) for x in (one, two)]
    return plain[0] == plain[1] and all(
        list(one.evidence[side]) == list(two.evidence[side])
        and all(torch.equal(w, two.evidence[side][n]) for n, w in one.evidence[side].items())
        for side in ("start", "end")
    )


@pytest.mark.parametrize("headless", (True, False))
def test_it_is_head_fitting_if_need_be_and_then_mining(blocks, headless):
    ours, plain = encoder(headless), encoder(headless)
    found = mined(ours, blocks, FEW, head_steps=4)
    fitting = replace(FEW, steps=4, learning_rate=1e-3, seed=0)
    head = mlm.fit_head(plain, blocks, fitting) if headless else []
    wanted = mlm.mine(plain, blocks, FEW)
    ends = [row["loss"] for row in [*head, *wanted.history] if row["part"] == "held_out"]
    assert len(ends) == (4 if headless else 2)
    about = wanted.about | dict(head_steps=4 if headless else 0, held_out_losses=ends)
    assert same(found, mining.Mining(wanted.evidence, wanted.history, about, head))
    assert weights_sha256(ours.model) == weights_sha256(plain.model)


@pytest.mark.parametrize("headless", (True, False))
def test_the_second_call_reads_what_the_first_kept(blocks, tmp_path, monkeypatch, headless):
    first, second = encoder(headless), encoder(headless)
    wanted = mined(first, blocks, FEW, head_steps=4, cache=tmp_path)
    monkeypatch.setattr(mlm, "mine", lambda *_: pytest.fail("mined twice"))
    assert same(mined(second, blocks, FEW, head_steps=4, cache=tmp_path), wanted)
    assert weights_sha256(second.model) == weights_sha256(first.model)
    assert second.mlm_head == first.mlm_head == ("fitted" if headless else "pretrained")


CHANGES = {
    "settings": lambda model, blocks: (model, blocks, replace(FEW, seed=3)),
    "scope": lambda model, blocks: (model, blocks, FEW, "layers 1-1"),
    "head steps": lambda model, blocks: (model, blocks, FEW, "encoder", 5),
    "text": lambda model, blocks: (model, replace(blocks, ids=blocks.ids.flip(0)), FEW),
    "weights": lambda model, blocks: (moved(model), blocks, FEW),
}


def moved(model):
    with torch.no_grad():
        model.model.get_input_embeddings().weight[5, 5] += 1e-3
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_another_file(blocks, tmp_path, change):
    mined(encoder(), blocks, FEW, "encoder", 4, tmp_path)
    other = CHANGES[change](encoder(), blocks)
    mined(*other, *("encoder", 4)[len(other) - 3 :], tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def altered_weight(path):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        card = file.metadata()
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, path, card)


def altered_card(path):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        card = file.metadata()
    save_file(tensors, path, card | dict(mined=card["mined"].replace('"seed": 2', '"seed": 3')))


@pytest.mark.parametrize(
    "alter", (altered_weight, altered_card, lambda path: path.write_bytes(path.read_bytes()[:-9]))
)
def test_an_altered_file_is_refused(blocks, tmp_path, alter):
    mined(encoder(False), blocks, FEW, cache=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    alter(path)
    with pytest.raises(InputError, match=rf"{path.name} .*remove it"):
        mined(encoder(False), blocks, FEW, cache=tmp_path)


def work(blocks, cache, made):
    """Run in a process of its own: mining that records that it ran."""
    whole = mlm.mine

    def recorded(*given):
        with made.open("a") as file:
            file.write("mined\n")
        return whole(*given)

    mlm.mine = recorded
    mined(encoder(False), blocks, FEW, cache=cache)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_at_once_mine_once(blocks, tmp_path):
    fork, made = multiprocessing.get_context("fork"), tmp_path / "made"
    given = (blocks, tmp_path / "cache", made)
    both = [fork.Process(target=work, args=given) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert made.read_text() == "mined\n"


def test_an_unknown_scope_is_refused_before_the_head_is_fitted(blocks, monkeypatch):
    monkeypatch.setattr(mlm, "fit_head", lambda *_: pytest.fail("the head was fitted"))
    with pytest.raises(InputError, match="ticket scope 'encodr'"):
        mined(encoder(), blocks, FEW, "encodr")


# --- what each method is told ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(blocks):
    return mined(encoder(False), blocks, FEW)


def test_a_ticket_holds_its_share_by_its_strategy(found):
    ticket = found.ticket("movement", 0.25)
    wanted = tickets.select(tickets.score("movement", **found.evidence), round(ticket.total / 4))
    assert all(torch.equal(ticket.bits[n], wanted.bits[n]) for n in wanted.bits)


def test_each_method_is_told_what_it_needs_and_no_more(found):
    told = {m: found.told(m, 7, "large_final", 0.1, "all") for m in METHODS}
    full = dict(scope="all")
    assert {m: t for m, t in told.items() if "ticket" not in t} == dict(
        fine_tuning=full, dp=full, sp=full, mp=full, prompt_only={}, bitfit={}, lora={},
        prefix_tuning={},
    )  # fmt: skip
    assert (told["ltp"]["strategy"], told["ltp"]["scope"]) == ("large_final", "encoder")
    assert told["random_ticket"]["strategy"] == "random"


def test_a_random_ticket_is_the_seeds_own_and_ltps_is_not(found):
    for method, same_for_all in (("random_ticket", False), ("ltp", True)):
        one, two = (found.told(method, seed)["ticket"] for seed in (1, 2))
        assert (one.overlap(two)["shared"] == one.k) == same_for_all


@pytest.mark.parametrize(
    ("strategy", "ratio", "message"),
    [
        ("movment", 0.2, "ticket strategy 'movment'; did you mean movement"),
        ("fisher", 0.2, "ticket strategy 'fisher'"),  # needs gradients
        ("movement", 1.2, "active_ratio 1.2 must be from 0 to 1"),
    ],
)
def test_a_ticket_that_mining_cannot_give_is_refused(strategy, ratio, message):
    with pytest.raises(InputError, match=message):
        mining.check_ticket(strategy, ratio)
