"""Oracle: torch's cross-entropy, the closed form, a brute-force edit distance, and BLEU by hand."""

import functools
import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.core.errors import DataError, ExtraError, NonFiniteError, ShapeError
from limbeck.metrics import sequences
from limbeck.metrics.sequences import (
    Edits,
    Tokens,
    bleu,
    character_edits,
    character_error_rate,
    count_tokens,
    perplexity,
    token_accuracy,
    word_edits,
    word_error_rate,
)

V = 7


def drawn(seed, b=4, t=5):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, t, V, generator=generator)
    labels = torch.randint(0, V, (b, t), generator=generator)
    out = torch.rand(b, t, generator=generator)
    return logits, labels.masked_fill(out < 0.2, -100).masked_fill(out > 0.8, -1)


@given(st.integers(0, 2**31))
def test_tokens_equal_torch_and_what_does_not_count_may_be_anything(seed):
    logits, labels = drawn(seed)
    known = labels >= 0
    if not known.any():
        return
    mean = F.cross_entropy(logits[known].double(), labels[known])
    junk = torch.where(known[..., None], logits, math.nan)
    assert perplexity(junk, labels) == pytest.approx(float(mean.exp()), rel=1e-12)
    assert token_accuracy(junk, labels) == pytest.approx(
        float((logits.argmax(-1) == labels)[known].double().mean()), rel=1e-12
    )


@given(st.integers(0, 2**31), st.integers(0, 4))
def test_sums_of_parts_are_those_of_the_whole(seed, cut):
    logits, labels = drawn(seed)
    whole = count_tokens(logits, labels)
    parts = sum((count_tokens(logits[at], labels[at]) for at in (slice(cut), slice(cut, None))), Tokens())
    assert (parts.count, parts.hits) == (whole.count, whole.hits)
    assert parts.nll == pytest.approx(whole.nll, rel=1e-12)


def test_many_logits_are_read_in_pieces(monkeypatch):
    logits, labels = drawn(3, 6, 9)
    whole = count_tokens(logits, labels)
    monkeypatch.setattr(sequences, "_AT_ONCE", 2 * V)
    pieces = count_tokens(logits, labels)
    assert (pieces.count, pieces.hits) == (whole.count, whole.hits)
    assert pieces.nll == pytest.approx(whole.nll, rel=1e-12)


def test_perplexity_from_sure_to_impossible():
    labels = torch.tensor([[0, 1, 2]])
    assert perplexity(torch.zeros(1, 3, V), labels) == pytest.approx(V)
    sure = F.one_hot(labels, V) * 1000.0
    assert perplexity(sure, labels) == 1.0
    assert token_accuracy(sure, labels) == 1.0
    assert token_accuracy(sure.roll(1, -1), labels) == 0.0
    assert perplexity(sure.roll(1, -1), labels) == math.inf  # exp of 1000 nats
    masked = torch.zeros(1, 3, V).index_fill(2, torch.tensor([1]), -math.inf)
    assert perplexity(masked, labels) == math.inf
    assert token_accuracy(torch.zeros(1, 3, V), labels) == pytest.approx(1 / 3)  # ties go to token 0


def test_what_is_ignored_can_be_said():
    logits, _ = drawn(0, 1, 3)
    labels = torch.tensor([[0, 3, 6]])
    assert count_tokens(logits, labels, ignore={0}).count == 2
    with pytest.raises(DataError, match="label -1 does not fit a vocabulary of 7"):
        count_tokens(logits, torch.tensor([[0, -1, 2]]), ignore={-100})


def test_tokens_that_cannot_be_counted_are_refused():
    logits, labels = drawn(1)
    with pytest.raises(DataError, match="no token counts"):
        perplexity(logits, torch.full_like(labels, -100))
    with pytest.raises(DataError, match="no token counts"):
        _ = Tokens().accuracy
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        perplexity(logits * math.nan, labels)
    with pytest.raises(DataError, match="label 7"):
        perplexity(logits, torch.full_like(labels, V))
    with pytest.raises(DataError, match="whole numbers"):
        perplexity(logits, labels.float())
    for bad in (logits[:, :-1], logits[..., :0], torch.tensor(1.0)):
        with pytest.raises(ShapeError, match="To mend"):
            perplexity(bad, labels)


