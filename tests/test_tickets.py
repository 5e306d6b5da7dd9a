"""A ticket holds exactly the k highest scores, as a full sort would choose, and fits one model.

References: numpy's stable sort, sets of indices, scipy's hypergeometric mean, parameter formulas.
"""

import math
import tracemalloc
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForMaskedLM, XLMRobertaConfig, XLMRobertaForMaskedLM

from xlcore import tickets
from xlcore.errors import InputError
from xlcore.tickets import (
    STRATEGIES,
    Ticket,
    named,
    parameters,
    place,
    score,
    select,
)

SMALL = dict(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=50, type_vocab_size=2,
)  # fmt: skip
# What breaks a comparison: both zeros, infinities, the smallest and largest, near neighbours.
AWKWARD = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, 1e-45, -1e-45, 3e38, 1 + 2**-40, 0.1, -0.3)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = ((), (0,), (1,), (7,), (8,), (3, 5), (2, 3, 11), (65,))


@pytest.fixture(scope="module", params=("bert", "xlm-roberta"))
def model(request):
    """Return a tiny random encoder with its tied head."""
    torch.manual_seed(0)
    if request.param == "bert":
        return BertForMaskedLM(BertConfig(**SMALL))
    return XLMRobertaForMaskedLM(XLMRobertaConfig(**SMALL))


def flat(ticket):
    masks = [ticket.mask(name).numpy().ravel() for name in ticket.shapes]
    return np.concatenate([np.zeros(0, bool), *masks])


def by_sorting(scores, k):
    """Return the mask of the first k weights in the order of a stable sort of all scores."""
    every = np.concatenate([np.zeros(0), *(s.double().numpy().ravel() for s in scores.values())])
    mask = np.zeros(len(every), bool)
    mask[np.argsort(-every, kind="stable")[:k]] = True
    return mask


def filled(rng, shape, dtype, kind):
    """Draw scores: few values that tie, all different, or both mixed."""
    ties, free = rng.choice(AWKWARD, shape), rng.normal(size=shape)
    mixed = np.where(rng.random(shape) < 0.5, ties, free)
    chosen = {"ties": ties, "free": free, "mixed": mixed}[kind]
    return torch.from_numpy(np.asarray(chosen, float)).to(dtype)


@st.composite
def drawn_scores(draw):
    """Draw scores of up to five tensors, sometimes with a huge one, and k."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(("ties", "free", "mixed")))
    shapes = draw(st.lists(st.sampled_from(SHAPES), max_size=5))
    if draw(st.integers(0, 19)) == 0:
        shapes.insert(draw(st.integers(0, len(shapes))), (2, tickets.CHUNK // 2 + 3))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    pairs = enumerate(zip(shapes, dtypes, strict=True))
    scores = {f"layer.{i}.weight": filled(rng, shape, dtype, kind) for i, (shape, dtype) in pairs}
    total = sum(s.numel() for s in scores.values())
    return scores, draw(st.sampled_from((0, total)) | st.integers(0, total))


# --- selection ------------------------------------------------------------------------------------


@settings(max_examples=1000)
@given(drawn_scores())
def test_selection_is_that_of_a_stable_sort(drawn):
    scores, k = drawn
    assert np.array_equal(flat(select(scores, k)), by_sorting(scores, k))


@settings(max_examples=200)
@given(drawn_scores().filter(lambda x: sum(s.numel() for s in x[0].values()) < 999))
def test_nothing_is_lost_where_one_chunk_ends_and_the_next_begins(drawn):
    scores, k = drawn
    with patch.object(tickets, "CHUNK", 8):
        assert np.array_equal(flat(select(scores, k)), by_sorting(scores, k))


@settings(max_examples=100)
@given(drawn_scores())
def test_per_layer_gives_every_tensor_its_share_of_k_and_the_largest_fractions_the_rest(drawn):
    scores, k = drawn
    total = sum(s.numel() for s in scores.values())
    exact = [Fraction(k * s.numel(), max(total, 1)) for s in scores.values()]
    shares = [math.floor(x) for x in exact]
    for _ in range(k - sum(shares)):
        shares[max(range(len(exact)), key=lambda i: exact[i] - shares[i])] += 1
    ticket = select(scores, k, "per_layer")
    for (name, s), share in zip(scores.items(), shares, strict=True):
        assert np.array_equal(ticket.mask(name).numpy().ravel(), by_sorting({name: s}, share))


@settings(max_examples=50)
@given(drawn_scores(), st.integers(0, 500))
def test_a_smaller_ticket_lies_within_a_larger_one(drawn, fewer):
    scores, k = drawn
    small, large = select(scores, max(k - fewer, 0)), select(scores, k)
    assert not (flat(small) & ~flat(large)).any()


def test_scores_in_another_memory_order_are_read_in_index_order():
    grid = torch.arange(12.0).view(3, 4)
    assert torch.equal(select({"w": grid.T}, 5).mask("w"), grid.T >= 7)


@pytest.mark.parametrize("budget", ("global", "per_layer"))
def test_nan_is_refused_with_the_parameter_that_has_it(budget):
    scores = {"good": torch.ones(3), "bad": torch.ones(2 * tickets.CHUNK)}
    scores["bad"][-1] = math.nan
    with pytest.raises(InputError, match="'bad'"):
        select(scores, 1, budget)


@pytest.mark.parametrize("k", (-1, 4, 1.0, True, None))
def test_an_impossible_k_is_refused_with_the_range_allowed(k):
    with pytest.raises(InputError, match="from 0 to 3"):
        select({"w": torch.ones(3)}, k)


def test_an_unknown_budget_and_whole_numbers_for_scores_are_refused():
    with pytest.raises(InputError, match="per_layer"):
        select({"w": torch.ones(3)}, 1, "per_leyer")
    with pytest.raises(InputError, match="'w' must be floats"):
        select({"w": torch.ones(3, dtype=torch.int32)}, 1)


# --- memory ---------------------------------------------------------------------------------------


def torch_peak(work):
    """Return the most bytes that torch's allocator held at once for `work`, and its result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum([0, *sizes]).max()), result


