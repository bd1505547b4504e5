"""Latency by a false clock, and the law: two copies of one network come out as fast as each other."""

from __future__ import annotations

import copy
import gc
import time

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.core.errors import ConfigError, DataError, ModelError
from limbeck.evaluation import latency
from limbeck.evaluation.latency import compare_calls, compare_latency, threads_set

pytestmark = pytest.mark.usefixtures("unhurried")


class Clock:
    """A clock that only calls move on: by what they take, times how slow the machine is at that moment."""

    def __init__(self, monkeypatch, slow=lambda now: 1.0):
        self.now, self.slow, self.log = 0.0, slow, []
        self.waited, self.ran, self.slept = 0.0, 0.0, 0
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(latency.time, "thread_time", lambda: self.ran)
        monkeypatch.setattr(latency, "_waited", lambda: (self.waited, self.slept))

    def maker(self, name, takes):
        def run():
            self.log.append(name)
            self.now += takes() * self.slow(self.now)

        def make():
            self.log.append(f"make {name}")
            self.now += 1e-6
            return run

        return make


def test_what_every_call_takes_is_what_is_said(monkeypatch):
    clock = Clock(monkeypatch)
    found = compare_calls({"a": clock.maker("a", lambda: 0.003), "b": clock.maker("b", lambda: 0.006)},
                          batches={"a": 8})  # fmt: skip
    for name, takes in (("a", 0.003), ("b", 0.006)):
        told = found[name]
        assert (told.p10, told.p50, told.p90, told.low, told.high) == pytest.approx((takes,) * 5)
        assert told.threads == torch.get_num_threads()
        assert len(told.seconds) == told.repeats == 20
    assert (found["a"].batch, found["b"].batch) == (8, None)


def test_what_slows_all_alike_cancels(monkeypatch):
    rng = np.random.default_rng(0)
    noise = np.exp(rng.standard_normal(5000).cumsum() * 0.2)  # a machine that becomes slower and faster by and by
    clock = Clock(monkeypatch, slow=lambda now: noise[int(now / 0.05) % 5000])
    found = compare_calls({"a": clock.maker("a", lambda: 0.003), "b": clock.maker("b", lambda: 0.0033)}, seconds=20)
    assert found["b"].p50 / found["a"].p50 == pytest.approx(1.1, rel=0.01)


def test_quantiles_and_interval_of_one_model_by_hand(monkeypatch):
    clock = Clock(monkeypatch)
    draws = iter([1.0] * 4 + [float(k) for k in range(1, 101)])  # the first four warm up
    found = compare_calls({"a": clock.maker("a", lambda: next(draws))}, seconds=150.0)["a"]
    assert found.repeats == 20  # so many there are in any case, and then the time is up
    assert found.seconds == pytest.approx(range(1, 21))
    assert (found.p10, found.p50, found.p90) == pytest.approx((2, 10.5, 18))
    assert (found.low, found.high) == pytest.approx((6, 15))  # P(B < 6) = 0.0207 for twenty halves, P(B < 7) = 0.0577


def test_waiting_for_a_core_is_not_counted_and_running_is(monkeypatch):
    clock = Clock(monkeypatch)

    def waits():
        clock.waited += 0.030
        clock.ran += 0.004
        return 0.034

    def told_too_much():
        clock.waited += 0.030
        clock.ran += 0.009
        return 0.034

    def sleeps():
        clock.slept += 1
        return waits()

    makers = {"waits": clock.maker("waits", waits), "ran": clock.maker("ran", told_too_much),
              "sleeps": clock.maker("sleeps", sleeps)}  # fmt: skip
    found = compare_calls(makers)
    assert [found[name].p50 for name in makers] == pytest.approx([0.004, 0.009, 0.034])


def test_the_system_tells_of_waiting_or_nothing_is_taken_off(monkeypatch):
    assert min(latency._waited()) >= 0
    assert compare_calls({"a": lambda: lambda: time.sleep(0.004)}, seconds=0.1)["a"].p50 > 0.003  # sleep is no waiting
    monkeypatch.setattr(latency.os, "pread", lambda *_: b"")
    assert latency._waited() == (0, 0)


def test_rounds_end_when_the_interval_is_narrow_or_the_time_is_up(monkeypatch):
    def calls(spread, seconds, precision=0.01):
        rng = np.random.default_rng(1)
        clock = Clock(monkeypatch)
        makers = {name: clock.maker(name, lambda: 0.01 * np.exp(spread * rng.standard_normal())) for name in "ab"}
        monkeypatch.setattr(latency, "_MOST", 500)
        return compare_calls(makers, seconds=seconds, precision=precision)["a"].repeats

    assert calls(0.001, 100) == 20
    middle = calls(0.05, 100)
    assert 50 < middle < 400
    assert calls(0.05, 100, precision=0.02) < middle
    assert calls(0.5, 100) == 500
    assert 60 < calls(0.5, 2.0) < 110  # two models, about 11 ms each


