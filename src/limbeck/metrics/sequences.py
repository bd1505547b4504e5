"""How right sequences are: the next token, and whole texts beside their references.

Shapes: B = sequences, T = tokens of a sequence, V = vocabulary. Counts are whole numbers and sums float64, and they
add: the sums of parts are those of the whole, so that every token weighs the same whatever batch it was in. Computed
here rather than by torchmetrics 1.9, which answers NaN where no token counts, cuts the longer of two lists of texts
without a word, and divides by zero where a reference is empty.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.core.errors import DataError, ShapeError, problem
from limbeck.core.extras import need
from limbeck.metrics.quality import check_logits

__all__ = [
    "Edits",
    "Tokens",
    "bleu",
    "character_edits",
    "character_error_rate",
    "count_tokens",
    "perplexity",
    "token_accuracy",
    "word_edits",
    "word_error_rate",
]

IGNORED = (-1, -100)
"""Labels of tokens that do not count: "no label" here, and what PyTorch's losses and most collators use."""

_AT_ONCE = 1 << 22
"""Logits that are widened to float64 at a time."""


@dataclass(frozen=True)
class Tokens:
    """What tokens add up to: how many count, their negative log-likelihood in nats, and how many are right."""

    count: int = 0
    nll: float = 0.0
    hits: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        """Both together; `sum(parts, Tokens())` for many."""
        return Tokens(self.count + other.count, self.nll + other.nll, self.hits + other.hits)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood a token: 1 is sure and right, V a guess.

        It may be infinite.

        Raises:
            DataError: no token counts.
        """
        mean = self.nll / self._some
        return math.exp(mean) if mean < math.log(sys.float_info.max) else math.inf

    @property
    def accuracy(self) -> float:
        """Share of the tokens that are the likeliest of their position, from 0 to 1; ties go to the lowest number.

        Raises:
            DataError: no token counts.
        """
        return self.hits / self._some

    @property
    def _some(self) -> int:
        if not self.count:
            raise DataError(problem("tokens", "no token counts", "give labels from 0 upwards for some of them"))
        return self.count


def count_tokens(logits_BTV: Tensor, labels_BT: Tensor, *, ignore: Collection[int] = IGNORED) -> Tokens:
    """The sums behind perplexity and token accuracy; logits where no token counts may be anything.

    Args:
        logits_BTV: floating-point logits [..., V].
        labels_BT: the token that each position answers to [...]. For models that predict the next token, that is the
            label one further on: give `logits[:, :-1]` and `labels[:, 1:]`.
        ignore: labels of tokens that do not count.

    Raises:
        DataError: a label is no token of the vocabulary.
        ModelError: logits that count are NaN or infinite, or not floating point.
        ShapeError: logits and labels differ in tokens.
    """
    size = logits_BTV.shape[-1] if logits_BTV.dim() else 0
    if not size or logits_BTV.shape[:-1] != labels_BT.shape:
        wrong = f"logits are {list(logits_BTV.shape)}, labels are {list(labels_BT.shape)}"
        raise ShapeError(problem("tokens", wrong, "give logits of shape [..., vocabulary] and labels of shape [...]"))
    known = _tokens(labels_BT, size, ignore)
    at = known.flatten().nonzero().flatten()
    logits, labels = logits_BTV.reshape(-1, size), labels_BT.flatten().long()
    found = Tokens()
    for part in torch.split(at, max(1, _AT_ONCE // size)):
        some, truth = logits[part], labels[part]
        check_logits("tokens", some)
        nll = -some.double().log_softmax(dim=1).gather(1, truth[:, None])
        found += Tokens(len(part), float(nll.sum()), int((some.argmax(dim=1) == truth).sum()))
    return found


def perplexity(logits_BTV: Tensor, labels_BT: Tensor, *, ignore: Collection[int] = IGNORED) -> float:
    """The exponential of the mean negative log-likelihood over the tokens that count; arguments as of `count_tokens`.

    Raises:
        DataError: no token counts, or a label is no token of the vocabulary.
        ModelError: logits that count are NaN or infinite, or not floating point.
        ShapeError: logits and labels differ in tokens.
    """
    return count_tokens(logits_BTV, labels_BT, ignore=ignore).perplexity


def token_accuracy(logits_BTV: Tensor, labels_BT: Tensor, *, ignore: Collection[int] = IGNORED) -> float:
    """Share of the tokens that count whose likeliest answer is the label. Arguments are those of `count_tokens`.

    Raises:
        DataError: no token counts, or a label is no token of the vocabulary.
        ModelError: logits that count are NaN or infinite, or not floating point.
        ShapeError: logits and labels differ in tokens.
    """
    return count_tokens(logits_BTV, labels_BT, ignore=ignore).accuracy


@dataclass(frozen=True)
class Edits:
    """What texts add up to: the fewest changes that make hypotheses references, and the references' length."""

    errors: int = 0
    length: int = 0

    def __add__(self, other: Edits) -> Edits:
        """Both together; `sum(parts, Edits())` for many."""
        return Edits(self.errors + other.errors, self.length + other.length)

    @property
    def rate(self) -> float:
        """Changes for each unit of the references: 0 is perfect, and it may exceed 1.

        Raises:
            DataError: all references are empty.
        """
        if not self.length:
            raise DataError(problem("error rate", "all references are empty", "give a reference that says something"))
        return self.errors / self.length


