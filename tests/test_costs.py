"""Costs of several models: sizes by hand, all arms timed together, kept, and what cannot be timed is told."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import limbeck as lb
from limbeck.core.errors import ConfigError
from limbeck.costs import disk, measure_costs
from limbeck.data import as_source
from limbeck.evaluation import Timing
from limbeck.evaluation.latency import cores
from limbeck.examining import Evidence, Subject, examine

QUICK = Timing(batches=(1, 7), threads=(1, 2), seconds=0.2)
SOURCE = as_source((torch.randn(20, 6), torch.randint(0, 3, (20,))), where="test")


def net(width):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def test_what_each_arm_costs_by_hand():
    found = measure_costs({"teacher": Subject(net(50)), "small": Subject(net(5))}, QUICK, SOURCE)
    assert found.notes == ()
    for name, width in (("teacher", 50), ("small", 5)):
        told = found.arms[name]
        parameters = 6 * width + width + 3 * width + 3
        assert set(told) == {"parameters", "disk", "macs", "peak_memory", "latency"}
        assert (told["parameters"], told["macs"]) == (parameters, 9 * width)
        assert told["peak_memory"] == 4 * (parameters + 2 * width)  # before and after the ReLU
        assert [(row["batch"], row["threads"]) for row in told["latency"]] == [(1, 1), (1, 2), (7, 1), (7, 2)]
        for row in told["latency"]:
            assert set(row) == {"batch", "threads", "p10", "p50", "p90", "low", "high", "seconds"}
            assert 0 < row["p10"] <= row["p50"] <= row["p90"]
            assert row["low"] <= row["p50"] <= row["high"]
            assert 3 <= len(row["seconds"]) <= 200
    json.dumps(found.arms)


def test_bytes_on_disk_are_those_of_the_file(tmp_path):
    model = nn.Linear(3, 2)
    size = disk(model)
    # Eight bytes that say how long the header is, a header in JSON padded to eight, and 8 numbers of 4 bytes.
    header = {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
              "bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}  # fmt: skip
    least = len(json.dumps(header, separators=(",", ":")))
    assert 8 + least + 32 <= size <= 8 + least + 64 + 32
    assert size % 8 == 0
    assert disk(nn.Linear(1003, 2)) - disk(nn.Linear(1002, 2)) == pytest.approx(8, abs=8)
    tied = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    apart = disk(tied)
    tied[1].weight = tied[0].weight
    assert apart - disk(tied) == pytest.approx(40_000, abs=100)


def test_what_was_measured_is_read_and_other_settings_or_models_are_measured_anew(tmp_path):
    subjects = {"a": Subject(net(5)), "b": Subject(net(6))}
    first = measure_costs(subjects, QUICK, SOURCE, home=tmp_path / "in")
    again = measure_costs({"a": Subject(net(5)), "b": Subject(net(6))}, QUICK, SOURCE, home=tmp_path / "in")
    assert again == first
    wider = measure_costs({**subjects, "b": Subject(net(7))}, QUICK, SOURCE, home=tmp_path / "in")
    assert wider.arms["b"]["parameters"] != first.arms["b"]["parameters"]
    once = Timing(batches=(2,), threads=(1,), seconds=0.1)
    other = measure_costs(subjects, once, SOURCE, home=tmp_path / "in")
    assert [row["batch"] for row in other.arms["a"]["latency"]] == [2]


def test_what_cannot_be_called_or_saved_is_left_out_and_told():
    found = measure_costs({"good": Subject(net(5)), "bad": Subject(nn.Linear(5, 3))}, QUICK, SOURCE)
    assert set(found.arms) == {"good"}
    assert len(found.notes) == 1
    assert found.notes[0].startswith("What bad costs was not measured.")
    assert "mat1 and mat2" in found.notes[0]
    assert measure_costs({}, QUICK, SOURCE).arms == {}


def test_threads_are_one_and_all_cores_unless_named():
    assert 1 <= cores() <= 4096
    assert Timing().counts() == tuple(dict.fromkeys((1, min(8, cores()))))
    assert Timing(threads=(3,)).counts() == (3,)
    for wrong in ({"batches": ()}, {"batches": (0,)}, {"threads": ()}, {"threads": (1, -1)}, {"seconds": 0.0}):
        with pytest.raises(ConfigError, match=f"timing.{next(iter(wrong))}"):
            Timing(**wrong)


def test_settings_of_costs_do_not_make_other_measures_anew(tmp_path):
    how = Evidence(measures=("sensitivity",))
    parts = {"train": SOURCE, "val": SOURCE, "test": SOURCE, "home": tmp_path}
    examine(Subject(net(5)), how, **parts)
    written = (tmp_path / "examined.json").stat().st_mtime_ns
    examine(Subject(net(5)), Evidence(measures=("sensitivity", "costs"), timing=QUICK), **parts)
    assert (tmp_path / "examined.json").stat().st_mtime_ns == written
    examine(Subject(net(5)), Evidence(measures=()), **parts)
    assert (tmp_path / "examined.json").stat().st_mtime_ns != written


def distilled(evidence, **further):
    data = torch.randn(40, 6), torch.randint(0, 3, (40,))
    return lb.distill(net(4), net(9), train=data, val=data, epochs=1, batch_size=20, progress=False,
                      evidence=evidence, **further)  # fmt: skip


def test_distill_measures_costs_where_they_are_asked_for(tmp_path):
    asked = Evidence(measures=("costs",), timing=QUICK)
    run = distilled(asked, out=tmp_path / "out")
    costs = json.loads((tmp_path / "out" / "evidence.json").read_text())["costs"]
    assert costs == run.evidence["costs"]
    assert set(costs) == {"teacher", "student"}
    assert "costs" not in distilled(None).evidence


def test_a_study_of_runs_times_all_arms_together():
    asked = Evidence(measures=("costs",), timing=QUICK)
    study = lb.study(lambda seed: {"plain": distilled(asked), "taught": distilled(asked)}, seeds=1)
    assert set(study.evidence["costs"]) == {"teacher", "plain", "taught"}
