"""A prepared teacher answers as the original does within the bound, or is not used; and the choice is on record."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core import chip
from limbeck.core.errors import ConfigError, ModelError
from limbeck.teachers import ModuleTeacher, weights
from limbeck.teachers.prepare import Form, Parity, forms, measure

G = torch.Generator().manual_seed(0)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def batch(samples):
    x = torch.randn(samples, 3, 16, 16, generator=G)
    return {"id": torch.arange(samples), "valid": torch.ones(samples, dtype=torch.bool), "x": x}


BATCH, SAMPLES = batch(2), batch(70)


class Net(nn.Module):
    """Two blocks with more than four million multiply-accumulates a sample, and logits that are well apart."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.conv2, self.bn2 = nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.relu = nn.ReLU(inplace=True)
        self.linear = nn.Linear(48, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Cancelling(Net):
    """Logits that are small differences of large numbers: eight bits of mantissa can't tell them."""

    def forward(self, x):
        small = super().forward(x)
        large = (small + 3e3).relu()
        return self.minus(large)

    def __init__(self):
        super().__init__()
        self.minus = nn.Linear(4, 4)
        with torch.no_grad():
            self.minus.weight.copy_(torch.eye(4))
            self.minus.bias.fill_(-3e3)


def made(kind=Net):
    torch.manual_seed(0)
    model = kind()
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(SAMPLES["x"])
        model.linear.weight *= 20
    return model


@pytest.fixture(autouse=True)
def _a_chip_with_bfloat16(monkeypatch):
    monkeypatch.setattr(chip, "multiplies_bfloat16", lambda device: True)


def opened(model, names=("logits",), **settings):
    teacher = ModuleTeacher(model, **settings)
    teacher.open(names, BATCH, samples=SAMPLES)
    return teacher


def exact(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).double().eval()(x.double())


def test_the_fastest_form_within_the_bound_is_used_and_said():
    model = made()
    teacher = opened(model)
    form = teacher.form
    assert json.loads(json.dumps(form)) == form
    assert (form["precision"], form["folded"], form["channels_last"], form["compiled"]) == ("bfloat16", 2, True, False)
    assert form["refused"] == []
    assert form["samples"] == 70
    assert form["macs"] == (3 * 48 + 48 * 48) * 9 * 256 + 48 * 4
    answer, expected = teacher(SAMPLES)["logits"], exact(model, SAMPLES["x"])
    assert answer.dtype == torch.float32
    own = ModuleTeacher(model, prepare="none")(SAMPLES)["logits"]
    assert form["agreement"] == pytest.approx(float((answer.argmax(-1) == own.argmax(-1)).double().mean()), rel=1e-3)
    worst = np.abs(answer.numpy() - own.numpy()).max() / own.numpy().std()
    assert form["difference"] == pytest.approx(worst, rel=1e-3)
    assert 0 < worst < 0.15
    assert float((answer - expected).abs().max() / expected.std()) < 0.15


def test_float32_is_folded_and_differs_by_rounding():
    model = made()
    teacher = opened(model, precision="float32")
    assert (teacher.form["precision"], teacher.form["folded"], teacher.form["refused"]) == ("float32", 2, [])
    torch.testing.assert_close(teacher(BATCH)["logits"].double(), exact(model, BATCH["x"]), rtol=1e-4, atol=1e-4)


def test_a_chip_without_bfloat16_takes_float32(monkeypatch):
    monkeypatch.setattr(chip, "multiplies_bfloat16", lambda device: False)
    teacher = opened(made())
    assert (teacher.form["precision"], teacher.form["refused"]) == ("float32", [])


def test_prepare_none_and_small_teachers_are_exactly_the_original():
    model = made()
    expected = copy.deepcopy(model).eval()(BATCH["x"])
    teacher = opened(model, prepare="none")
    assert torch.equal(teacher(BATCH)["logits"], expected)
    assert teacher.form["precision"] == "own"
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 3)).eval()
    for precision in ("auto", "float32"):
        teacher = opened(small, precision=precision)
        assert torch.equal(teacher(BATCH)["logits"], small(BATCH["x"]))
        assert teacher._reader.model[0].weight is small[0].weight
        assert (teacher.form["precision"], teacher.form["refused"]) == ("own", [])


