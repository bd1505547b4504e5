"""What does each public loss cost beside the plainest correct formula, in time and in peak memory?

    python benchmarks/losses.py               # all losses; writes benchmarks/results/losses.json
    python benchmarks/losses.py --no-large    # linear_kl on 512 tokens and 8000 words instead of 4096 and 32000
    python benchmarks/losses.py --only kl,nst # a look at a few; writes nothing

The plain formula is what a good engineer writes in a few lines of torch, without our refusals and without our care at
the edges. Its value and its gradient must be ours on the very tensors that are timed, or the script ends with an error.

Time: forward and backward, one thread, CPU seconds of the process (on a quiet machine those are seconds; on a busy one
they leave out what others take). The sides take turns, in an order that swaps each round, after a warm-up; a turn is as
many calls as take about 10 ms, a row 21 rounds, or 5 where a call takes a quarter of a second or more. The ratio is of
medians, its spread that of the ratios within a round. The C library is told to keep freed memory: otherwise what ran
before decides whether large blocks go back to the system, and each of their pages is paid for anew. At most 1.1 x the
plain formula is promised.

Memory: every allocation and release of torch's CPU allocator during one forward and backward, as the profiler logs
them, added up in order of time; the peak is what is held at most beyond the inputs, with what kernels take for
themselves (but not what BLAS libraries keep outside of torch). A known case is measured first, to trust the count.

Peers run where they can be imported, and are never a dependency. They need an environment of their own:

    python -m venv peers                                                    # outside of the repository
    peers/bin/pip install -c constraints.txt torch==2.13.0 -e .             # torch first: theirs would be another build
    peers/bin/pip install --no-deps torchdistill torchvision==0.28.0 liger-kernel trl
    peers/bin/pip install -c constraints.txt pillow transformers datasets   # what torchvision and trl import
    peers/bin/pip install -c constraints.txt keras                          # for peers_speed.py
    peers/bin/python benchmarks/losses.py

"as released" is no package, but the form of the authors' code written anew, where it holds more than it has to.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import plain_losses as plain
import torch
from plain_losses import T
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from limbeck import functional as ours
from limbeck.core.folder import environment

Loss = Callable[..., Tensor]
PROMISE = 1.1
LONG = 0.25  # seconds of a call, above which a few rounds tell enough
AS_RELEASED = "as released"


# What goes in ---------------------------------------------------------------------------------------------------------


class Inputs(NamedTuple):
    """Tensors in the order that the formulas take them, and their sizes in words."""

    shapes: str
    make: Callable[[], tuple[Tensor, ...]]


G = torch.Generator()


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=G)


def student(*shape: int, scale: float = 1.0) -> Tensor:
    return draw(*shape, scale=scale).requires_grad_()


def gappy(*shape: int) -> Tensor:
    """Real-valued labels, one in twenty of them missing."""
    return draw(*shape).masked_fill(torch.rand(*shape, generator=G) < 0.05, math.nan)


def classes() -> Tensor:
    return torch.randint(0, 1000, (256,), generator=G)


def answers(tokens: int, words: int, k: int) -> tuple[Tensor, Tensor]:
    log_probs, ids = draw(tokens, words, scale=3).log_softmax(-1).topk(k, -1)
    return ids, log_probs


LOGITS = Inputs("logits 256x1000", lambda: (student(256, 1000, scale=3), draw(256, 1000, scale=3)))
LABELLED = Inputs("logits 256x1000 with labels", lambda: (*LOGITS.make(), classes()))
MAPS = Inputs("maps 64x64x16x16", lambda: (student(64, 64, 16, 16), draw(64, 64, 16, 16)))
SCALED = Inputs("maps 64x64x16x16", lambda: (student(64, 64, 16, 16), student(64), draw(64, 64, 16, 16)))
TWICE = Inputs("2 maps 64x64x16x16 a side", lambda: (*MAPS.make(), *MAPS.make()))  # student, teacher, student, teacher
ROWS = Inputs("rows 128x512", lambda: (student(128, 512), draw(128, 512)))
BANK = Inputs(
    "rows 64x128, 4096 remembered", lambda: (student(64, 128), draw(64, 128), draw(4096, 128), draw(4096, 128))
)
TOKENS = Inputs("tokens 8x128x384, 12 heads", lambda: (student(8, 128, 384), draw(8, 128, 384)))
WORDS = Inputs("logits 256x32000", lambda: (student(256, 32000, scale=3), draw(256, 32000, scale=3)))
TOP = Inputs("logits 512x32000, 64 answers", lambda: (student(512, 32000, scale=3), *answers(512, 32000, 64)))


def hidden(tokens: int, words: int, width: int) -> Inputs:
    def make() -> tuple[Tensor, ...]:
        small = width**-0.5
        return (
            student(tokens, width), student(words, width, scale=3 * small),
            draw(tokens, width), draw(words, width, scale=3 * small),
        )  # fmt: skip

    return Inputs(f"{tokens} tokens, {words} words, width {width}", make)


class Case(NamedTuple):
    """A loss on given tensors, and its plain formula on the same ones."""

    inputs: Inputs
    plain: Loss
    settings: Mapping[str, float] = MappingProxyType({})
    call: Loss | None = None
    """How ours takes the tensors, where not one after the other."""


def pairs(loss: Loss) -> Loss:
    return lambda s1, t1, s2, t2: loss((s1, s2), (t1, t2))


HOT = {"temperature": T}
ONES = Inputs("labels 64x2048, forward only", lambda: (torch.randint(-100, 100, (64, 2048), generator=G),))
NUMBERS = Inputs("numbers 256x1000, 5 % missing", lambda: (student(256, 1000), gappy(256, 1000)))
GUESSES = Inputs("numbers 256x1000, 5 % missing", lambda: (student(256, 1000), draw(256, 1000), gappy(256, 1000)))
TRUE = Inputs("logits 256x1000 with labels", lambda: (student(256, 1000, scale=3), classes()))
CASES = {
    "label_cross_entropy": Case(TRUE, F.cross_entropy),
    "kl": Case(LOGITS, lambda s, t: T**2 * plain.divergence(*plain.log_both(s, t)), HOT),
    "reverse_kl": Case(LOGITS, plain.reverse_kl, HOT),
    "jsd": Case(LOGITS, plain.jsd, HOT),
    "skew_kl": Case(LOGITS, plain.skew_kl, HOT),
    "skew_reverse_kl": Case(LOGITS, plain.skew_reverse_kl, HOT),
    "total_variation": Case(LOGITS, plain.total_variation, HOT),
    "alpha_beta": Case(LOGITS, plain.alpha_beta, HOT),
    "soft_cross_entropy": Case(LOGITS, lambda s, t: T**2 * F.cross_entropy(s / T, (t / T).softmax(-1)), HOT),
    "mse_logits": Case(LOGITS, F.mse_loss),
    "mse_probabilities": Case(LOGITS, plain.mse_probabilities, HOT),
    "standardize": Case(
        LOGITS,
        lambda s, t: ((s - s.mean(-1, keepdim=True)) / s.std(-1, keepdim=True) * t).mean(),
        call=lambda s, t: (ours.standardize(s) * t).mean(),
    ),
    "dist": Case(LOGITS, plain.dist, HOT),
    "mlkd": Case(LOGITS, plain.mlkd),
    "dkd": Case(LABELLED, plain.dkd, HOT),
    "nkd": Case(LABELLED, plain.nkd, HOT),
    "hint": Case(MAPS, F.mse_loss),
    "cosine": Case(MAPS, lambda s, t: 1 - F.cosine_similarity(s, t, dim=1).mean()),
    "activation_boundary": Case(MAPS, plain.activation_boundary),
    "factor": Case(MAPS, lambda s, t: F.l1_loss(F.normalize(s.flatten(1)), F.normalize(t.flatten(1)))),
    "attention": Case(MAPS, plain.attention),
    "nst": Case(MAPS, plain.nst),
    "fsp": Case(TWICE, plain.fsp, call=pairs(ours.fsp)),
    "variational": Case(SCALED, plain.variational),
    "review": Case(TWICE, plain.review, call=pairs(ours.review)),
    "masked_generative": Case(MAPS, lambda s, t: F.mse_loss(s, t, reduction="sum") / len(s)),
    "similarity": Case(ROWS, plain.similarity),
    "rkd": Case(ROWS, lambda s, t: 25 * plain.rkd_distance(s, t) + 50 * plain.rkd_angle(s, t)),
    "rkd_distance": Case(ROWS, plain.rkd_distance),
    "rkd_angle": Case(ROWS, plain.rkd_angle),
    "pkt": Case(ROWS, plain.pkt),
    "correlation": Case(ROWS, plain.correlation),
    "cka": Case(ROWS, plain.cka),
    "attention_relation": Case(TOKENS, plain.attention_relation, {"heads": 12}),
    "info_nce": Case(ROWS, plain.info_nce),
    "crd": Case(ROWS, plain.crd),
    "crd with a bank": Case(
        BANK, plain.crd_bank, call=lambda s, t, kept_s, kept_t: ours.crd(s, t, negatives=(kept_s, kept_t))
    ),
    "uld": Case(WORDS, plain.uld, HOT),
    "topk_kl": Case(TOP, plain.topk_kl),
    "token_mask": Case(ONES, lambda y: F.pad(y[:, 1:], (0, 1), value=-100) != -100),
    "squared_error": Case(NUMBERS, plain.squared_error),
    "bounded_error": Case(GUESSES, plain.bounded_error),
    "linear_kl": Case(hidden(512, 8000, 256), plain.linear_kl),
}
LARGE = Case(hidden(4096, 32000, 256), plain.linear_kl)


def peers() -> tuple[dict[str, dict[str, Loss]], dict[str, str]]:
    """For each loss what others offer, and for each package its version or why it is not here."""
    found: dict[str, dict[str, Loss]] = {
        "nst": {AS_RELEASED: plain.nst_released},
        "crd with a bank": {AS_RELEASED: plain.crd_bank_released},
        "rkd_distance": {"by matrix products": plain.rkd_distance_products},
    }
    said: dict[str, str] = {}
    for package, theirs in (("torchdistill", _torchdistill), ("trl", _trl), ("liger-kernel", _liger)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                losses = theirs()
            said[package] = version(package)
        except ImportError as fault:
            said[package] = f"not here: {fault}"
            continue
        for name, loss in losses.items():
            found.setdefault(name, {})[package] = loss
    return found, said


_KEPT: list[torch.library.Library] = []
"""A declaration lasts as long as its object."""


def _torchdistill() -> dict[str, Loss]:
    _KEPT.append(torch.library.Library("torchvision", "DEF"))  # beside a CPU torch its own are not there
    for name in ("nms", "qnms"):
        _KEPT[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchdistill.losses import mid_level as their  # noqa: PLC0415 - only where it is installed

    def of(loss: torch.nn.Module) -> Loss:
        return lambda s, t: loss({"x": {"output": s}}, {"x": {"output": t}})

    at = ("x", "output", "x", "output")
    pair = {"p": {side: {"path": "x", "io": "output"} for side in ("student", "teacher")}}
    maps = {
        f"{side}_{place}": {"path": place, "io": "output"}
        for side in ("student", "teacher")
        for place in ("first", "second")
    }
    fsp_loss, vid = their.FSPLoss({"p": maps}), their.VIDLoss(pair)
    heights = their.HierarchicalContextLoss(*at)

    def flows(s1: Tensor, t1: Tensor, s2: Tensor, t2: Tensor) -> Tensor:
        sides = ({"first": {"output": a}, "second": {"output": b}} for a, b in ((s1, s2), (t1, t2)))
        return fsp_loss(*sides)

    def likelihood(mean: Tensor, log_scale: Tensor, target: Tensor) -> Tensor:
        variance = (F.softplus(log_scale) + 1e-5).view(1, -1, 1, 1)
        return vid({"x": {"output": (mean, variance)}}, {"x": {"output": target}})

    def reviewed(*maps: Tensor) -> Tensor:
        each = ((maps[0], maps[1]), (maps[2], maps[3]))
        return sum(heights({"x": {"output": (s, None)}}, {"x": {"output": t}}) for s, t in each)

    return {
        "kl": of(their.KDLoss(*at, temperature=T, alpha=0.0)),
        "dist": of(their.DISTLoss(*at, tau=T)),
        "activation_boundary": of(their.AltActTransferLoss(pair, margin=1.0, reduction="mean")),
        "factor": lambda s, t: their.FTLoss()({"translator": {"output": s}}, {"paraphraser": {"output": t}}),
        "attention": of(their.ATLoss(pair)),
        "fsp": flows,
        "variational": likelihood,
        "review": reviewed,
        "similarity": of(their.SPKDLoss("x", "x", reduction="batchmean")),
        "rkd": of(their.RKDLoss("x", "x", dist_factor=25.0, angle_factor=50.0, reduction="mean")),
        "pkt": of(their.PKTLoss(*at)),
    }


def _trl() -> dict[str, Loss]:
    from trl.experimental.gkd import GKDTrainer  # noqa: PLC0415 - only where it is installed

    return {"jsd": lambda s, t: GKDTrainer.generalized_jsd_loss(s, t, beta=0.5, temperature=T)}


def _liger() -> dict[str, Loss]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: PLC0415 - only where it is installed

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)

    def call(s: Tensor, weight_s: Tensor, t: Tensor, weight_t: Tensor) -> Tensor:
        return loss(s, weight_s, t, weight_t, torch.zeros(len(s), dtype=torch.int64))

    return {"linear_kl": call}


# How it is measured ---------------------------------------------------------------------------------------------------


def step(loss: Loss, tensors: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One forward and backward: the value and the gradients."""
    value, leaves = loss(*tensors), [x for x in tensors if x.requires_grad]
    return value.detach(), torch.autograd.grad(value, leaves) if leaves else ()


