"""Temperatures that move: by schedule, by sample, and learned against the student."""

import math

import pytest
import torch

import limbeck as lb
from limbeck import functional as F
from limbeck.core.schedules import Linear, settled
from limbeck.objectives import ByEntropy, Curriculum
from limbeck.objectives.temperature import certainty, reversed_gradient

G = torch.Generator().manual_seed(0)
S, T = (torch.randn(6, 5, generator=G) for _ in range(2))
BATCH = {"valid": torch.ones(6, dtype=torch.bool)}


def call(term, student=S, teacher=T):
    signal = {"logits": student}
    for request in term.heads():
        signal.update(request(signal, {})(signal, {}, BATCH))
    return term(signal, {"logits": teacher}, BATCH)


def test_a_schedule_is_settled_before_the_term_is_called():
    term = lb.KL(temperature=Linear(start=8.0, end=2.0), weight=Linear(start=1.0, end=0.0))
    half = settled(term, 0.5)
    assert (half.temperature, half.weight) == (5.0, 0.5)
    torch.testing.assert_close(call(half), F.kl(S, T, temperature=5.0, reduction="none"))
    assert settled(lb.KL(), 0.5) == lb.KL()


def test_schedules_are_settled_however_deep():
    nested = (
        lb.Weighed(term=lb.DKD(beta=Linear(start=0.0, end=8.0))),
        lb.Balanced(terms=(lb.KL(), lb.JSD(beta=Linear(start=0.2, end=0.6)))),
    )
    first, second = settled(nested, 0.5)
    assert first.term.beta == 4.0
    assert second.terms[1].beta == pytest.approx(0.4)


def test_annealed_to_zero_it_is_early_stopped_distillation():
    """From `until` on the teacher has no say: the gradient of the whole objective is that of the labels alone."""
    objective = (lb.KL(weight=Linear(start=0.9, end=0.0, until=0.5)), lb.Label())
    assert [term.weight for term in settled(objective, 0.7)] == [0.0, 1.0]


def test_certainty_is_one_minus_the_share_of_the_largest_entropy():
    logits = torch.tensor([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0], [math.log(2), math.log(1), math.log(1)]])
    p = torch.tensor([0.5, 0.25, 0.25])
    expected = [0.0, 1.0, 1 + float((p * p.log()).sum()) / math.log(3)]
    torch.testing.assert_close(certainty(logits), torch.tensor(expected))


def test_by_entropy_gives_sure_answers_one_temperature_and_unsure_ones_another():
    teacher = torch.tensor([[50.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    student = torch.randn(2, 3, generator=G)
    value = call(lb.KL(temperature=ByEntropy(sure=6.0, unsure=1.5)), student, teacher)
    alone = [F.kl(student[i], teacher[i], temperature=heat, reduction="none") for i, heat in enumerate((6.0, 1.5))]
    torch.testing.assert_close(value, torch.stack(alone))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_reversed_gradient_is_minus_strength_times_the_gradient(strength):
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = reversed_gradient(x, strength)
    assert torch.equal(y, x)
    (y**2).sum().backward()
    torch.testing.assert_close(x.grad, -strength * 2 * x.detach())


def test_b09_a_step_of_the_curriculum_makes_matching_harder_and_stays_in_range():
    term = lb.KL(temperature=Curriculum(low=1.0, span=9.0, start=3.0, strength=1.0))
    (request,) = term.heads()
    head = request({}, {})
    assert list(head.parameters()), "the temperature is learned, so an optimizer must see it"
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)

    def loss():
        signal = {"logits": S, **head({}, {}, {})}
        return term(signal, {"logits": T}, BATCH).mean()

    before = loss()
    before.backward()
    optimizer.step()
    assert loss() > before
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        assert 1.0 <= float(head({}, {}, {})[head.name].detach()) <= 10.0


def test_at_strength_zero_the_temperature_stays_where_it_starts():
    term = lb.KL(temperature=Curriculum(start=5.0, strength=0.0))
    torch.testing.assert_close(call(term), F.kl(S, T, temperature=5.0, reduction="none"))


def test_the_learned_temperature_is_trained_saved_and_resumed(tmp_path):
    x = torch.randn(60, 4, generator=G)
    data = (x, x.argmax(-1))

    def distilled(epochs, out):
        torch.manual_seed(1)
        student, teacher = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        objective = (lb.KL(temperature=Curriculum(strength=1.0)), lb.Label())
        settings = {"batch_size": 20, "schedule": lb.schedules.Constant(), "checkpoint_seconds": 0, "progress": False}
        lb.distill(student, teacher, train=data, val=data, objective=objective, epochs=epochs, out=out, **settings)
        from safetensors.torch import load_file

        (saved,) = (out / "checkpoints").rglob("tensors.safetensors")
        return load_file(saved)

    tensors = distilled(3, tmp_path / "run")
    raw = tensors["student/heads.0.raw"]
    start = math.log((4 - 1) / 20 / (1 - (4 - 1) / 20))
    assert abs(float(raw) - start) > 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Curriculum(low=0.0),
        lambda: Curriculum(start=30.0),
        lambda: Curriculum(strength=-1.0),
        lambda: ByEntropy(sure=0.0),
        lambda: lb.KL(temperature=-1.0),
        lambda: lb.KL(temperature=None),
    ],
)
def test_impossible_temperatures_are_refused(make):
    with pytest.raises(ValueError, match="To mend"):
        make()