def test_what_bfloat16_breaks_falls_back_and_says_why():
    model = made(Cancelling)
    teacher = opened(model)
    assert teacher.form["precision"] == "float32"
    (refused,) = teacher.form["refused"]
    assert refused["form"] == "bfloat16, 2 norms folded, channels-last"
    assert "on 70 samples" in refused["why"]
    assert "standard deviations" in refused["why"]
    expected = exact(model, BATCH["x"])
    assert float((teacher(BATCH)["logits"] - expected).abs().max() / expected.std()) < 0.15


def test_where_no_form_is_within_the_bound_the_original_answers():
    model = made()
    teacher = opened(model, parity=Parity(difference=0.0))
    assert teacher.form["precision"] == "own"
    assert len(teacher.form["refused"]) == 2
    assert torch.equal(teacher(BATCH)["logits"], copy.deepcopy(model).eval()(BATCH["x"]))


def test_a_form_that_was_asked_for_and_fails_is_an_error_with_the_figures():
    with pytest.raises(ModelError, match=r"bfloat16, 2 norms folded(.|\n)*on 70 samples(.|\n)*asked: agreement 0.98"):
        opened(made(Cancelling), precision="bfloat16")
    opened(made(Cancelling), precision="bfloat16", parity=Parity(agreement=0, difference=1e9))


def test_a_small_teacher_is_prepared_where_that_is_asked_for():
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 3)).eval()
    assert opened(small, precision="bfloat16").form["precision"] == "bfloat16"


def test_a_compiler_that_fails_is_refused_by_name(monkeypatch):
    def fails(self, *args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(nn.Module, "compile", fails)
    with pytest.raises(ModelError, match=r"compiled(.|\n)*no compiler"):
        opened(made(), compile="default")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_teacher_answers_the_same_taps_included():
    model = made()
    teacher = opened(model, ("logits", "conv2", "relu"), compile="default")
    assert teacher.form["compiled"]
    plain = opened(model, ("logits", "conv2", "relu"))
    for size in (2, 5, 70):
        part = {k: v[:size] for k, v in SAMPLES.items()}
        ours, theirs = teacher(part), plain(part)
        for name in ("logits", "conv2", "relu"):
            assert float((ours[name] - theirs[name]).abs().max() / theirs[name].std()) < 0.1


@pytest.mark.parametrize("names", [("logits", "conv1"), ("bn1",), ("conv2@weight",), ("linear@in", "bn2@in")])
def test_what_is_read_is_compared_and_is_the_layer_s_own(names):
    model = made()
    teacher = opened(model, names)
    assert teacher.form["precision"] == "bfloat16"
    original = ModuleTeacher(model, prepare="none")
    original.open(names, BATCH)
    ours, theirs = teacher(SAMPLES), original(SAMPLES)
    for name in names:
        assert ours[name].shape == theirs[name].shape
        assert ours[name].dtype == torch.float32
        assert not ours[name].requires_grad
        assert float((ours[name] - theirs[name]).square().mean().sqrt() / theirs[name].std()) < 0.02
    if "conv2@weight" in names:
        assert torch.equal(ours["conv2@weight"], model.conv2.weight)
    elif names != ("linear@in", "bn2@in"):
        assert teacher.form["folded"] == 1
        assert 0 < teacher.form["layers"] < 0.1


def test_a_layer_that_is_far_off_refuses_the_form_though_the_logits_are_right():
    teacher = opened(made(), ("logits", "bn2"), parity=Parity(layers=1e-9))
    assert teacher.form["precision"] == "own"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_model_is_bit_identical_and_several_teachers_of_it_agree(mode):
    model = made().train(mode == "train")
    before = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    first, second = opened(model), opened(model)
    first.open(("logits", "conv1"), BATCH, samples=SAMPLES)
    first.open(("logits",), BATCH, samples=SAMPLES)
    assert torch.equal(first(SAMPLES)["logits"], second(SAMPLES)["logits"])
    assert torch.equal(first(SAMPLES)["logits"], first(SAMPLES)["logits"])
    assert first.form == second.form
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]
    assert model.training == (mode == "train")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_answers_do_not_depend_on_the_batch_they_come_in():
    teacher = opened(made())
    whole = teacher(SAMPLES)["logits"]
    for size in (1, 7, 32):
        parts = [{k: v[i : i + size] for k, v in SAMPLES.items()} for i in range(0, 70, size)]
        apart = torch.cat([teacher(part)["logits"] for part in parts])
        assert float((apart - whole).abs().max() / whole.std()) < 0.02


