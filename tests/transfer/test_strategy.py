"""The teacher's training, scaled for its student."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import limbeck as lb
from limbeck.core.errors import CheckpointError, ConfigError, DataError
from limbeck.core.records import as_yaml
from limbeck.transfer import curriculum, sample_losses, shrink, strategy


def mlp(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


def data(samples=120):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 8, generator=generator)
    return x, (x.sum(1) > 4).long()


def test_at_the_same_batch_and_width_it_is_the_teachers():
    for optimizer in (lb.Optimizer(rate=0.3), lb.Optimizer(name="AdamW", rate=1e-3)):
        training = lb.Training(epochs=7, batch_size=64, optimizer=optimizer, clip=2.0, schedule=lb.schedules.Cosine())
        assert strategy(training, mlp(16), mlp(16)).training == training


def test_sgd_follows_the_batch_in_line_and_does_not_ask_for_width():
    training = lb.Training(batch_size=128, optimizer=lb.Optimizer(rate=0.2))
    found = strategy(training, mlp(4), mlp(16), batch_size=32)
    assert found.training.optimizer.rate == pytest.approx(0.05)
    assert found.training.batch_size == 32
    assert any("Goyal" in line for line in found.told)
    assert any("no rule for width" in line for line in found.told)


def test_adam_follows_the_root_of_the_batch_and_one_by_width():
    training = lb.Training(batch_size=64, optimizer=lb.Optimizer(name="Adam", rate=1e-3))
    found = strategy(training, mlp(16), mlp(16), batch_size=256).training.optimizer
    assert found.rate == pytest.approx(2e-3)
    assert found.options["betas"] == pytest.approx((0.6, 0.996))
    assert found.options["eps"] == pytest.approx(5e-9)
    narrow = strategy(training, mlp(4), mlp(16))
    assert narrow.training.optimizer.rate == pytest.approx(4e-3)
    assert narrow.training.optimizer.options is None
    assert any("Yang" in line for line in narrow.told)
    assert strategy(training, mlp(4), mlp(16), width="none").training.optimizer.rate == pytest.approx(1e-3)
    huge = strategy(training, mlp(16), mlp(16), batch_size=1024)
    assert huge.training.optimizer.options is None
    assert any("betas stay" in line for line in huge.told)


def test_an_optimizer_without_a_rule_says_so():
    training = lb.Training(batch_size=64, optimizer=lb.Optimizer(name="Adagrad", rate=0.01))
    found = strategy(training, mlp(4), mlp(16), batch_size=16)
    assert found.training.optimizer.rate == 0.01
    assert any("no rule is known for Adagrad" in line for line in found.told)


def test_the_record_of_a_run_is_taken_over_and_trains_a_student(tmp_path):
    torch.manual_seed(0)
    teacher = mlp(16)
    optimizer = lb.Optimizer(name="AdamW", rate=5e-3, weight_decay=0.01)
    lb.distill(teacher, None, train=data(), epochs=3, batch_size=30, optimizer=optimizer, clip=None, out=tmp_path / "t")
    student = shrink(teacher, width=0.5)
    found = strategy(tmp_path / "t", student, teacher, epochs=2)
    assert found.augment is None
    assert found.training.optimizer.weight_decay == 0.01
    assert found.training.clip is None
    assert (found.training.epochs, found.training.batch_size) == (2, 30)
    assert found.training.optimizer.rate == pytest.approx(1e-2)
    assert "AdamW, rate 0.01, batches of 30, 2 epochs" in str(found)
    run = lb.distill(student, teacher, train=data(), **found.settings)
    assert run.state.epoch == 2


def test_augmentation_and_a_recipes_teacher_are_read(tmp_path):
    training = {"epochs": 4, "batch_size": 50}
    recipe = {
        "training": {"epochs": 9},
        "augment": None,
        "teacher": {"training": training, "augment": {"crop": 4, "flip": True}, "weights": None},
    }
    (tmp_path / "recipe.yaml").write_text(as_yaml(recipe))
    found = strategy(tmp_path, mlp(4), mlp(16))
    assert (found.training.epochs, found.training.batch_size) == (4, 50)
    assert found.augment == lb.Augment(crop=4, flip=True)
    recipe["teacher"]["weights"] = "teacher.safetensors"
    (tmp_path / "recipe.yaml").write_text(as_yaml(recipe))
    assert strategy(tmp_path, mlp(4), mlp(16)).training.epochs == 9


def test_images_keep_their_augmentation_through_a_run(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(40, 3, 8, 8)
    labels = torch.arange(40) % 2
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    how = lb.Augment(crop=1, flip=True)
    lb.distill(teacher, None, train=(images, labels), epochs=1, batch_size=20, augment=how, out=tmp_path / "t")
    assert strategy(tmp_path / "t", teacher, teacher).augment == how


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no recipe\.yaml"):
        strategy(tmp_path, mlp(4), mlp(4))
    (tmp_path / "recipe.yaml").write_text("targets: 3")
    with pytest.raises(CheckpointError, match="says nothing of a training"):
        strategy(tmp_path, mlp(4), mlp(4))
    (tmp_path / "recipe.yaml").write_text("training: {epoch: 3}")
    with pytest.raises(ConfigError, match=r"training|epoch"):
        strategy(tmp_path, mlp(4), mlp(4))
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(CheckpointError, match="cannot be read"):
        strategy(tmp_path, mlp(4), mlp(4))
    with pytest.raises(ConfigError, match="whole number"):
        strategy(lb.Training(), mlp(4), mlp(4), batch_size=0)


def test_losses_are_those_of_each_sample():
    torch.manual_seed(0)
    teacher, (x, y) = mlp(16), data(50)
    wanted = F.cross_entropy(teacher(x), y, reduction="none").detach()
    assert torch.allclose(sample_losses(teacher, (x, y), batch_size=16), wanted, atol=1e-6)
    line = nn.Linear(8, 1)
    numbers = x.sum(1)
    assert torch.allclose(sample_losses(line, (x, numbers)), (line(x)[:, 0] - numbers).square().detach(), atol=1e-6)
    with pytest.raises(DataError, match="no labels"):
        sample_losses(teacher, x)


def test_a_curriculum_begins_with_the_easiest_and_ends_with_all():
    losses = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.3, 2.0])
    first, second, last = curriculum(losses)
    assert first.tolist() == [1, 3]
    assert second.tolist() == [0, 1, 3, 4]
    assert last.tolist() == [0, 1, 2, 3, 4, 5]
    assert [part.tolist() for part in curriculum(losses, (0.01,))] == [[1]]
    for shares in ((0.5, 0.5), (0.0, 1.0), (0.5, 1.2), ()):
        with pytest.raises(ConfigError, match="do not rise"):
            curriculum(losses, shares)
    with pytest.raises(ConfigError, match="not all finite"):
        curriculum(torch.tensor([1.0, math.nan]))