def python_peak(work):
    """Return the most bytes that Python and numpy held at once for `work`."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def many_scores():
    g = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.rand(250_000, generator=g) for i in range(4)}


@pytest.mark.parametrize("budget", ("global", "per_layer"))
def test_selection_holds_less_than_a_megabyte_beside_scores_and_ticket(budget):
    scores = many_scores()
    peak, ticket = torch_peak(lambda: select(scores, 200_000, budget))
    peak += python_peak(lambda: select(scores, 200_000, budget))
    assert peak - sum(bits.nbytes for bits in ticket.bits.values()) < 1 << 20


def test_the_memory_measure_sees_a_copy_and_a_list_of_all_scores():
    scores = many_scores()
    copy, _ = torch_peak(lambda: torch.cat(list(scores.values())).topk(200_000))
    assert copy > 4 * 1_000_000
    assert python_peak(lambda: [s.tolist() for s in scores.values()]) > 8 * 1_000_000


# --- scope ----------------------------------------------------------------------------------------


def layer_sizes(d, f):
    """Return the weights of one Transformer layer by kind."""
    return {
        "attention": 4 * d * d,
        "feed-forward": 2 * d * f,
        "LayerNorm": 4 * d,
        "bias": 4 * d + f + d,
    }


def size(found):
    return sum(p.numel() for p in found.values())


def test_scopes_of_xlm_r_base_hold_the_weights_that_the_protocol_counts():
    shape = dict(vocab_size=250_002, max_position_embeddings=514, type_vocab_size=1)
    with torch.device("meta"):
        big = XLMRobertaForMaskedLM(XLMRobertaConfig(**shape))
    d, f = 768, 3072
    encoder = 12 * sum(layer_sizes(d, f).values())
    embeddings = (250_002 + 514 + 1 + 2) * d
    assert (round(encoder / 1e6, 2), round(embeddings / 1e6, 1)) == (85.05, 192.4)
    assert size(parameters(big)) == encoder
    assert size(parameters(big, "embeddings")) == embeddings
    assert size(parameters(big, "all")) == encoder + embeddings
    assert size(parameters(big, "layers 5-8")) == encoder // 3


def test_tied_embeddings_count_once_under_their_name_in_the_body(model):
    words = f"{model.base_model_prefix}.embeddings.word_embeddings.weight"
    assert model.get_output_embeddings().weight is named(model)[words]
    assert len(set(named(model).values())) == len(list(model.parameters())) == len(named(model))
    assert [n for n, p in parameters(model, "all").items() if p.shape == (100, 32)] == [words]


def test_the_parameters_stand_in_the_models_order(model):
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found = list(parameters(model, "all"))
    assert found == [name for name in every if name in found]


@pytest.mark.parametrize("left_out", ("LayerNorm", "bias"))
def test_layer_norm_and_biases_can_be_left_out(model, left_out):
    option = {"LayerNorm": "layer_norm", "bias": "bias"}[left_out]
    wanted = sum(n for kind, n in layer_sizes(32, 64).items() if kind != left_out)
    assert size(parameters(model, "layers 2-2", **{option: False})) == wanted


@pytest.mark.parametrize(
    "name, wanted",
    (
        ("bert.embeddings.LayerNorm.bias", (0, "LayerNorm")),
        ("bert.embeddings.position_embeddings.weight", (0, "embeddings")),
        ("bert.encoder.layer.0.attention.self.query.weight", (1, "attention")),
        ("encoder.layer.11.attention.output.dense.weight", (12, "attention")),
        ("roberta.encoder.layer.3.attention.output.LayerNorm.weight", (4, "LayerNorm")),
        ("roberta.encoder.layer.3.output.dense.weight", (4, "feed-forward")),
        ("roberta.encoder.layer.3.intermediate.dense.bias", (4, "bias")),
        ("distilbert.transformer.layer.5.attention.q_lin.weight", (6, "attention")),
        ("distilbert.transformer.layer.5.sa_layer_norm.bias", (6, "LayerNorm")),
        ("model.layers.0.attn.Wqkv.weight", (1, "attention")),
        ("model.embeddings.tok_embeddings.weight", (0, "embeddings")),
        ("bert.pooler.dense.weight", None),
        ("cls.predictions.transform.LayerNorm.weight", None),
        ("lm_head.decoder.weight", None),
    ),
)
def test_a_name_tells_layer_and_kind(name, wanted):
    assert place(name) == wanted


@pytest.mark.parametrize("scope", ("layers 2-1", "layers 1-3"))
def test_a_window_outside_the_model_is_refused_with_its_layers(model, scope):
    with pytest.raises(InputError, match="0 to 2"):
        parameters(model, scope)


def test_an_unknown_scope_is_refused_with_those_allowed(model):
    with pytest.raises(InputError, match=r"encoder, all, embeddings, layers 1-2"):
        parameters(model, "encodr")


# --- strategies -----------------------------------------------------------------------------------

EVIDENCE = dict(
    start={"w": torch.tensor([0.5, -2.0, 0.0, -1.0])},
    end={"w": torch.tensor([0.25, -3.0, 0.5, 1.0])},
    gradient={"w": torch.tensor([2.0, -0.25, 9.0, 0.0])},
    squared_gradient={"w": torch.tensor([4.0, 1.0, 0.5, 0.0])},
)
BY_HAND = {
    "movement": [0.25, 1.0, 0.5, 2.0],
    "relative_movement": [0.25 / 0.5, 1.0 / 2.0, 0.5 / 1e-8, 2.0 / 1.0],
    "magnitude_increase": [-0.25, 1.0, 0.5, 0.0],
    "large_final": [0.25, 3.0, 0.5, 1.0],
    "large_initial": [0.5, 2.0, 0.0, 1.0],
    "small_movement": [-0.25, -1.0, -0.5, -2.0],
    "fisher": [4.0, 1.0, 0.5, 0.0],
    "snip": [1.0, 0.5, 0.0, 0.0],
}


def test_every_strategy_of_the_protocol_is_there():
    assert set(STRATEGIES) == {*BY_HAND, "random"}


@pytest.mark.parametrize("strategy", BY_HAND)
def test_a_strategy_gives_the_scores_worked_out_by_hand(strategy):
    found = score(strategy, **EVIDENCE)["w"]
    torch.testing.assert_close(found, torch.tensor(BY_HAND[strategy]))


def test_a_step_too_small_for_bfloat16_weights_to_subtract_counts_all_the_same():
    start = {"w": torch.tensor([256.0], dtype=torch.bfloat16)}
    assert score("movement", start=start, end={"w": torch.tensor([256.5])})["w"].item() == 0.5


def test_random_scores_depend_on_the_seed_alone():
    start = {"a": torch.zeros(3, 4), "b": torch.ones(5)}
    one, same, other = (score("random", seed, start=start) for seed in (1, 1, 2))
    assert torch.equal(one["a"], same["a"]) and torch.equal(one["b"], same["b"])
    assert not torch.equal(one["a"], other["a"])
    assert not torch.equal(one["a"].flatten()[:5], one["b"])


def test_random_tickets_overlap_as_chance_has_it():
    start = {"w": torch.zeros(100_000)}
    a, b = (select(score("random", seed, start=start), 20_000) for seed in (1, 2))
    spread = hypergeom(100_000, 20_000, 20_000).std()
    assert abs(a.overlap(b)["shared"] - 4000) < 5 * spread


def test_an_unknown_strategy_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean movement"):
        score("movment", **EVIDENCE)


def test_missing_evidence_and_evidence_of_other_parameters_are_refused():
    with pytest.raises(InputError, match=r"'snip' needs \['start', 'gradient'\]"):
        score("snip", start=EVIDENCE["start"])
    with pytest.raises(InputError, match="same parameters"):
        score("movement", start=EVIDENCE["start"], end={"v": torch.ones(4)})


# --- the ticket -----------------------------------------------------------------------------------


def random_ticket(model, ratio=0.2, scope="encoder", seed=0):
    scores = score("random", seed, start=parameters(model, scope))
    return select(scores, round(ratio * size(scores)))


def test_counts_by_layer_and_kind_are_those_of_the_masks(model):
    ticket = random_ticket(model, scope="all")
    table = ticket.counts().set_index(["layer", "kind"])
    for layer in (1, 2):
        assert table.loc[layer]["total"].to_dict() == layer_sizes(32, 64)
    d, rows = 32, SMALL["vocab_size"] + SMALL["max_position_embeddings"] + 2
    assert table.loc[0]["total"].to_dict() == {"embeddings": rows * d, "LayerNorm": 2 * d}
    first = f"{model.base_model_prefix}.encoder.layer.0."
    norms = [n for n in ticket.shapes if n.startswith(first) and "LayerNorm" in n]
    wanted = sum(int(ticket.mask(n).sum()) for n in norms)
    assert table.loc[(1, "LayerNorm"), "active"] == wanted
    assert table["active"].sum() == ticket.k == round(0.2 * ticket.total)


def test_counts_refuse_a_parameter_that_lies_in_no_layer():
    with pytest.raises(InputError, match="pooler"):
        select({"pooler.weight": torch.ones(3)}, 1).counts()


def test_the_indices_are_those_of_a_dense_mask(model):
    ticket = random_ticket(model)
    for name in ticket.shapes:
        wanted = np.flatnonzero(ticket.mask(name).numpy())
        assert ticket.indices(name).tolist() == wanted.tolist()
        assert ticket.active[name] == len(wanted)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=70))
@example([(False, False)])
@example([(True, False), (False, True)])
def test_overlap_is_that_of_sets_and_chance_is_hypergeometric(pairs):
    total, split = len(pairs), len(pairs) // 3
    sets = [{i for i, pair in enumerate(pairs) if pair[side]} for side in (0, 1)]
    columns = torch.tensor(pairs).float().T
    a, b = (select({"u": x[:split], "v": x[split:]}, int(x.sum())) for x in columns)
    with np.errstate(all="ignore"):  # scipy makes the other moments too
        expected = float(hypergeom(total, len(sets[0]), len(sets[1])).mean())
    shared, union = len(sets[0] & sets[1]), len(sets[0] | sets[1])
    found = a.overlap(b)
    assert found["shared"] == shared
    assert found["expected"] == pytest.approx(expected)
    assert found["ratio"] == pytest.approx(shared / expected if expected else math.nan, nan_ok=True)
    assert found["jaccard"] == pytest.approx(shared / union if union else math.nan, nan_ok=True)


def test_tickets_of_different_scopes_are_not_compared(model):
    with pytest.raises(InputError, match="same parameters"):
        random_ticket(model).overlap(random_ticket(model, scope="layers 1-1"))


def test_the_short_form_states_both_counts():
    assert str(select({"w": torch.rand(5000)}, 1000)) == "1,000 of 5,000 weights (20.00 %)"


@pytest.mark.parametrize(
    "bits",
    (
        torch.tensor([1], dtype=torch.uint8),
        torch.tensor([1, 1, 0], dtype=torch.uint8),
        torch.tensor([1, 1]),
        torch.tensor([0, 8], dtype=torch.uint8),
    ),
    ids=("short", "long", "not bytes", "a bit beyond the end"),
)
def test_a_mask_that_does_not_fit_its_shape_is_refused(bits):
    with pytest.raises(InputError, match="'w'"):
        Ticket({"w": (11,)}, {"w": bits})


def test_a_ticket_whose_shapes_and_masks_differ_in_name_is_refused():
    with pytest.raises(InputError, match="same parameters"):
        Ticket({"w": (8,)}, {"v": torch.zeros(1, dtype=torch.uint8)})


def test_a_model_without_these_parameters_or_of_other_shapes_is_refused(model):
    ticket = random_ticket(model)
    with pytest.raises(InputError, match="unknown parameter"):
        ticket.of(model.base_model)
    wider = type(model)(type(model.config)(**SMALL | dict(intermediate_size=72)))
    with pytest.raises(InputError, match=r"\(64, 32\); this model's, \(72, 32\)"):
        ticket.of(wider)
