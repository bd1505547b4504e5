"""`lb.study` takes a recipe, its name, or a function that trains."""

from __future__ import annotations

import pytest
import torch

import limbeck as lb
from limbeck.core.errors import ConfigError


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 5, generator=generator)
    return x, (x[:, 0] > 0).long()


def trained(seed):
    torch.manual_seed(seed)
    teacher = torch.nn.Linear(5, 2)
    runs = {}
    for name, master in (("plain", None), ("distilled", teacher)):
        torch.manual_seed(seed)
        runs[name] = lb.distill(
            torch.nn.Linear(5, 2), master, train=data(), val=data(1), epochs=2, batch_size=50, seed=seed, log_steps=1,
            progress=False, evidence=lb.Evidence(measures=("sensitivity",)),
        )  # fmt: skip
    return runs


def test_a_function_that_trains_is_repeated(tmp_path):
    found = lb.study(trained, seeds=3, out=tmp_path / "out")
    assert set(found.document["arms"]) == {"teacher", "plain", "distilled"}
    assert [run["seed"] for run in found.document["arms"]["distilled"]["runs"]] == [0, 1, 2]
    assert found.summary["plain"]["accuracy"]["n"] == 3
    assert {row["measure"] for row in found.evidence["comparisons"]} >= {"churn", "jitter_loss", "weight_noise"}
    assert (tmp_path / "out" / "evidence.json").exists()
    assert found.report().name == "report.html"


def test_without_a_folder_the_page_can_be_written_later(tmp_path):
    found = lb.study(trained, seeds=2)
    with pytest.raises(ConfigError, match="no folder"):
        found.report()
    assert "Churn" in found.report(tmp_path / "page").read_text()


def test_what_cannot_be_repeated_is_refused():
    for given, said in ((3, "nothing to repeat"), (lambda: 3, "takes no seed"), (lambda seed: {}, "seed 0")):
        with pytest.raises(ConfigError, match=said):
            lb.study(given, seeds=2)
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        lb.study("digit")


def test_the_gap_is_what_is_lost_on_new_samples():
    runs = trained(0)
    for run in runs.values():
        entry = run.examined["student"]
        gap = entry["train"]["accuracy"] - run.scores["student"]["accuracy"]
        assert entry["overfitting"]["gap"] == pytest.approx(gap)
    # Random labels are learned by heart, and a gap that is the wrong way round would be negative.
    x, _ = data()
    y = torch.randint(0, 2, (200,), generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(5, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2))
    run = lb.distill(student, None, train=(x, y), val=data(1), epochs=40, batch_size=50, progress=False)
    assert run.examined["student"]["overfitting"]["gap"] > 0.1
