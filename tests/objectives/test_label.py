"""Labels, hard and soft, and what they mean to the losses that read them."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from limbeck import functional as F
from limbeck.objectives import Label
from limbeck.objectives.label import chosen

RNG = np.random.default_rng(0)
S = RNG.normal(size=(7, 4)) * 3
s = torch.from_numpy(S)


def test_labels_are_numpy_s_cross_entropy_and_unlabelled_samples_cost_nothing():
    y = torch.tensor([0, 1, 2, 3, -1, 1, -1])
    value = F.label_cross_entropy(s, y, reduction="none").numpy()
    expected = -log_softmax(S, -1)[np.arange(7), y.clamp_min(0).numpy()] * (y.numpy() >= 0)
    np.testing.assert_allclose(value, expected)


def test_soft_labels_mix_and_may_be_narrower_than_the_logits():
    soft = torch.tensor([[0.25, 0.75, 0.0]]).double().repeat(7, 1)
    soft[3] = 0.0  # a sample without label, mixed
    expected = -(log_softmax(S, -1)[:, :3] * soft.numpy()).sum(-1)
    np.testing.assert_allclose(F.label_cross_entropy(s, soft, reduction="none").numpy(), expected)


def test_smoothing_is_a_mixture_with_the_even_answer_for_hard_and_soft_labels():
    y = torch.tensor([0, 1, 2, 3, -1, 1, 2])
    one_hot = torch.nn.functional.one_hot(y.clamp_min(0), 4).double() * (y >= 0)[:, None]
    hard = F.label_cross_entropy(s, y, smoothing=0.2, reduction="none")
    mixed = 0.8 * one_hot.numpy() + 0.2 / 4
    expected = -(mixed * log_softmax(S, -1)).sum(-1) * (y.numpy() >= 0)
    np.testing.assert_allclose(hard.numpy(), expected)
    np.testing.assert_allclose(F.label_cross_entropy(s, one_hot, smoothing=0.2, reduction="none").numpy(), expected)


def test_impossible_smoothing_and_labels_that_do_not_line_up_are_refused():
    with pytest.raises(ValueError, match="smoothing"):
        Label(smoothing=1.0)
    with pytest.raises(ValueError, match=r"logits are \(7, 4\), labels are \(3,\)"):
        F.label_cross_entropy(s, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels go from 0 to 9, the student has 4 classes"):
        F.label_cross_entropy(s, torch.tensor([0, 9, 1, 1, 1, 1, 1]))
    with pytest.raises(ValueError, match="labels are"):
        F.label_cross_entropy(s, torch.zeros(7, 5))


def test_a_soft_label_stands_for_its_two_heaviest_classes():
    soft = torch.tensor([[0.0, 0.7, 0.3, 0.0], [0.1, 0.1, 0.2, 0.6], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    label = chosen("test", s[:3], soft)
    assert label.classes[:2].tolist() == [[1, 2], [3, 2]]
    torch.testing.assert_close(label.share, torch.tensor([[0.7, 0.3], [0.75, 0.25], [0.0, 0.0]], dtype=torch.float64))


def test_a_hard_label_stands_for_itself_and_none_for_nothing():
    label = chosen("test", s[:4], torch.tensor([2, -1, 0, -100]), ignore=-100)
    assert label.classes[:, 0].tolist() == [2, 0, 0, 0]
    assert label.share[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("soft", [False, True])
def test_a_temperature_divides_the_logits_and_nothing_makes_up_for_it(soft):
    logits, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, -1])
    given = torch.nn.functional.one_hot(y.clamp_min(0), 4).float() * (y >= 0).unsqueeze(-1) if soft else y
    value = F.label_cross_entropy(logits, given, temperature=20.0, reduction="none")
    wanted = F.label_cross_entropy(logits / 20.0, given, reduction="none")
    torch.testing.assert_close(value, wanted)
    with pytest.raises(ValueError, match=r"label\.temperature"):
        Label(temperature=0.0)
