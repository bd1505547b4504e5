"""How fast does a store of targets give back rows, and how big is it?

    python benchmarks/store.py           # all; writes benchmarks/results/store.json
    python benchmarks/store.py --small   # a quick look, a fiftieth of the words; writes nothing

Gather: 10-class float16 logits of 50,000 samples in 8 views, read back in random order, in batches of 128 and 1024:
one view a batch, as in training, and views mixed at random. Promised: a million rows a second. Rows are decoded to
float32. The file cache is warm: what is measured is ours, not the disk.

Words: the 64 likeliest of 50,000 words (ids, log-probabilities, tail) for a million tokens in ragged samples, written
block by block. Logits are drawn once for 500 tokens and shifted along the vocabulary from call to call, since drawing
5e10 numbers would tell about the generator; encoding works on all of them. Size against the arithmetic:
promised within 5 %. Then samples are read in random order.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from limbeck.core.folder import environment
from limbeck.targets import Dense, Output, Plan, Store, TopK

SAMPLES, VIEWS, CLASSES = 50_000, 8, 10
WORDS, K, LENGTH = 50_000, 64, 100
ROUNDS = 5


def plan(outputs: dict[str, Output], views: int, rows: int) -> Plan:
    return Plan(teacher={}, data={}, augmentation={}, outputs=outputs, views=views, rows=rows)


def rate(read: Callable[[torch.Tensor, torch.Tensor], Any], count: int, views: int, batch: int) -> dict[str, float]:
    """Samples a second over rounds of a few thousand, by the wall and by the processor."""
    wall, processor = [], []
    g = torch.Generator().manual_seed(0)
    for _ in range(ROUNDS + 1):  # the first maps the files
        order = torch.randperm(count, generator=g)[: max(batch, 20_480)]
        which = torch.randint(views, order.shape, generator=g)
        parts = [(order[i : i + batch], which[i : i + batch]) for i in range(0, len(order) - batch + 1, batch)]
        start = time.perf_counter(), time.process_time()
        for ids, view in parts:
            read(ids, view)
        wall.append(len(parts) * batch / (time.perf_counter() - start[0]))
        processor.append(len(parts) * batch / (time.process_time() - start[1]))
    return {"wall": statistics.median(wall[1:]), "processor": statistics.median(processor[1:])}


def gather(folder: Path) -> dict[str, Any]:
    store = Store.create(
        folder, plan({"logits": Output(codec=Dense(), shape=(CLASSES,))}, VIEWS, 4096), torch.arange(SAMPLES)
    )
    g = torch.Generator().manual_seed(0)
    for piece in store.missing():
        store.write(piece, {"logits": 5 * torch.randn(len(store.rows_of(piece)), CLASSES, generator=g)})
    store.seal()
    arithmetic = SAMPLES * VIEWS * CLASSES * 2 + SAMPLES * 8
    told: dict[str, Any] = {"bytes": store.nbytes, "over_arithmetic": store.nbytes / arithmetic}
    for batch in (128, 1024):
        told[f"rows_a_second_{batch}_one_view"] = rate(lambda ids, _: store.gather(ids, 3), SAMPLES, VIEWS, batch)
        told[f"rows_a_second_{batch}_mixed_views"] = rate(store.gather, SAMPLES, VIEWS, batch)
    return told


def words(folder: Path, tokens: int) -> dict[str, Any]:
    samples, rows = tokens // LENGTH, 50
    output = Output(codec=TopK(k=K), shape=(WORDS,), tokens=True)
    store = Store.create(folder, plan({"logits": output}, 1, rows), torch.arange(samples))
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(LENGTH // 2, LENGTH * 3 // 2 + 1, (samples,), generator=g)
    logits = 3 * torch.randn(500, WORDS, generator=g)
    spent = encoding = 0.0
    for piece in store.missing():
        mine = lengths[store.rows_of(piece)]
        found = []
        for at in range(0, int(mine.sum()), len(logits)):
            x = logits[: int(mine.sum()) - at].roll(37 * piece.block + at, -1)
            start = time.perf_counter()
            found.append(output.codec.encode(x))
            encoding += time.perf_counter() - start
            spent += time.perf_counter() - start
        start = time.perf_counter()
        parts = {name: torch.cat([each[name] for each in found]) for name in found[0]}
        store.write(piece, {"logits": parts}, mine)
        spent += time.perf_counter() - start
    start = time.perf_counter()
    store.seal()
    sealing = time.perf_counter() - start
    count = int(lengths.sum())
    arithmetic = count * (K * (2 + 2) + 2) + samples * 16  # ids and numbers; an id and an offset a sample
    read = rate(lambda ids, _: store.gather(ids, 0), samples, 1, min(16, samples))
    return {
        "tokens": count,
        "seconds_to_write": spent,
        "of_which_top_k": encoding,
        "seconds_to_seal": sealing,
        "bytes": store.nbytes,
        "over_arithmetic": store.nbytes / arithmetic,
        "tokens_a_second_at_random": {name: value * count / samples for name, value in read.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick look; writes nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="limbeck-store-"))
    try:
        told = {
            "gather": gather(folder / "gather"),
            "words": words(folder / "words", 20_000 if asked.small else 1_000_000),
        }
    finally:
        shutil.rmtree(folder)
    print(json.dumps(told, indent=2))
    if not asked.small:
        out = Path(__file__).parent / "results" / "store.json"
        out.write_text(json.dumps({"environment": environment(), **told}, indent=2) + "\n")


if __name__ == "__main__":
    main()
