"""Agreement of attributions separates: the teacher from a student, a student from chance; and nothing is changed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from limbeck.core.errors import ConfigError, DataError, ModelError, ShapeError
from limbeck.evaluation.attribution import attribution_agreement, gallery, randomised
from limbeck.evaluation.explain import METHODS, attributions

METHOD = pytest.mark.parametrize("method", METHODS)


def cnn(channels, seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * channels, 10),
    )  # fmt: skip


def fit(model, x, loss):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(250):
        index = torch.randperm(len(x), generator=torch.Generator().manual_seed(step))[:128]
        optimizer.zero_grad()
        loss(model(x[index]), index).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    """A teacher of all labels, a student that matches its answers, one of 60 labels alone, and test samples."""
    held = load_digits()
    x, y = torch.tensor(held.images, dtype=torch.float32)[:, None] / 16, torch.tensor(held.target)
    train, few, test = x[:1200], torch.arange(60), x[1300:1400]
    teacher = fit(cnn(12, 0), train, lambda told, i: nn.functional.cross_entropy(told, y[i]))
    with torch.no_grad():
        answers = teacher(train)
    apart = nn.KLDivLoss(reduction="batchmean", log_target=True)
    distilled = fit(cnn(4, 1), train, lambda told, i: apart(told.log_softmax(1), answers[i].log_softmax(1)))
    plain = fit(cnn(4, 1), train[few], lambda told, i: nn.functional.cross_entropy(told, y[few][i]))
    return teacher, distilled, plain, [{"x": test[:60], "y": y[1300:1360]}, {"x": test[60:], "y": y[1360:1400]}]


def test_a_teacher_agrees_with_itself_entirely(digits):
    teacher, *_, batches = digits
    found = attribution_agreement(teacher, copy.deepcopy(teacher), batches)
    assert set(found) == set(METHODS)
    for row in found.values():
        assert row["rank"] == pytest.approx(1)
        assert row["cosine"] == pytest.approx(1)
        assert row["overlap"] == 1
        assert row["samples"] + row["left_out"] == 100


def test_random_networks_agree_by_chance_alone(digits):
    teacher, distilled, _, batches = digits
    found = [attribution_agreement(randomised(distilled, seed), teacher, batches) for seed in range(8)]
    for method in ("gradient_input", "integrated_gradients"):
        assert abs(np.mean([each[method]["rank"] for each in found])) < 0.1
        assert abs(np.mean([each[method]["cosine"] for each in found])) < 0.1


def test_a_distilled_student_is_above_a_plain_one_and_that_above_chance(digits):
    teacher, distilled, plain, batches = digits
    rank = {}
    for name, model in (("distilled", distilled), ("plain", plain), ("random", randomised(plain, 0))):
        rank[name] = attribution_agreement(model, teacher, batches)["gradient_input"]["rank"]
    assert rank["distilled"] > rank["plain"]
    assert rank["plain"] > rank["random"] + 0.1


def test_batches_do_not_matter_and_samples_are_counted(digits):
    teacher, distilled, _, batches = digits
    whole = [{name: torch.cat([batch[name] for batch in batches]) for name in ("x", "y")}]
    for found, other in zip(
        attribution_agreement(distilled, teacher, batches).values(),
        attribution_agreement(distilled, teacher, whole).values(), strict=True,
    ):  # fmt: skip
        assert found == pytest.approx(other, abs=1e-5)
    valid = torch.arange(60) % 2 == 0
    half = attribution_agreement(distilled, teacher, [{**batches[0], "valid": valid}], methods=("gradient_input",))
    alone = attribution_agreement(distilled, teacher, [{"x": batches[0]["x"][valid]}], methods=("gradient_input",))
    assert half["gradient_input"] == pytest.approx(alone["gradient_input"], abs=1e-5)
    few = attribution_agreement(distilled, teacher, batches, samples=70, methods=("gradient_input",))
    assert few["gradient_input"]["samples"] == 70


@METHOD
def test_a_gallery_is_the_scaled_map_of_the_first_models_answer(digits, method):
    teacher, distilled, _, batches = digits
    batch = {"x": batches[0]["x"][:5]}
    found = gallery({"teacher": teacher, "student": distilled}, batch, method=method, steps=16)
    target = teacher(batch["x"]).argmax(1)
    for name, model in (("teacher", teacher), ("student", distilled)):
        map_BHW = attributions(model, batch, method=method, target=target, steps=16).abs().numpy()
        assert found[name].shape == (5, 8, 8)
        assert found[name] == pytest.approx(map_BHW / map_BHW.max((1, 2), keepdims=True), abs=1e-5)


def test_a_randomised_network_is_another_one_and_the_first_is_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model(torch.randn(16, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    one, same, other = randomised(model, 1), randomised(model, 1), randomised(model, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one[0].weight, model[0].weight)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert torch.equal(one[1].running_mean, torch.zeros(8))


def test_parameters_without_a_way_to_draw_them_are_drawn_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(5 + torch.randn(2000, generator=torch.Generator().manual_seed(0)))

    model = Own()
    drawn = randomised(model, 0)
    assert not torch.equal(drawn.weight, model.weight)
    assert drawn.weight.mean().item() == pytest.approx(5, abs=0.15)
    assert drawn.weight.std().item() == pytest.approx(1, abs=0.1)


def test_what_cannot_be_compared_is_refused(digits):
    teacher, distilled, _, batches = digits
    with pytest.raises(ShapeError, match="the same samples and classes"):
        attribution_agreement(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), teacher, batches)
    with pytest.raises(DataError, match="no valid sample"):
        attribution_agreement(distilled, teacher, [{**batches[0], "valid": torch.zeros(60, dtype=torch.bool)}])
    with pytest.raises(ConfigError, match="samples"):
        attribution_agreement(distilled, teacher, batches, samples=0)
    with pytest.raises(ConfigError, match="methods"):
        attribution_agreement(distilled, teacher, batches, methods=("lime",))
    with pytest.raises(DataError, match="no images"):
        gallery({"one": nn.Linear(4, 2)}, {"x": torch.randn(3, 4)})
    with pytest.raises(ModelError, match="no size yet"):
        randomised(nn.LazyLinear(3), 0)


def test_a_method_that_a_model_has_no_layer_for_is_left_out():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)]
    found = attribution_agreement(*models, [{"x": torch.rand(4, 1, 8, 8)}])
    assert set(found) == {"gradient_input", "integrated_gradients"}


def test_maps_that_are_the_same_everywhere_are_left_out_and_counted():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)]
    x = torch.rand(4, 1, 8, 8)
    x[0] = 0  # gradient times zero
    found = attribution_agreement(*models, [{"x": x}], methods=("gradient_input",))["gradient_input"]
    assert (found["samples"], found["left_out"]) == (3, 1)
    none = attribution_agreement(*models, [{"x": 0 * x}], methods=("gradient_input",))["gradient_input"]
    assert none["rank"] is None


def test_the_class_that_is_explained_is_the_teachers(digits):
    teacher, _, plain, batches = digits
    x = batches[0]["x"]
    apart = teacher(x).argmax(1) != plain(x).argmax(1)
    assert bool(apart.any())
    batch = {"x": x[apart]}
    target = teacher(batch["x"]).argmax(1)
    ours, theirs = (attributions(each, batch, method="gradient_input", target=target) for each in (plain, teacher))
    cosine = nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1)).mean().item()
    found = attribution_agreement(plain, teacher, [batch], methods=("gradient_input",))["gradient_input"]
    assert found["cosine"] == pytest.approx(cosine, abs=1e-5)
