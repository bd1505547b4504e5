"""Peers and exits: against sums written out one pair at a time, and against what autograd says of who pays."""

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from scipy.stats import entropy

from limbeck.core.errors import LimbeckError
from limbeck.objectives import KL, Each, Exits, Hint, Label, Mutual, TeacherFree, Tokens
from limbeck.objectives.label import teacher_free
from limbeck.objectives.peers import exits, mutual


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def batch(samples, classes):
    return {"valid": torch.ones(samples, dtype=torch.bool), "y": torch.arange(samples) % classes}


@pytest.mark.parametrize("peers", [2, 3, 4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_mutual_is_the_sum_over_peers_of_their_mean_divergence_from_the_others(peers, temperature):
    logits = drawn(5, peers, 4)
    value = mutual(logits, temperature=temperature, reduction="none")
    p = softmax(logits.numpy() / temperature, axis=-1)
    for b in range(5):
        wanted = sum(np.mean([rel_entr(p[b, j], p[b, i]).sum() for j in range(peers) if j != i]) for i in range(peers))
        assert float(value[b]) == pytest.approx(temperature**2 * wanted, rel=1e-10)


def test_no_peer_gets_a_gradient_as_a_teacher():
    """What the sum asks of peer i is what its own loss asks, with the others as constants."""
    logits = drawn(5, 3, 4).requires_grad_()
    (whole,) = torch.autograd.grad(mutual(logits, reduction="sum"), logits)
    for i in range(3):
        mine = logits[:, i].detach().requires_grad_()
        held = [logits[:, j].detach() for j in range(3) if j != i]
        own = sum((other.softmax(-1) * (other.log_softmax(-1) - mine.log_softmax(-1))).sum() for other in held) / len(
            held
        )
        (alone,) = torch.autograd.grad(own, mine)
        assert torch.allclose(whole[:, i], alone, rtol=1e-10, atol=1e-12)


def test_equal_peers_pay_nothing_and_stay():
    logits = drawn(5, 1, 4).expand(5, 3, 4).clone().requires_grad_()
    value = mutual(logits, reduction="none")
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.abs().max() < 1e-12
    assert slope.abs().max() < 1e-12


def test_peers_come_together_when_they_follow_the_gradient():
    logits = drawn(5, 3, 4)
    apart = [float(mutual(logits))]
    for _ in range(50):
        leaf = logits.requires_grad_()
        (slope,) = torch.autograd.grad(mutual(leaf, reduction="sum"), leaf)
        logits = (leaf - 0.5 * slope).detach()
        apart.append(float(mutual(logits)))
    assert apart[-1] < 0.1 * apart[0]


def test_each_adds_up_a_term_over_the_peers_with_the_weight_of_the_term_inside():
    logits, told = drawn(6, 3, 4), batch(6, 4)
    value = Each(term=Label(weight=0.5))({"peers": logits}, {}, told)
    wanted = sum(Label()({"logits": logits[:, i]}, {}, told) for i in range(3))
    assert torch.allclose(value, 0.5 * wanted)


def test_each_brings_a_teacher_to_every_peer():
    logits, teacher = drawn(6, 2, 4), {"logits": drawn(6, 4, seed=1)}
    term = Each(term=KL(temperature=2.0))
    assert term.needs().teacher == {"logits"}
    value = term({"peers": logits}, teacher, batch(6, 4))
    wanted = sum(KL(temperature=2.0)({"logits": logits[:, i]}, teacher, {}) for i in range(2))
    assert torch.allclose(value, wanted)


def test_an_exit_pays_for_labels_and_for_the_end_which_is_held_still():
    shallow, deepest = drawn(6, 4).requires_grad_(), drawn(6, 4, seed=1).requires_grad_()
    y = torch.tensor([0, 1, 2, 3, 0, -1])
    value = exits(shallow, deepest, y, share=0.3, temperature=3.0, reduction="none")
    p, q = (softmax(x.detach().numpy() / 3, axis=-1) for x in (deepest, shallow))
    hard = softmax(shallow.detach().numpy(), axis=-1)
    for b in range(6):
        label = 0.0 if y[b] < 0 else -math.log(hard[b, y[b]])
        assert value[b].item() == pytest.approx(0.7 * label + 0.3 * 9 * entropy(p[b], q[b]), rel=1e-9)
    slopes = torch.autograd.grad(value.sum(), [shallow, deepest], allow_unused=True)
    assert slopes[0].abs().max() > 0
    assert slopes[1] is None


def test_exits_sum_over_their_taps():
    signal = {"exits:a>logits:linear": drawn(6, 4), "exits:b>logits:linear": drawn(6, 4, seed=1), "logits": drawn(6, 4)}
    told = batch(6, 4)
    value = Exits(taps=("a", "b"))(signal, {}, told)
    assert torch.allclose(value, Exits(taps=("a",))(signal, {}, told) + Exits(taps=("b",))(signal, {}, told))


def test_the_virtual_teacher_is_the_label_and_an_even_rest():
    logits = drawn(4, 5)
    y = torch.tensor([0, 3, 4, -1])
    value = teacher_free(logits, y, correct=0.9, temperature=4.0, reduction="none")
    for b in range(3):
        virtual = np.full(5, 0.1 / 4)
        virtual[y[b]] = 0.9
        soft = softmax(np.log(virtual) / 4)
        assert float(value[b]) == pytest.approx(16 * entropy(soft, softmax(logits[b].numpy() / 4)), rel=1e-9)
    assert float(value[3]) == 0


def test_the_virtual_teacher_takes_mixed_labels():
    logits = drawn(2, 3)
    soft = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
    value = teacher_free(logits, soft, correct=0.8, temperature=1.0, reduction="none")
    assert float(value[0]) == pytest.approx(
        float(teacher_free(logits[:1], torch.tensor([1]), correct=0.8, temperature=1.0))
    )
    wanted = entropy([0.45, 0.45, 0.1], softmax(logits[1].numpy()))
    assert float(value[1]) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mutual(drawn(5, 1, 4)), "two peers or more"),
        (lambda: Mutual()({"peers": drawn(5, 4)}, {}, {}), "limbeck.Peers"),
        (lambda: Mutual(temperature=0.0), "mutual.temperature"),
        (lambda: Each(term=Label), "is no term"),
        (lambda: Each(term=Hint(student="a", teacher="b")), "no term on the logits"),
        (lambda: Each(term=Tokens(term=KL())), "no term on the logits"),
        (lambda: Exits(taps=()), "at least one layer"),
        (lambda: Exits(taps=("a", "a")), "distinct"),
        (lambda: Exits(taps=("logits",)), "the end that teaches"),
        (lambda: Exits(taps=("a",), share=1.5), "exits.share"),
        (lambda: Exits(taps=("a",), temperature=-1.0), "exits.temperature"),
        (lambda: TeacherFree(correct=1.0), "teacher_free.correct"),
        (lambda: TeacherFree(temperature=0.0), "teacher_free.temperature"),
    ],
)
def test_what_cannot_be_is_refused_with_a_mend(make, said):
    with pytest.raises(LimbeckError, match=rf"(?s){said}.*") as caught:
        make()
    assert "To mend" in str(caught.value)