def peak(work: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator holds at once while this runs, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def trust() -> None:
    """Two megabytes, of which one goes before a third comes: the peak is two and nothing else."""
    mega = 2**20

    def work() -> None:
        first = torch.empty(mega, dtype=torch.uint8)
        second = torch.empty(mega, dtype=torch.uint8)
        del first
        third = torch.empty(mega, dtype=torch.uint8)
        del second, third

    assert abs(peak(work) - 2 * mega) < 1024, "the profiler does not count memory as it should"


def agree(name: str, tensors: tuple[Tensor, ...], left: Loss, right: Loss) -> None:
    """Refuse a plain formula whose value or gradient is another."""
    (value, grads), (other, others) = step(left, tensors), step(right, tensors)
    where = {"rtol": 2e-4, "atol": 1e-7, "msg": lambda said: f"{name}: the plain formula is another one\n{said}"}
    torch.testing.assert_close(value, other, **where)
    for grad, wanted in zip(grads, others, strict=True):
        assert (grad - wanted).norm() <= 1e-3 * wanted.norm(), f"{name}: the plain formula has another gradient"


def seconds(sides: dict[str, Loss], tensors: tuple[Tensor, ...], clock: Callable[[], float], rounds: int) -> dict:
    """For each side what a call takes, round by round."""
    calls = {}
    for side, loss in sides.items():
        start = clock()
        step(loss, tensors)
        calls[side] = max(1, min(100, math.ceil(0.01 / max(clock() - start, 1e-6))))
        if side == "ours" and clock() - start > LONG:
            rounds = min(rounds, 5)
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(-1, rounds):
        for side in list(sides) if round_ % 2 else reversed(list(sides)):
            start = clock()
            for _ in range(calls[side]):
                step(sides[side], tensors)
            if round_ >= 0:
                taken[side].append((clock() - start) / calls[side])
    return taken


def ratios(mine: list[float], theirs: list[float]) -> dict[str, float]:
    each = sorted(a / b for a, b in zip(mine, theirs, strict=True))
    low, _, high = statistics.quantiles(each, n=4)
    middle = statistics.median(mine) / statistics.median(theirs)
    return {"time_ratio": round(middle, 3), "time_p25": round(low, 3), "time_p75": round(high, 3)}


def measure(name: str, case: Case, others: dict[str, Loss], clock: Callable[[], float], rounds: int) -> dict:
    """The record of one loss. Ratios are ours over theirs: below 1 is faster, or smaller."""
    G.manual_seed(0)
    tensors = case.inputs.make()
    call = case.call or (lambda *x: getattr(ours, name)(*x, **case.settings))
    agree(name, tensors, call, case.plain)
    sides = {"ours": call, "plain": case.plain, **others}
    values = {side: float(step(loss, tensors)[0].float().mean()) for side, loss in sides.items()}
    memory = {side: peak(lambda loss=loss: step(loss, tensors)) for side, loss in sides.items()}
    taken = seconds(sides, tensors, clock, rounds)
    beside = {
        peer: {
            "time_ratio": ratios(taken["ours"], taken[peer])["time_ratio"],
            "memory_ratio": round(memory["ours"] / memory[peer], 3),
            "value_differs": not math.isclose(values[peer], values["ours"], rel_tol=1e-3),
            "value_ratio": round(values[peer] / values["ours"], 4),
        }
        for peer in others
    }
    return {
        "shapes": case.inputs.shapes,
        **ratios(taken["ours"], taken["plain"]),
        "memory_ratio": round(memory["ours"] / memory["plain"], 3),
        **{f"{side}_ms": round(1e3 * statistics.median(taken[side]), 3) for side in ("ours", "plain")},
        **{f"{side}_mb": round(memory[side] / 1e6, 3) for side in ("ours", "plain")},
        "rounds": len(taken["ours"]),
        "peers": beside,
    }


def line(name: str, row: dict) -> str:
    mark = "  ABOVE 1.1" if row["time_ratio"] > PROMISE else ""
    time_, spread = f"{row['time_ratio']:6.3f}", f"({row['time_p25']:.2f} to {row['time_p75']:.2f})"
    said = f"{name:20} time {time_} {spread:17} {row['ours_ms']:10.3f} ms  memory {row['memory_ratio']:6.3f}"
    for peer, beside in row["peers"].items():
        note = f", value x {beside['value_ratio']}" if beside["value_differs"] else ""
        said += f"; {peer} {beside['time_ratio']} in time, {beside['memory_ratio']} in memory{note}"
    return said + mark


def keep_freed_memory() -> None:
    """Of glibc alone: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""
    with contextlib.suppress(OSError, AttributeError):
        for name in (-3, -1):
            ctypes.CDLL("libc.so.6").mallopt(name, 1 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", default="", help="names with commas; nothing is written")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1, help="with more than one, seconds are those of the wall")
    given = parser.parse_args()
    keep_freed_memory()
    missing = set(ours.__all__) - set(CASES)
    assert not missing, f"not measured: {', '.join(sorted(missing))}"
    torch.set_num_threads(given.threads)
    trust()
    clock = time.process_time if given.threads == 1 else time.perf_counter
    found, said = peers()
    print("; ".join(f"{package} {state}" for package, state in said.items()), flush=True)
    cases = {**CASES, "linear_kl": LARGE} if given.large else CASES
    rows = {}
    for name in given.only.split(",") if given.only else cases:
        rows[name] = measure(name, cases[name], found.get(name, {}), clock, given.rounds)
        print(line(name, rows[name]), flush=True)
    slow = [name for name, row in rows.items() if row["time_ratio"] > PROMISE]
    print(f"above {PROMISE} x the plain formula: {', '.join(slow) or 'none'}")
    if not given.only:
        place = {k: v for k, v in environment().items() if k != "command"}
        place |= {"clock": clock.__name__, "peers": said}
        out = Path(__file__).parent / "results" / "losses.json"
        out.write_text(json.dumps({"environment": place, "results": rows}, indent=2) + "\n")
        print(f"written: {out.name}")


if __name__ == "__main__":
    main()
