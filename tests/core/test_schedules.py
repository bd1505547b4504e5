import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.core.schedules import SCHEDULES, Constant, Cosine, Linear, OneCycle, Steps, value_at


@pytest.mark.parametrize("kind", SCHEDULES)
@given(progress=st.floats(0, 1))
def test_every_schedule_builds_with_its_defaults_and_is_finite_all_the_way(kind, progress):
    schedule = SCHEDULES[kind]()
    assert schedule.kind == kind
    assert 0 <= schedule(progress) <= 1


def test_one_cycle_agrees_with_torch_s():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    total = 101
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=total, pct_start=0.3, div_factor=25, final_div_factor=1e4, cycle_momentum=False
    )
    ours = OneCycle(peak=0.293, start=1 / 25, end=1 / 25 / 1e4)  # torch puts the peak at step 0.3 * 101 - 1
    for step in range(total - 1):
        assert ours(step / (total - 1)) == pytest.approx(optimizer.param_groups[0]["lr"], abs=5e-3)
        optimizer.step()
        theirs.step()


def test_closed_forms():
    assert Cosine(start=1, end=0)(0.5) == pytest.approx(0.5)
    assert Cosine(start=2, end=1)(1 / 3) == pytest.approx(1 + (1 + math.cos(math.pi / 3)) / 2)
    assert Linear(start=1, end=0, until=0.5)(0.25) == 0.5
    assert Linear(start=1, end=0, until=0.5)(0.9) == 0
    assert [Steps(at=(0.5, 0.75), factor=0.1)(p) for p in (0.4, 0.5, 0.8)] == pytest.approx([1, 0.1, 0.01])
    assert Constant(value=3.0)(0.7) == 3
    assert Cosine(warmup=0.1)(0.05) == pytest.approx(0.505)
    assert value_at(0.3, 0.9) == 0.3
    assert value_at(Linear(), 0.25) == 0.75


@pytest.mark.parametrize("bad", [lambda: OneCycle(peak=2), lambda: Linear(until=-1), lambda: Steps(at=(0.5, 7.0))])
def test_what_is_no_share_is_refused(bad):
    with pytest.raises(ValueError, match="is not a share of the run"):
        bad()
