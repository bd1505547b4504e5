"""Terms that weigh other terms: by sample, and against each other."""

import pytest
import torch

import limbeck as lb
from limbeck import functional as F
from limbeck.core.schedules import Linear, settled
from limbeck.objectives import GradientNorm, Uncertainty

G = torch.Generator().manual_seed(0)
S, T = (torch.randn(6, 5, generator=G, dtype=torch.float64) for _ in range(2))
Y = torch.tensor([0, 1, 2, 3, 4, -1])
BATCH = {"valid": torch.ones(6, dtype=torch.bool), "y": Y}


def entropy_share(logits):
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1) / torch.tensor(5.0, dtype=torch.float64).log()


def test_weighed_by_the_teacher_s_entropy():
    bare = F.kl(S, T, temperature=2.0, reduction="none")
    sides = {"logits": S}, {"logits": T}, BATCH
    torch.testing.assert_close(lb.Weighed(term=lb.KL())(*sides), bare * (1 - entropy_share(T)))
    torch.testing.assert_close(lb.Weighed(term=lb.KL(), by="uncertainty")(*sides), bare * entropy_share(T))
    high = lb.Weighed(term=lb.KL(), floor=1.0)(*sides)
    torch.testing.assert_close(high, bare)


def test_weighed_by_correctness_for_hard_soft_and_missing_labels():
    bare = F.kl(S, T, temperature=2.0, reduction="none")
    right = (T.argmax(-1) == Y).double()
    value = lb.Weighed(term=lb.KL(), by="correct", floor=0.25)({"logits": S}, {"logits": T}, BATCH)
    torch.testing.assert_close(value, bare * right.clamp_min(0.25))
    assert value[5] == 0.25 * bare[5]
    soft = torch.zeros(6, 5, dtype=torch.float64)
    soft[torch.arange(6), T.argmax(-1)] = 0.6
    soft[torch.arange(6), T.argmin(-1)] = 0.4
    value = lb.Weighed(term=lb.KL(), by="correct")({"logits": S}, {"logits": T}, {**BATCH, "y": soft})
    torch.testing.assert_close(value, 0.6 * bare)


@pytest.mark.parametrize(
    "around",
    [lambda term: lb.Weighed(term=term, floor=1.0), lambda term: lb.Classes(term=term, student=(0, 1, 2, 3, 4))],
)
def test_the_weight_of_a_term_inside_counts_also_when_it_moves(around):
    sides = {"logits": S}, {"logits": T}, BATCH
    bare = around(lb.KL())(*sides)
    torch.testing.assert_close(around(lb.KL(weight=0.5))(*sides), 0.5 * bare)
    moving = settled(around(lb.KL(weight=Linear(start=1.0, end=0.0))), 0.75)
    torch.testing.assert_close(moving(*sides), 0.25 * bare)


def test_no_gradient_reaches_the_teacher_through_a_weight():
    teacher = T.clone().requires_grad_()
    lb.Weighed(term=lb.MSELogits())({"logits": S}, {"logits": teacher.detach()}, BATCH).sum()
    assert teacher.grad is None


def signal(term, student):
    made = [request({"logits": S}, {}) for request in term.heads()]
    full = {"logits": student, "hidden": student}
    for head in made:
        full.update(head(full, {}, BATCH))
    return full, made


def test_uncertainty_weighting_is_kendall_s_sum_and_finds_its_minimum():
    """At fixed losses L the best s is log(2 L): the derivative of exp(−s) L + s / 2 is zero there."""
    term = lb.Balanced(terms=(lb.KL(), lb.Label(weight=0.5)))
    full, (gauge,) = signal(term, S)
    each = F.kl(S, T, temperature=2.0, reduction="none"), 0.5 * F.label_cross_entropy(S, Y, reduction="none")
    torch.testing.assert_close(term(full, {"logits": T}, BATCH), each[0] + each[1])
    optimizer = torch.optim.SGD(gauge.parameters(), lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        full.update(gauge(full, {}, BATCH))
        term(full, {"logits": T}, BATCH).mean().backward()
        optimizer.step()
    expected = torch.stack([(2 * value.mean()).log() for value in each])
    torch.testing.assert_close(gauge.numbers.detach().double(), expected, rtol=1e-3, atol=1e-3)


def test_gradient_norms_are_levelled_at_the_layer():
    term = lb.Balanced(terms=(lb.Label(), lb.MSELogits(weight=3.0)), by=GradientNorm(at="hidden", every=1, decay=0.0))
    student = S.clone().requires_grad_()
    full, (gauge,) = signal(term, student)
    term(full, {"logits": 1e4 * T}, BATCH)
    alone = F.label_cross_entropy(student, Y, reduction="sum"), F.mse_logits(student, 1e4 * T, reduction="sum")
    norms = [torch.autograd.grad(value, student, retain_graph=True)[0].norm() for value in alone]
    torch.testing.assert_close(gauge.numbers[:2].double(), torch.stack(norms), rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(term(full, {"logits": 1e4 * T}, BATCH).sum(), student)
    (of_label,) = torch.autograd.grad(F.label_cross_entropy(student, Y, reduction="sum"), student)
    torch.testing.assert_close((grad - of_label).norm(), 3 * norms[0], rtol=1e-5, atol=0)
    assert not list(gauge.parameters())
    assert "numbers" in gauge.state_dict()


def test_norms_are_measured_every_so_many_steps_and_averaged():
    term = lb.Balanced(terms=(lb.Label(), lb.KL()), by=GradientNorm(at="hidden", every=3, decay=0.5))
    student = S.clone().requires_grad_()
    full, (gauge,) = signal(term, student)
    seen = []
    for step in range(5):
        full["logits"] = full["hidden"] = student * (step + 1)
        term(full, {"logits": T}, BATCH)
        seen.append(gauge.numbers[:2].clone())
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[4])
    assert float(gauge.numbers[-1]) == 5


def test_a_balance_trains_through_the_public_call():
    x = torch.randn(60, 4, generator=G, dtype=torch.float64).float()
    data = (x, x.argmax(-1))
    for by in (Uncertainty(), GradientNorm(at="0", every=2)):
        student, teacher = (
            torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)) for _ in range(2)
        )
        objective = lb.Balanced(terms=(lb.KL(), lb.Label(), lb.Hint(student="0", teacher="0")), by=by)
        run = lb.distill(
            student, teacher, train=data, val=data, objective=objective, epochs=3, batch_size=20, progress=False
        )
        assert run.state.step == 9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lb.Balanced(terms=(lb.KL(),)), "two terms"),
        (lambda: lb.Balanced(terms=(lb.KL(), lb.Label(weight=0.0))), "weight 0"),
        (lambda: lb.Balanced(terms=(lb.KL(), lb.Label()), by="uncertainty"), "no balance"),
        (lambda: lb.Weighed(term=lb.KL(), by="mood"), "certainty, uncertainty, correct"),
        (lambda: lb.Weighed(term=lb.KL(), floor=2.0), "no share"),
        (lambda: GradientNorm(at="a", every=0), "whole number"),
    ],
)
def test_impossible_settings_are_refused(make, said):
    with pytest.raises(ValueError, match=rf"{said}(.|\n)*To mend|To mend(.|\n)*{said}"):
        make()