def word_edits(hypotheses: Sequence[str], references: Sequence[str]) -> Edits:
    """Insertions, deletions and substitutions of words (Levenshtein 1966), where words are what white space parts.

    An empty hypothesis misses every word; a hypothesis beside an empty reference is wrong in every word.

    Raises:
        DataError: what is given is no list of texts, or the lists differ in length.
    """
    return _edits("word error rate", hypotheses, references, str.split)


def character_edits(hypotheses: Sequence[str], references: Sequence[str]) -> Edits:
    """`word_edits` of characters: Unicode code points as they are, white space included.

    Raises:
        DataError: what is given is no list of texts, or the lists differ in length.
    """
    return _edits("character error rate", hypotheses, references, list)


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Changes of words for each word of all references together: long texts weigh more than short ones.

    Raises:
        DataError: all references are empty, what is given is no list of texts, or the lists differ in length.
    """
    return word_edits(hypotheses, references).rate


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Changes of characters for each character of all references together.

    Raises:
        DataError: all references are empty, what is given is no list of texts, or the lists differ in length.
    """
    return character_edits(hypotheses, references).rate


def bleu(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """Corpus BLEU from 0 to 100 as sacreBLEU computes it by default (tokenizer 13a, exponential smoothing).

    It counts over the whole corpus, so the mean over parts is another number, and it is 0 where no hypothesis has
    four tokens. Papineni et al. 2002; Post 2018, "A Call for Clarity in Reporting BLEU Scores".

    Args:
        hypotheses: what the model said.
        references: for each, one right answer or several.

    Raises:
        DataError: there is no text, what is given is no list of texts, or the lists differ in length.
        ExtraError: sacrebleu is not installed.
    """
    _check_pairs("BLEU", hypotheses, references)
    several = [[answers] if isinstance(answers, str) else answers for answers in references]
    for i, answers in enumerate(several):
        if not isinstance(answers, list | tuple) or not answers:
            raise DataError(problem("BLEU", f"text {i} has no reference", "give each at least one"))
        _check_texts("BLEU", answers)
    if not hypotheses:
        raise DataError(problem("BLEU", "there is no text", "give at least one hypothesis and its reference"))
    most = max(map(len, several))
    streams = [[answers[i] if i < len(answers) else None for answers in several] for i in range(most)]
    score = need("sacrebleu", extra="text", why="BLEU").corpus_bleu(list(hypotheses), streams).score
    return min(float(score), 100.0)  # which rounding can exceed


def _tokens(labels_BT: Tensor, size: int, ignore: Collection[int]) -> Tensor:
    """Which labels count; the others are all in `ignore`."""
    if labels_BT.is_floating_point() or labels_BT.is_complex():
        raise DataError(problem("tokens", f"labels are {labels_BT.dtype}", "give whole numbers"))
    labels = labels_BT.long()
    left_out = torch.isin(labels, torch.tensor(sorted(ignore), dtype=torch.int64, device=labels.device))
    outside = labels[~left_out & ((labels < 0) | (labels >= size))]
    if len(outside):
        mend = (
            f"use tokens from 0 to {size - 1}, and {' or '.join(map(str, sorted(ignore)))} for those that don't count"
        )
        raise DataError(problem("tokens", f"label {int(outside[0])} does not fit a vocabulary of {size}", mend))
    return ~left_out


def _edits(
    where: str, hypotheses: Sequence[str], references: Sequence[str], cut: Callable[[str], Sequence[str]]
) -> Edits:
    _check_pairs(where, hypotheses, references)
    _check_texts(where, references)
    pairs = [(cut(said), cut(meant)) for said, meant in zip(hypotheses, references, strict=True)]
    return Edits(sum(_distance(*pair) for pair in pairs), sum(len(meant) for _, meant in pairs))


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Levenshtein's distance, a row of the table at a time."""
    short, long = sorted((a, b), key=len)
    number = {unit: i for i, unit in enumerate({*a, *b})}
    across = np.array([number[unit] for unit in long], dtype=np.int64)
    place = np.arange(len(long) + 1)
    row = place
    for done, unit in enumerate(short, start=1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (across != number[unit]))
        # An insertion costs one more than its left neighbour: a running minimum, once the place is taken off.
        row = np.minimum.accumulate(np.concatenate([[done], kept]) - place) + place
    return int(row[-1])


def _check_pairs(where: str, hypotheses: Sequence[str], references: Sequence[object]) -> None:
    _check_texts(where, hypotheses)
    if isinstance(references, str) or len(hypotheses) != len(references):
        wrong = f"{len(hypotheses)} hypotheses for " + (
            "one text" if isinstance(references, str) else f"{len(references)} references"
        )
        raise DataError(problem(where, wrong, "give one reference a hypothesis, as two lists"))


def _check_texts(where: str, texts: Sequence[object]) -> None:
    odd = [type(x).__name__ for x in texts if not isinstance(x, str)]
    if isinstance(texts, str) or odd:
        seen = f"a {odd[0]} among the texts" if odd else "one text"
        raise DataError(problem(where, f"there is {seen}", "give a list of texts"))