@functools.cache
def distance(a, b):
    """By the definition, one unit at a time."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))


texts = st.lists(st.text("ab ñ", max_size=8), min_size=1, max_size=4)


@given(texts, st.data())
def test_edits_are_the_fewest(references, data):
    hypotheses = [data.draw(st.text("ab ñ", max_size=8)) for _ in references]
    pairs = list(zip(hypotheses, references, strict=True))
    by_character, by_word = character_edits(hypotheses, references), word_edits(hypotheses, references)
    assert by_character == Edits(sum(distance(a, b) for a, b in pairs), sum(map(len, references)))
    split = [(tuple(a.split()), tuple(b.split())) for a, b in pairs]
    assert by_word == Edits(sum(distance(a, b) for a, b in split), sum(len(b) for _, b in split))
    singly = (character_edits([a], [b]) for a, b in pairs)
    assert sum(singly, Edits()) == by_character


def test_error_rates_by_hand():
    assert word_error_rate(["the cat sat"], ["the cat sat"]) == 0.0
    assert word_error_rate(["a dog ran"], ["the cat sat"]) == 1.0
    assert word_error_rate(["the black cat sat down"], ["the cat sat"]) == pytest.approx(2 / 3)
    assert character_error_rate(["kitten"], ["sitting"]) == pytest.approx(3 / 7)
    # Long texts weigh more: 1 of 1 and 0 of 3 are 1 of 4.
    assert word_error_rate(["x", "a b c"], ["y", "a b c"]) == 0.25


def test_empty_texts():
    assert word_error_rate(["", "a"], ["one two", "a"]) == pytest.approx(2 / 3)
    assert word_error_rate(["uh", "a"], ["", "a"]) == 1.0  # said where nothing was meant
    assert word_error_rate(["", "a"], ["", "a"]) == 0.0
    for rate in (word_error_rate, character_error_rate):
        for nothing in ((["a"], [""]), ([""], [""]), ([], [])):
            with pytest.raises(DataError, match="all references are empty"):
                rate(*nothing)


@pytest.mark.parametrize("measure", [word_error_rate, character_error_rate, bleu])
def test_texts_that_do_not_line_up_are_refused(measure):
    for pair in ((["a"], ["a", "b"]), ("a", ["a"]), (["a"], "a"), ([1], ["a"]), (["a"], [None])):
        with pytest.raises(DataError, match="To mend"):
            measure(*pair)


def test_bleu_by_hand():
    said = "the quick brown fox jumps over the lazy dog"
    assert bleu([said], [said]) == 100.0
    assert bleu(["x y z w v"], ["a b c d e"]) == pytest.approx(0.0, abs=15)  # smoothing leaves a little
    # 4 of 4 n-grams of every order are right, and the length 4 of 8 costs exp(1 - 8 / 4).
    assert bleu(["a b c d"], ["a b c d e f g h"]) == pytest.approx(100 * math.exp(-1))
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours.
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert bleu(["a b c d x f"], ["a b c d e f"]) == pytest.approx(expected)


def test_bleu_takes_several_references_and_empty_texts():
    said = ["a b c d", "e f g h"]
    assert bleu(said, [["x y z w", "a b c d"], "e f g h"]) == 100.0
    assert bleu(["a b c d", ""], ["a b c d", "e f g h"]) == pytest.approx(100 * math.exp(-1))
    for empty in (([""], ["a"]), (["a"], [""]), ([""], [""]), (["a b c"], ["a b c"])):
        assert bleu(*empty) == 0.0
    with pytest.raises(DataError, match="no text"):
        bleu([], [])
    with pytest.raises(DataError, match="text 1 has no reference"):
        bleu(["a", "b"], ["a", []])


def test_bleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ExtraError, match=r"limbeck\[text\]"):
        bleu(["a"], ["a"])
