"""A student with its teacher's classifier: what is trained, what stays, and what is refused."""

import copy
import pickle

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.models import Conv, reuse_head
from limbeck.objectives import Hint

X = torch.randn(8, 3, 12, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Maps, their mean, and a classifier that knows dropout and running statistics."""

    def __init__(self, width, stride=2):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.neck = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.linear = nn.Linear(width, 5)

    def forward(self, x):
        return self.linear(self.neck(self.act(self.norm(self.conv(x))).mean((2, 3))))


class Plain(Net):
    """The same without the neck."""

    def forward(self, x):
        return self.linear(self.act(self.norm(self.conv(x))).mean((2, 3)))


def made(kind="maps", seed=0, stride=2, width=4):
    torch.manual_seed(seed)
    student, teacher = Net(width, stride), (Plain if kind == "maps" else Net)(6)
    with torch.no_grad():
        teacher(X)  # statistics that are not the first ones
    teacher.eval()
    layer, classifier = ("act", "linear") if kind == "maps" else ("neck@in", ["neck", "linear"])
    reused = reuse_head(student, teacher, student_layer=layer, teacher_layer=layer, classifier=classifier, example=X)
    return student, teacher, reused


def own_way(teacher, features):
    """The teacher's answer from its features on, written out."""
    with torch.no_grad():
        if features.dim() == 4:
            return features.mean((2, 3)) @ teacher.linear.weight.T + teacher.linear.bias
        norm = teacher.neck[0]
        features = (features - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        return features.relu() @ teacher.linear.weight.T + teacher.linear.bias


every_kind = pytest.mark.parametrize("kind", ["maps", "vectors"])


@every_kind
@pytest.mark.parametrize("stride", [1, 2, 3], ids=["larger maps", "equal maps", "smaller maps"])
def test_features_have_the_teacher_s_shape_and_its_classifier_answers(kind, stride):
    _, teacher, reused = made(kind, stride=stride)
    for mode in (True, False):
        out = reused.train(mode)(X)
        assert out["features"].shape == ((8, 6, 6, 4) if kind == "maps" else (8, 6))
        assert (out["features"] >= 0).all(), "as the teacher's layer, which follows a ReLU"
        assert torch.allclose(out["logits"], own_way(teacher, out["features"]), atol=1e-5)


@every_kind
def test_the_classifier_is_a_frozen_copy_that_never_trains(kind):
    _, teacher, reused = made(kind)
    before = copy.deepcopy(reused.classifier.state_dict()), copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD([p for p in reused.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        reused.train()
        out = reused(X)
        (out["features"].square().mean() + out["logits"].square().mean()).backward()
        optimizer.step()
    assert reused.training
    assert reused.projector.training
    assert not any(m.training for m in reused.classifier.modules())
    assert not any(p.requires_grad or p.grad is not None for p in reused.classifier.parameters())
    assert all(torch.equal(v, before[0][k]) for k, v in reused.classifier.state_dict().items())
    assert all(torch.equal(v, before[1][k]) for k, v in teacher.state_dict().items())
    own = {p.data_ptr() for p in teacher.parameters()}
    assert not own & {p.data_ptr() for p in reused.parameters()}
    assert not teacher.act._forward_hooks
    assert not teacher.neck._forward_pre_hooks


@every_kind
def test_gradients_reach_the_student_through_features_and_through_the_frozen_classifier(kind):
    student, _, reused = made(kind)
    for name in ("features", "logits"):
        reused.zero_grad()
        reused(X)[name].square().sum().backward()
        assert student.conv.weight.grad.abs().max() > 0
        assert student.linear.weight.grad is None


def test_distilled_by_its_features_it_gives_the_teacher_s_answers():
    _, teacher, reused = made(width=16)
    data = torch.randn(400, 3, 12, 8, generator=torch.Generator().manual_seed(1))
    hint = Hint(student="features", teacher="act", head="none")
    with torch.no_grad():
        before = (reused.eval()(data)["logits"] - teacher(data)).square().mean()
    lb.distill(reused, teacher, train=data, objective=hint, epochs=10, batch_size=16, progress=False)
    with torch.no_grad():
        after = (reused.eval()(data)["logits"] - teacher(data)).square().mean()
    assert after < 0.5 * before


@every_kind
def test_state_copies_and_pickles_are_whole_and_apart(kind):
    student, _, reused = made(kind)
    reused.eval()
    wanted = reused(X)
    _, _, other = made(kind, seed=1)
    assert not torch.equal(other.eval()(X)["logits"], wanted["logits"])
    other.load_state_dict(reused.state_dict())
    twin, stored = copy.deepcopy(reused), pickle.loads(pickle.dumps(reused))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    for same in (other, twin, stored):
        for name, value in same(X).items():
            assert torch.equal(value, wanted[name])
        assert not torch.equal(reused(X)["logits"], wanted["logits"])


def test_it_takes_what_its_student_takes():
    class Two(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.body, self.top = nn.Linear(6, width), nn.Linear(width, 2)

        def forward(self, left, right):
            return self.top(self.body(torch.cat([left, right], 1)))

    left, right = torch.randn(4, 3), torch.randn(4, 3)
    for batch, given in [
        ({"left": left, "right": right, "y": torch.zeros(4)}, None),
        ({"x0": left, "x1": right}, None),
        ({"a": left, "b": right}, ["a", "b"]),
    ]:
        layers = {"student_layer": "body", "teacher_layer": "body", "classifier": "top"}
        reused = reuse_head(Two(3), Two(5), **layers, example=batch, inputs=given).eval()
        assert isinstance(reused.projector[-1], nn.BatchNorm1d), "this teacher's layer is negative in places"
        whole = reused(batch)["logits"]
        assert torch.equal(lb.core.taps.Reader(reused)(batch)["logits"], whole)
        if given is None and "x0" in batch:
            assert torch.equal(reused(left, right)["logits"], whole)


def test_a_linear_layer_that_takes_all_numbers_of_a_map_gets_them():
    teacher, student = Conv(channels=(4, 6)).build((3, 12, 8), 5), Conv(channels=(2, 3)).build((3, 12, 8), 5)
    layers = {"student_layer": "pool2", "teacher_layer": "pool2", "classifier": "linear"}
    reused = reuse_head(student, teacher, **layers, example=X).eval()
    out = reused(X)
    assert torch.allclose(out["logits"], teacher.linear(out["features"].flatten(1)))


def test_a_classifier_that_works_in_place_leaves_the_features_alone():
    _, teacher, _ = made("vectors")
    teacher.neck = nn.Sequential(nn.ReLU6(inplace=True), nn.Hardtanh(0, 0.01, inplace=True))
    layers = {"student_layer": "neck@in", "teacher_layer": "neck@in", "classifier": ["neck", "linear"]}
    out = reuse_head(Net(4), teacher, **layers, example=X).eval()(X)
    assert out["features"].max() > 0.01


@every_kind
def test_it_compiles_whole(kind):
    _, _, reused = made(kind)
    reused.eval()
    with torch.no_grad():
        out = torch.compile(reused, fullgraph=True, backend="aot_eager")(X)
        for name, value in reused(X).items():
            assert torch.allclose(out[name], value, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classifier": "linera"}, "did you mean 'linear'"),
        ({"classifier": ["linear", "norm"]}, "cannot be run"),
        ({"teacher_layer": "norm"}, "is not the teacher's answer"),
        ({"teacher_layer": "conv", "classifier": "act"}, "is not the teacher's answer"),
        ({"teacher_layer": "head"}, "no layer called 'head'"),
        ({"student_layer": "head"}, "no layer called 'head'"),
        ({"student_layer": "linear"}, "tap maps"),
        ({"example": {"x": X[:, :1]}}, "cannot be called"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_mend(change, said):
    given = {"student_layer": "act", "teacher_layer": "act", "classifier": "linear", "example": X} | change
    with pytest.raises(ValueError, match="To mend") as refused:
        reuse_head(Net(4), Plain(6), **given)
    assert said in str(refused.value)
