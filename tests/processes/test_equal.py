"""Law: two processes, sharing the student or holding a part of it each, end with the weights of one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import several
import torch
from launching import THREADS, launch
from safetensors.torch import load_file

LAUNCHERS = ("torchrun", pytest.param("accelerate", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=LAUNCHERS)
def together(request, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp(request.param)
    ended = launch(request.param, Path(several.__file__), out)
    assert ended.returncode == 0, ended.stderr
    return out


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    return {name: several.CASES[name]() for name in ("replicate", "replicate-gather", "replicate-tuned", "scores")}


def found(out: Path, case: str) -> list[dict[str, torch.Tensor]]:
    return [load_file(out / f"{case}-{rank}.safetensors") for rank in range(2)]


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_the_launcher_is_asked_how_the_student_is_shared(request, together):
    shards = "accelerate" in together.name  # which was launched with --use_fsdp
    for own in found(together, "auto"):
        assert bool(own["sharded"]) == shards


@pytest.mark.parametrize("case", ["replicate", "shard", "shard-teacher"])
def test_after_24_steps_the_weights_are_those_of_one_process(case, together, alone):
    """Ragged `valid`, two micro-batches a step, a head, clipping, an odd last batch, a layer without gradient."""
    for own in found(together, case):
        assert apart(own, alone["replicate"]) < 1e-10
    assert apart(alone["replicate"], {**alone["replicate"], "reader.model.last.bias": torch.zeros(3)}) > 1e-3


@pytest.mark.parametrize("case", ["replicate-tuned", "shard-tuned"])
def test_parts_are_frozen_thawed_slowed_and_anchored_in_two_processes_as_in_one(case, together, alone):
    for own in found(together, case):
        assert apart(own, alone["replicate-tuned"]) < 1e-10
        assert torch.equal(own["reader.model.first.weight"], several.net(1).first.weight)
    assert apart(alone["replicate"], alone["replicate-tuned"]) > 1e-3


@pytest.mark.parametrize("case", ["replicate-gather", "shard-gather"])
def test_terms_that_relate_samples_see_all_of_them_where_asked(case, together, alone):
    for own in found(together, case):
        assert apart(own, alone["replicate-gather"]) < 1e-9


def test_and_only_their_own_where_not(together, alone):
    assert apart(found(together, "apart")[0], alone["replicate-gather"]) > 1e-4


def test_a_shared_pass_gives_every_process_all_answers(together, alone):
    for own in found(together, "scores"):
        torch.testing.assert_close(own["logits"], alone["scores"]["logits"])


@pytest.mark.slow
def test_the_example_is_one_run_alone_and_in_two_processes():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    script = Path(__file__).parents[2] / "examples" / "several_processes.py"
    line = [sys.executable, str(script)]
    alone = subprocess.run(line, capture_output=True, text=True, check=True, env={**os.environ, **THREADS}).stdout
    both = launch("torchrun", script)
    assert both.returncode == 0, both.stderr
    told = [re.fullmatch(r"(\d) processes: ([\d.]+) %, weights ([\d.]+)\n", each) for each in (alone, both.stdout)]
    (one, score, weights), (two, same_score, same_weights) = (each.groups() for each in told if each)
    assert (one, two) == ("1", "2")
    assert float(score) > 85
    assert float(same_score) == pytest.approx(float(score), abs=0.7)  # two of 297 samples
    assert float(same_weights) == pytest.approx(float(weights), rel=1e-3)


def test_a_step_that_one_process_spoils_is_left_out_by_both_and_the_ids_of_both_are_on_record(together):
    order = [torch.randperm(71, generator=torch.Generator().manual_seed(epoch)) for epoch in range(2)]
    bad = int(order[0][0])
    batches = [next(part for part in each.split(12) if bad in part) for each in order]
    for own in found(together, "spoilt"):
        assert int(own["skipped"]) == 2
        assert own["ids"].tolist() == sorted(torch.cat(batches).tolist())