def test_answers_do_not_depend_on_the_caller_s_autocast_and_may_stand_in_a_loss():
    model = made()
    for settings in ({}, {"prepare": "none"}):
        teacher = opened(model, **settings)
        plain = teacher(BATCH)["logits"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(teacher(BATCH)["logits"], plain)
        student = torch.ones(2, 4, requires_grad=True)
        (student * plain).sum().backward()
        assert torch.equal(student.grad, plain)


def test_preparing_draws_no_random_numbers():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) + 1e-4 * torch.rand(1)

    model = made(Noisy)
    before = torch.get_rng_state()
    teacher = ModuleTeacher(model)
    teacher._reader = None
    with torch.random.fork_rng(devices=[]):
        ModuleTeacher(model, prepare="none").open(("logits",), BATCH)
        after = torch.get_rng_state()
    teacher.open(("logits",), BATCH, samples=SAMPLES)
    assert teacher.form["precision"] == "bfloat16"
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(after, before)


def test_a_model_in_half_precision_answers_floats_as_it_is():
    model = nn.Linear(4, 3).bfloat16()
    data = {"valid": torch.ones(5, dtype=torch.bool), "x": torch.randn(5, 4)}
    teacher = lb.teacher(model)
    answer = teacher.open(("logits",), data)["logits"]
    assert answer.dtype == torch.float32
    assert torch.equal(answer, model(data["x"].bfloat16()).float())
    with pytest.raises(ModelError, match=r"torch.bfloat16 as handed over"):
        ModuleTeacher(model, compile="default").open(("logits",), data)


def test_a_model_that_cannot_be_watched_works_as_it_is(monkeypatch):
    def blind(*args, **kwargs):
        raise RuntimeError("no watching")

    monkeypatch.setattr("limbeck.teachers.module.survey", blind)
    teacher = opened(made())
    assert teacher.form["precision"] == "own"
    assert "no watching" in teacher.form["refused"][0]["why"]
    with pytest.raises(ModelError, match="no watching"):
        opened(made(), precision="bfloat16")


def test_weights_that_are_not_there_yet_and_settings_that_contradict_are_refused():
    with pytest.raises(ModelError, match="no weights yet"):
        ModuleTeacher(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())).open(("logits",), BATCH)
    for wrong in ({"precision": "float16"}, {"prepare": "all"}, {"compile": "max"}):
        with pytest.raises(ConfigError, match="there is no"):
            ModuleTeacher(nn.Linear(2, 2), **wrong)
    for both in ({"precision": "bfloat16"}, {"compile": "default"}):
        with pytest.raises(ConfigError, match="are preparations"):
            ModuleTeacher(nn.Linear(2, 2), prepare="none", **both)
    for bound in ({"agreement": 1.1}, {"difference": -1.0}, {"layers": float("nan")}):
        with pytest.raises(ConfigError, match="no bounds"):
            Parity(**bound)


def ladder(*args, images=True, folded=1, device=CPU):
    return [str(form) for form in forms(*args, folded=folded, images=images, device=device)]


def test_the_ladder_is_a_rule(monkeypatch):
    half, single = "bfloat16, 1 norms folded, channels-last", "float32, 1 norms folded, channels-last"
    assert ladder("auto", "none") == [half, single]
    assert ladder("float32", "none") == [single]
    assert ladder("bfloat16", "none") == [half]
    assert ladder("auto", "default") == [f"{half}, compiled", f"{single}, compiled"]
    assert ladder("auto", "none", device=CUDA) == [half, "float32, 1 norms folded"]
    assert ladder("auto", "none", images=False, folded=0) == ["bfloat16"]
    assert ladder("float32", "none", images=False, folded=0) == []
    monkeypatch.setattr(chip, "multiplies_bfloat16", lambda device: False)
    assert ladder("auto", "none") == [single]
    assert ladder("bfloat16", "none") == [half]
    assert str(Form()) == "as handed over"


def measured(theirs, ours, layer=False, size=None):
    name = "layer" if layer else "logits"
    rows = torch.arange(len(theirs))
    told = measure(
        lambda b: {name: theirs[b["row"]], "more": theirs[b["row"]]}, lambda b: {name: ours[b["row"]]}, {"row": rows},
        outputs=() if layer else (name,), layers=(name,) if layer else (),
    )  # fmt: skip
    assert told.samples == len(theirs)
    return told


