"""Templates with one mask token: what they become as tokens, and where prompts are put in.

References: the tokenizer's own ids of the filled text; lists joined by hand.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xlcore.backbones import pad
from xlcore.checkpoints import tiny_tokenizer
from xlcore.cloze import POSITIONS, Cloze, cloze, insert
from xlcore.errors import InputError

TOKENIZER = tiny_tokenizer(masked=True)
DP = "{p} . Question: {h} ? Answer: {mask} ."
MP = "{p} . Question: {h} ?{soft} Answer: {mask} ."
ROW = {"p": "The river rises in the hills", "h": "The hills are dry"}
DP_TEXT = "The river rises in the hills . Question: The hills are dry ? Answer: <mask> ."
fields = st.text(st.sampled_from("abc é河{}<>.?"), max_size=30)


def ids(text):
    return TOKENIZER(text)["input_ids"]


def wordpiece():
    """Return a tokenizer of BERT's kind: spaces belong to no token."""
    words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "the", "hill", "##s", "answer", ":", "?"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    tokenizer.post_processor = template
    special = {
        f"{name.lower()}_token": f"[{name}]" for name in ("UNK", "PAD", "CLS", "SEP", "MASK")
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def prompted(tokens, position, r=0, tokenizer=TOKENIZER):
    """Return row r's real tokens with "PROMPT" where a prompt would go."""
    real = tokens.ids[r][tokens.mask[r]].tolist()
    words = tokenizer.convert_ids_to_tokens(real)
    words.insert(int(tokens.slots[r, POSITIONS.index(position)]), "PROMPT")
    return words


def test_a_filled_template_has_the_ids_of_the_filled_text():
    assert cloze(TOKENIZER, DP, [ROW], 99).ids[0].tolist() == ids(DP_TEXT)


@given(p=fields, h=fields)
@settings(max_examples=200)
def test_the_label_is_the_templates_own_mask_whatever_the_texts_hold(p, h):
    found = cloze(TOKENIZER, DP, [{"p": p + "<mask>", "h": h}], 999)
    text = DP.format(p=p + "<mask>", h=h, mask="<mask>")
    masks = [i for i, token in enumerate(ids(text)) if token == TOKENIZER.mask_token_id]
    assert found.ids[0].tolist() == ids(text) and int(found.label) == masks[-1]


def test_a_prefix_stands_behind_the_opening_token():
    assert prompted(cloze(TOKENIZER, DP, [ROW], 99), "prefix")[:2] == ["<s>", "PROMPT"]


def test_a_suffix_stands_before_the_closing_token():
    assert prompted(cloze(TOKENIZER, DP, [ROW], 99), "suffix")[-2:] == ["PROMPT", "</s>"]


def test_an_infix_stands_right_before_the_mask():
    words = prompted(cloze(TOKENIZER, DP, [ROW], 99), "infix")
    assert words[words.index("<mask>") - 1] == "PROMPT"


def test_an_infix_stands_where_the_template_says():
    words = prompted(cloze(TOKENIZER, MP, [ROW], 99), "infix")
    place = words.index("PROMPT")
    assert words[place - 1] == "?"
    assert TOKENIZER.convert_tokens_to_string(words[place + 1 :]) == " Answer:<mask> .</s>"


def test_an_infix_at_the_templates_end_stands_before_the_closing_token():
    assert prompted(cloze(TOKENIZER, "{p}{mask}{soft}", [ROW], 99), "infix")[-2] == "PROMPT"


@pytest.mark.parametrize("position, place", [("prefix", 1), ("infix", 5), ("suffix", 8)])
def test_berts_tokenizer_gives_the_same_places(position, place):
    tokenizer = wordpiece()
    tokens = cloze(tokenizer, "{p} ?{soft} Answer: {mask}", [{"p": "The hills"}], 99)
    words = ["[CLS]", "the", "hill", "##s", "?", "answer", ":", "[MASK]", "[SEP]"]
    words.insert(place, "PROMPT")
    assert prompted(tokens, position, tokenizer=tokenizer) == words
    assert int(tokens.label) == 7


@pytest.mark.parametrize("padding", ("left", "right"))
def test_places_count_real_tokens_on_either_side_of_the_padding(padding):
    rows = [ROW, {"p": "No", "h": "so"}]
    both = cloze(TOKENIZER, DP, rows, 99, padding)
    alone = [cloze(TOKENIZER, DP, [row], 99) for row in rows]
    assert both.label.tolist() == [int(one.label) for one in alone]
    assert both.slots.tolist() == [one.slots[0].tolist() for one in alone]


@pytest.mark.parametrize("room", range(26, 50))
def test_a_long_row_is_cut_to_the_room_and_keeps_its_template(room):
    long = {"p": "river " * 40, "h": "hills are dry"}
    found = cloze(TOKENIZER, DP, [long], room)
    whole = TOKENIZER.decode(found.ids[0])
    assert found.ids.shape == (1, room) and whole.endswith(" ? Answer:<mask> .</s>")
    assert found.ids[0, found.label] == TOKENIZER.mask_token_id


def test_the_longest_field_loses_its_end_first():
    long = {"p": "river rises in the hills", "h": "the"}
    whole = ids(DP.format(mask="<mask>", **long))
    found = cloze(TOKENIZER, DP, [long], len(whole) - 2).ids[0].tolist()
    cut = len(ids(long["p"])) - 2  # the premise's last two tokens, <s> before it
    assert found == whole[: cut - 1] + whole[cut + 1 :]


def test_a_row_that_just_fits_is_not_cut():
    whole = ids(DP_TEXT)
    assert cloze(TOKENIZER, DP, [ROW], len(whole)).ids[0].tolist() == whole


@pytest.mark.parametrize("template", ("{p} . {h} ?", "{p} {mask} {mask}", ""))
def test_a_template_without_exactly_one_mask_is_refused(template):
    with pytest.raises(InputError, match=r"must hold {mask} exactly once"):
        cloze(TOKENIZER, template, [ROW], 99)


def test_an_unknown_field_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown template field 'q'.*allowed: mask, soft, p, h"):
        cloze(TOKENIZER, "{q} {mask}", [ROW], 99)


def test_too_few_tokens_for_the_template_are_refused():
    with pytest.raises(InputError, match="10 tokens leave no room for the template"):
        cloze(TOKENIZER, DP, [ROW], 10)


def test_chosen_rows_keep_their_places():
    rows = [ROW, {"p": "No", "h": "so"}, {"p": "Yes", "h": "no"}]
    found = cloze(TOKENIZER, DP, rows, 99).rows([2, 1])
    wanted = cloze(TOKENIZER, DP, [rows[2], rows[1]], 99)
    assert all(torch.equal(getattr(found, k), v) for k, v in vars(wanted).items())


@given(data=st.data(), side=st.sampled_from(("left", "right")))
@settings(max_examples=200)
def test_inserted_vectors_stand_where_a_list_would_have_them(data, side):
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    slots = [data.draw(st.integers(0, n)) for n in lengths]
    n = data.draw(st.integers(1, 4))
    texts = [[10 * r + t + 1 for t in range(length)] for r, length in enumerate(lengths)]
    batch = pad(texts, "cpu", side)
    prompt = torch.arange(-n, 0.0)[:, None]
    embeds, mask = insert(batch.ids[..., None].float(), batch.mask, prompt, torch.tensor(slots))
    for r, (text, slot) in enumerate(zip(texts, slots, strict=True)):
        wanted = text[:slot] + list(range(-n, 0)) + text[slot:]
        assert embeds[r][mask[r]].flatten().tolist() == wanted


def test_each_row_can_have_vectors_of_its_own():
    batch = pad([[5], [6]], "cpu")
    own = torch.tensor([[[1.0]], [[2.0]]])
    embeds, _ = insert(batch.ids[..., None].float(), batch.mask, own, torch.tensor([0, 1]))
    assert embeds[..., 0].tolist() == [[1, 5], [6, 2]]


def test_a_cloze_batch_is_a_batch_of_tokens():
    tokens = cloze(TOKENIZER, DP, [ROW], 99)
    assert isinstance(tokens, Cloze) and tokens.lengths.tolist() == [len(ids(DP_TEXT))]
