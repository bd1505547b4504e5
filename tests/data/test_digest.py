from __future__ import annotations

import enum
import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

from limbeck.data.digest import digest_of


class Mode(enum.Enum):
    BILINEAR = "bilinear"
    NEAREST = "nearest"


class Plain:
    def __init__(self, **held):
        vars(self).update(held)


class Slotted:
    __slots__ = ("p",)

    def __init__(self, p):
        self.p = p


class Module(torch.nn.Module):
    def __init__(self, p=0.5, inner=None, mode=Mode.BILINEAR):
        super().__init__()
        self.p, self.mode, self._inner = p, mode, inner
        self.register_buffer("weight", torch.tensor([p]))


def make(power, unit=1):
    def function(x, offset=2):
        return x**power + offset * unit

    return function


def other(x):
    return x + 1


DIFFERENT = {
    "plain": [lambda: Plain(a=1), lambda: Plain(a=2), lambda: Plain(b=1), lambda: Plain(a=1.0), lambda: Plain(a="1")],
    "private": [lambda: Plain(_p=1), lambda: Plain(_p=2)],
    "slots": [lambda: Slotted(1), lambda: Slotted(2)],
    "module": [Module, lambda: Module(0.4), lambda: Module(mode=Mode.NEAREST), lambda: Module(inner=Module(0.1)),
               lambda: Module(inner=Module(0.2))],
    "closure": [lambda: make(2), lambda: make(3), lambda: make(2, [1]), lambda: make(2, [2])],
    "partial": [lambda: functools.partial(other, 1), lambda: functools.partial(other, 2),
                lambda: functools.partial(other, x=1)],
    "method": [lambda: Plain(a=1).__init__, lambda: Plain(a=2).__init__],
    "functions": [lambda: other, lambda: make, lambda: len, lambda: np.flip, lambda: Plain],
    "values": [lambda: [1, 2], lambda: [2, 1], lambda: (1, 2), lambda: {1: 2}, lambda: {1, 2}, lambda: {2: 1}],
    "arrays": [lambda: np.arange(3), lambda: np.arange(3.0), lambda: np.arange(3)[::-1], lambda: torch.arange(3),
               lambda: torch.arange(3).view(1, 3)],
}  # fmt: skip


@pytest.mark.parametrize("rows", DIFFERENT.values(), ids=DIFFERENT)
def test_equal_things_have_one_digest_and_different_ones_have_many(rows):
    first = [digest_of(row()) for row in rows]
    assert first == [digest_of(row()) for row in rows]
    assert len(set(first)) == len(rows)


def test_sets_have_no_order_and_loops_have_an_end():
    assert digest_of({"a", "b", "c"}) == digest_of({"c", "b", "a"})
    loop, again = Plain(a=1), Plain(a=1)
    loop.me, again.me = loop, again
    assert digest_of(loop) == digest_of(again) != digest_of(Plain(a=1))


def test_training_mode_hooks_and_addresses_do_not_count():
    one, two = Module(), Module().eval()
    two.register_forward_hook(lambda *_: None)
    assert digest_of(one) == digest_of(two)
    assert digest_of(Plain(a=object())) == digest_of(Plain(a=object()))


def test_code_without_source_counts_by_what_it_does():
    spaces = [{}, {}, {}]
    for space, body in zip(spaces, ("x + 1", "x + 1", "x * 2"), strict=True):
        exec(f"def f(x): return {body}", space)
    one, same, another = (digest_of(space["f"]) for space in spaces)
    assert one == same != another


def test_it_is_the_same_in_another_process(tmp_path):
    (tmp_path / "own.py").write_text("class Jig:\n    def __init__(self):\n        self.a = set(map(str, range(30)))\n")
    code = "import own; from limbeck.data.digest import digest_of; print(digest_of(own.Jig()))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
