"""Laws over teachers: whatever happens in a run, a teacher is as it was, and no gradient reaches it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import ModelError
from limbeck.teachers import FunctionTeacher, as_teacher

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 3, 8, 8, generator=G), torch.randint(0, 4, (64,), generator=G)
BATCH = {"id": torch.arange(8), "valid": torch.ones(8, dtype=torch.bool), "x": X[:8], "y": Y[:8]}


class Odd(nn.Module):
    """Batch norm, dropout, and a buffer that is written whatever the mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(6, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


def student():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))


def snapshot(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [v.stride() for v in model.state_dict().values()],
        [len(m._forward_hooks) for m in model.modules()],
    )


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("how", [{}, {"channels_last": True}, {"precision": "bfloat16"}])
def test_a_module_is_bit_identical_after_a_run_however_it_was_handed_over(mode, how):
    teacher = Odd().train(mode != "eval")
    if mode == "mixed":
        teacher.bn.eval()
        teacher.conv.weight.requires_grad_(False)
    before = snapshot(teacher)
    objective = (lb.KL(), lb.Hint(student="0", teacher="conv"), lb.Label())
    lb.distill(student(), teacher, train=(X, Y), val=(X, Y), objective=objective, epochs=2, batch_size=16, **how)
    after = snapshot(teacher)
    assert all(torch.equal(v, after[0][k]) for k, v in before[0].items())
    assert before[1:] == after[1:]
    assert all(p.grad is None for p in teacher.parameters())


def test_it_answers_in_evaluation_mode_though_it_was_handed_over_in_train_mode():
    teacher = Odd().train()
    expected = copy.deepcopy(teacher).eval()(BATCH["x"])
    answer = as_teacher(teacher)(BATCH)["logits"]
    assert torch.equal(answer, expected)
    assert torch.equal(as_teacher(teacher)(BATCH)["logits"], answer)
    assert not answer.requires_grad


def test_switching_it_to_train_mode_in_the_middle_does_not_reach_the_answers():
    model = Odd()
    teacher = as_teacher(model)
    teacher.open(["logits"], BATCH)
    expected = teacher(BATCH)["logits"]
    model.train()
    assert torch.equal(teacher(BATCH)["logits"], expected)


def test_the_weights_are_shared_and_not_doubled():
    model = Odd()
    teacher = as_teacher(model)
    teacher.open(["logits"], BATCH)
    assert teacher._reader.model.conv.weight is model.conv.weight
    assert teacher._reader.model.bn.running_mean is not model.bn.running_mean


def test_the_fingerprint_follows_the_answers():
    model = Odd()
    first = as_teacher(model).fingerprint()
    assert as_teacher(copy.deepcopy(model)).fingerprint() == first
    with torch.no_grad():
        model.linear.bias[0] += 1e-6
    assert as_teacher(model).fingerprint() != first
    assert lb.teacher(model, classes=(0, 1)).fingerprint() != as_teacher(model).fingerprint()


def test_its_own_normalisation_replaces_the_data_s():
    ours, theirs = lb.Normalize(mean=(0.5,) * 3, std=(0.2,) * 3), lb.Normalize(mean=(0.4,) * 3, std=(0.3,) * 3)
    raw = torch.rand(8, 3, 8, 8, generator=G)
    teacher = lb.teacher(Odd().eval(), normalize=theirs)
    teacher.open(["logits"], {**BATCH, "x": ours(raw)}, applied=ours)
    expected = teacher.model.eval()(theirs(raw))
    assert torch.allclose(teacher({**BATCH, "x": ours(raw)})["logits"], expected, atol=1e-5)


def test_it_may_have_other_classes_in_another_order():
    model = Odd().eval()
    picked = lb.teacher(model, classes=(3, 1))
    assert torch.equal(picked(BATCH)["logits"], model(BATCH["x"])[:, [3, 1]])
    with pytest.raises(ModelError, match="class 9 is asked for, the teacher has 4"):
        lb.teacher(model, classes=(0, 9)).open(["logits"], BATCH)
    with pytest.raises(ModelError, match="distinct class numbers"):
        lb.teacher(model, classes=(1, 1))


def test_its_own_input_pipeline():
    model = Odd().eval()
    teacher = lb.teacher(model, inputs=lambda batch: batch["x"].flip(-1))
    assert torch.equal(teacher(BATCH)["logits"], model(X[:8].flip(-1)))


FUNCTIONS = {
    "tensor": lambda x: x.mean((2, 3)),
    "array": lambda x: x.numpy().mean((2, 3)),
    "dict of arrays": lambda x: {"logits": x.numpy().mean((2, 3)), "first": x[:, 0].numpy()},
    "tuple": lambda x: (x.mean((2, 3)), x),
}


@pytest.mark.parametrize("form", FUNCTIONS)
def test_a_function_teaches_whatever_it_returns(form):
    teacher = as_teacher(FUNCTIONS[form])
    signal = teacher.open(["logits"], BATCH)
    np.testing.assert_allclose(signal["logits"].numpy(), X[:8].mean((2, 3)).numpy(), rtol=1e-6)
    assert not any(v.requires_grad for v in signal.values())


def test_a_function_s_answers_carry_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    assert not FunctionTeacher(lambda x: x.mean((2, 3)) * weight)(BATCH)["logits"].requires_grad


def test_a_function_that_fails_or_lacks_a_layer_is_told_before_any_work():
    with pytest.raises(ModelError, match=r"the function failed on the first batch: ZeroDivisionError"):
        as_teacher(lambda _x: 1 / 0).open(["logits"], BATCH)
    with pytest.raises(ModelError, match=r"nothing called 'conv1'"):
        as_teacher(lambda x: x.mean((2, 3))).open(["conv1"], BATCH)
    with pytest.raises(ModelError, match="neither a module nor a function"):
        as_teacher("resnet56")