def test_a_slow_model_is_timed_three_times_at_least(monkeypatch):
    clock = Clock(monkeypatch)
    assert compare_calls({"a": clock.maker("a", lambda: 60.0)}, seconds=1.0)["a"].repeats == 3


def test_turns_are_balanced_and_every_round_has_new_things_to_call(monkeypatch):
    clock = Clock(monkeypatch)
    makers = {name: clock.maker(name, lambda: 0.01) for name in "abc"}
    compare_calls(makers)
    assert clock.log.count("make a") == 21  # twenty rounds, and the warm-up
    rounds = "".join(x if len(x) == 1 else "|" for x in clock.log).strip("|").split("|||")[1:]
    orders = [each[:3] for each in rounds]
    assert all(len(each) == 3 for each in rounds)
    assert all(second == first[::-1] for first, second in zip(orders[::2], orders[1::2], strict=True))
    assert len(set(orders)) > 2


def test_short_calls_are_timed_in_blocks_of_two_milliseconds(monkeypatch):
    clock = Clock(monkeypatch)
    found = compare_calls({"a": clock.maker("a", lambda: 0.0005), "b": clock.maker("b", lambda: 0.0001)})
    assert (found["a"].repeats, found["b"].repeats) == pytest.approx((80, 400), rel=0.06)
    assert (len(found["a"].seconds), len(found["b"].seconds)) == (found["a"].repeats, 200)


def test_collector_threads_and_model_are_as_they_were():
    threads = torch.get_num_threads()
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            seen.append((gc.isenabled(), self.training, torch.is_grad_enabled(), torch.get_num_threads()))
            return self.inner(x)

    model = Watch().train()
    found = compare_latency({"a": (model, torch.randn(3, 4))}, seconds=0.05, threads=threads + 1)["a"]
    assert (found.batch, found.threads) == (3, threads + 1)
    assert {(mode, gradient) for _, mode, gradient, _ in seen} == {(False, False)}
    assert (False, False, False, threads + 1) in seen
    assert gc.isenabled()
    assert torch.get_num_threads() == threads
    assert model.training
    assert model.calls == 0
    with pytest.raises(RuntimeError), threads_set(threads + 1):
        raise RuntimeError
    assert torch.get_num_threads() == threads


def test_copies_are_timed_except_of_what_cannot_be_copied():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one of me")

    where = {"plain": set(), "stubborn": set()}

    def note(name):
        return lambda module, *_: where[name].add(module.weight.data_ptr())

    plain, stubborn = nn.Linear(64, 64), Stubborn(64, 64)
    plain.register_forward_hook(note("plain"))
    stubborn.register_forward_hook(note("stubborn"))
    compare_latency({"plain": (plain, torch.randn(1, 64)), "stubborn": (stubborn, torch.randn(1, 64))}, seconds=0.05)
    assert len(where["plain"]) > 2
    assert where["stubborn"] == {stubborn.weight.data_ptr()}


def test_what_cannot_be_timed_is_refused():
    model, x = nn.Linear(3, 3), torch.randn(2, 3)
    for wrong in ({"seconds": 0.0}, {"precision": -1.0}, {"threads": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            compare_latency({"a": (model, x)}, **wrong)
    with pytest.raises(ModelError, match="cannot be called"):
        compare_latency({"a": (model, torch.randn(2, 4))})
    with pytest.raises(DataError):
        compare_latency({"a": (model, torch.zeros(0, 3))})
    assert compare_calls({}) == {}


def test_the_slower_is_seen_as_slower():
    found = compare_calls({"slow": lambda: lambda: time.sleep(0.004), "fast": lambda: lambda: None}, seconds=0.2)
    assert found["slow"].low > 0.003 > found["fast"].high


def apart(model, example, seconds):
    found = compare_latency({name: (copy.deepcopy(model), example) for name in "ab"}, seconds=seconds, threads=1)
    return abs(found["a"].p50 / found["b"].p50 - 1)


def small():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def test_two_copies_take_the_same_time():
    # The law in short: the middle one of five tries, with room for a machine that is never quiet.
    assert sorted(apart(small(), torch.randn(32, 64), 0.4) for _ in range(5))[2] < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "convolutions"])
def test_two_copies_differ_by_less_than_three_percent_in_nine_tries_of_ten(name):
    conv = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten())
    model, example = {"dense": (small(), torch.randn(32, 64)), "convolutions": (conv, torch.randn(1, 3, 32, 32))}[name]
    assert sum(apart(model, example, 6.0) < 0.03 for _ in range(10)) >= 9