def test_the_figures_are_those_of_numpy_however_many_parts_the_samples_come_in():
    theirs = torch.randn(150, 5, generator=G) * 3 + 1e3
    ours = theirs + torch.randn(150, 5, generator=G)
    a, b = theirs.numpy().astype(np.float64), ours.numpy().astype(np.float64)
    told = measured(theirs, ours)
    assert told.agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    assert told.difference == pytest.approx(np.abs(a - b).max() / a.std())
    assert told.layers == 0
    assert told.within(Parity(agreement=told.agreement, difference=told.difference))
    assert not told.within(Parity(agreement=told.agreement + 1e-6, difference=1e9))
    told = measured(theirs, ours, layer=True)
    assert told.layers == pytest.approx(np.sqrt(((a - b) ** 2).mean(1)).max() / a.std())
    assert (told.agreement, told.difference) == (1.0, 0.0)


def test_masks_constants_and_what_is_not_finite():
    masked = torch.tensor([[1.0, -torch.inf], [2.0, -torch.inf]])
    assert measured(masked, masked.clone()).difference == 0
    assert not measured(masked, torch.tensor([[1.0, -5.0], [2.0, -torch.inf]])).within(Parity(difference=1e9))
    assert not measured(masked, masked.nan_to_num(neginf=torch.nan)).within(Parity(agreement=0, difference=1e9))
    constant = torch.full((3, 2), 4.0)
    assert measured(constant, constant + 0.4).difference == pytest.approx(0.1)
    assert measured(torch.zeros(3, 2), torch.ones(3, 2)).difference == float("inf")
    assert not measured(constant, torch.zeros(3, 3)).within(Parity(difference=1e9, agreement=0))
    one = measured(torch.randn(4, 1), torch.randn(4, 1))
    assert one.agreement == 1  # a single value has no top class
    assert measured(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])).agreement == 0.75


def test_identity_is_plain_and_each_field_follows_its_cause():
    model = made()
    base = ModuleTeacher(model).identity()
    assert json.loads(json.dumps(base)) == base
    other = copy.deepcopy(model)
    other.linear.bias.data[0] += 1
    changes = {
        "weights": ModuleTeacher(other),
        "normalize": ModuleTeacher(model, normalize=lb.Normalize(mean=(0.5,), std=(0.5,))),
        "classes": ModuleTeacher(model, classes=(1, 0)),
        "inputs": ModuleTeacher(model, inputs=("x",)),
        "outputs": ModuleTeacher(model, outputs=lambda y: {"logits": y}),
        "precision": ModuleTeacher(model, precision="float32"),
    }
    for field, teacher in changes.items():
        identity = teacher.identity()
        assert [name for name in base if identity[name] != base[name]] == [field]
        assert teacher.fingerprint() != ModuleTeacher(model).fingerprint()
    assert ModuleTeacher(model, prepare="none").fingerprint() == changes["precision"].fingerprint()
    assert ModuleTeacher(copy.deepcopy(model)).fingerprint() == ModuleTeacher(model).fingerprint()


def test_weights_are_hashed_once_and_again_when_they_change(monkeypatch):
    model = made()
    model.register_buffer("table", torch.arange(4.0), persistent=False)
    calls, real = [], weights._digest
    monkeypatch.setattr(weights, "_digest", lambda m: calls.append(1) or real(m))
    teacher = ModuleTeacher(model)
    seen = [teacher.fingerprint(), teacher.fingerprint()]
    assert len(calls) == 1
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 1] += 1  # none of the 64 values that are looked at
    seen.append(teacher.fingerprint())
    model.linear.weight.data *= 2
    seen.append(teacher.fingerprint())
    model.conv1.weight.detach().numpy()[...] += 1
    seen.append(teacher.fingerprint())
    model.table += 1
    seen.append(teacher.fingerprint())
    assert len(set(seen)) == len(seen) - 1
    assert len(calls) == 5


def test_the_digest_does_not_depend_on_the_layout_and_is_cut_in_parts(monkeypatch):
    model = made()
    one = weights.WeightsDigest(model)()
    assert weights.WeightsDigest(copy.deepcopy(model).to(memory_format=torch.channels_last))() == one
    monkeypatch.setattr(weights, "_CHUNK", 7)
    assert weights.WeightsDigest(model)() == one
    odd = nn.Module()
    odd.register_buffer("flag", torch.tensor(True))
    odd.register_buffer("none", torch.empty(0))
    odd.register_buffer("short", torch.ones(3, dtype=torch.bfloat16))
    assert len(weights.WeightsDigest(odd)()) == 64
