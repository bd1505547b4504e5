"""The teacher runs once: its signals for every sample and view, kept on disk."""

from __future__ import annotations

import dataclasses
import signal as signals
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.core.errors import ConfigError, DataError, nearest, problem
from limbeck.core.folder import environment
from limbeck.core.processes import first, number, processes, wait
from limbeck.core.progress import bar
from limbeck.core.types import Named
from limbeck.data import Augmentation, Batches, Source, as_source, whole
from limbeck.replaying import augment_seed, augmentation_identity, check_views, data_identity, stored
from limbeck.targets import Dense, Output, Piece, Plan, Sampled, Store, TopK
from limbeck.teachers import as_teacher
from limbeck.teachers.signal import Teaching
from limbeck.teachers.stored import Counted, Targets
from limbeck.train import Engine
from limbeck.train.interrupt import EXIT_CODES, halting

__all__ = ["complete", "remember"]

_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 8192
_SAMPLES = 256
_VERSIONS = ("limbeck", "torch", "numpy", "safetensors", "python")

AnyCodec = Dense | TopK | Sampled
Codecs = str | AnyCodec | Mapping[str, str | AnyCodec]


def remember(
    teacher: Any,
    data: Any,
    *,
    out: str | Path,
    views: int = 1,
    outputs: Sequence[str] = ("logits",),
    codec: Codecs = "float16",
    augment: Augmentation | None = None,
    tokens: str | None = None,
    ignore: int = 0,
    seed: int = 0,
    batch_size: int = 256,
    shard: tuple[int, int] | None = None,
    workers: int = 0,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Targets:
    """Run the teacher over every sample and view once, and keep what it says in a folder that is a teacher itself.

    The same call goes on where a killed one stopped; with more `views` or `outputs` it adds those.

    Args:
        teacher: any module, function or teacher; it is bit-identical afterwards.
        data: the training data as `distill` takes it. Samples are known by their ids, so a part of it can be trained
            on later, in any order.
        out: the folder.
        views: augmented versions of each sample; more than one needs `augment`.
        outputs: what to keep: outputs by name, layers by path ("layer3"), or a layer's weight ("lm_head@weight", once).
        codec: how: "float32", "float16", "bfloat16", "int8", or a setting such as `limbeck.TopK(k=64)`; or a mapping
            from output to one of these.
        augment: as in `distill`; training replays the very same views.
        tokens: a batch column [B, T] that says which tokens count: those where it differs from `ignore`. Outputs
            [B, T, ...] then keep these alone.
        ignore: see `tokens`; 0 suits a mask, -100 labels.
        seed: of the augmentation and of sampled answers.
        batch_size: samples a call of the teacher.
        shard: (i, n), from (1, n) to (n, n): the i-th of n processes or machines that fill one folder and need not
            know of each other. None shares the work out among the processes of a launcher, and waits for all.
        workers: processes that read a map-style dataset.
        device: where the teacher runs.
        progress: show a bar where stderr is a terminal.
        say: hears a line about anything unusual.

    Raises:
        LimbeckError: the input is at fault, or the folder holds the answers of another teacher, data or augmentation;
            the field that differs is named, before any work.
        KeyboardInterrupt: Ctrl-C; what was done is kept.
    """
    source = as_source(data, where="data")
    master = as_teacher(teacher)
    if isinstance(master, Targets):
        raise ConfigError(problem("teacher", "these are targets already", "give the teacher they were made from"))
    if getattr(master, "shard", False) and processes() > 1:
        mend = "leave `shard` out of the teacher, or ask it while training, without targets"
        raise ConfigError(problem("teacher", "in parts, all processes must ask it the same", mend))
    mine = _part(shard) if shard is not None else (number(), processes())
    check_views(views, augment)
    engine = Engine(device=device)
    batches = Batches(
        source, batch_size=min(batch_size, len(source)), shuffle=False, augment=augment,
        augment_seed=augment_seed(seed), workers=workers,
    )  # fmt: skip
    counting = Counted(tokens, ignore) if tokens is not None else None
    names = tuple(dict.fromkeys(outputs))
    try:
        answers, example = _opened(master, names, batches, engine)
        plan = Plan(
            teacher={"words": master.words, **master.identity(), "form": _lasting(master.form)},
            data={**data_identity(source), "tokens": counting._asdict() if counting else None},
            augmentation=augmentation_identity(batches),
            outputs=_outputs(answers, names, codec, counting, example),
            seed=seed,
            views=views,
            batch_size=batches.batch_size,
            made_by={name: value for name, value in environment().items() if name in _VERSIONS},
        )
        constants = {name: answers[name].detach().cpu() for name in names if name.endswith("@weight")}
        store = Store.create(out, _sized(plan), source.ids, constants)
        with halting() as halt:
            for line in _fill(
                store, mine, Work(master, batches, engine, counting, progress and (shard is not None or first())), halt
            ):
                say(line)
    finally:
        master.close()
    if shard is None:
        wait()
    return Targets(out, teacher=master, verify=False)  # sealing has read every file


class Work(NamedTuple):
    """What fills a store."""

    teacher: Teaching
    batches: Batches
    engine: Engine
    tokens: Counted | None
    show: bool


def complete(targets: Targets, source: Source, augment: Augmentation | None, names: Iterable[str], **how: Any) -> None:
    """Add what targets lack of these samples and names, with the live teacher that came with them."""
    plan = targets.store.plan
    new = sorted(name for name in names if name not in targets.store.names)
    if not new and not targets.store.covers(source.ids, range(plan.views), stored(targets, names)):
        return
    tokens = plan.data["tokens"] or {"column": None, "ignore": 0}
    remember(
        targets.live, _whole(targets, source), out=targets.path, views=plan.views,
        outputs=[*plan.outputs, *targets.store.constants, *new],
        codec={name: kept.codec for name, kept in plan.outputs.items()}, augment=augment, tokens=tokens["column"],
        ignore=tokens["ignore"], seed=plan.seed, batch_size=plan.batch_size, **how,
    )  # fmt: skip
    targets.reopen()


def _whole(targets: Targets, source: Source) -> Source:
    """The samples that the targets are for, of which `source` may be a part.

    Raises:
        DataError: some of them are not in the data at hand.
    """
    root = whole(source)
    held = torch.isin(root.ids, targets.store.ids)
    if int(held.sum()) != len(targets.store.ids) or not bool(torch.isin(source.ids, targets.store.ids).all()):
        wrong = "they were made for other samples of this data, so they cannot be completed here"
        mend = "remember all samples that are trained on in one call, in a new folder"
        raise DataError(problem(str(targets.path), wrong, mend))
    return root.subset(held.nonzero().flatten())


def _part(shard: tuple[int, int]) -> tuple[int, int]:
    index, parts = shard
    if not 1 <= index <= parts:
        raise ConfigError(problem("shard", f"{index}/{parts} is none", "count from 1/n to n/n"))
    return index - 1, parts


def _opened(master: Teaching, names: Sequence[str], batches: Batches, engine: Engine) -> tuple[Named, Named]:
    """The answers to some real samples, and those samples."""
    some = torch.arange(min(_SAMPLES, batches.samples))
    samples = engine.batch(next(batches.read([some], 0)))
    example = {name: value[:2] for name, value in samples.items()}
    applied = batches.source.normalize
    answers = master.open(names, example, applied=applied, device=engine.device, samples=samples)
    return answers, example


def _lasting(form: Mapping[str, Any]) -> dict[str, Any]:
    """How a teacher computes, without the figures that were measured: those may differ in the last digit."""
    return {name: value for name, value in form.items() if not isinstance(value, float | Mapping | list | tuple)}


def _outputs(
    answers: Named, names: Sequence[str], codec: Codecs, tokens: Counted | None, example: Named
) -> dict[str, Output]:
    """How each output is kept. What has a row for each token of the mask is kept by tokens."""
    mask = tokens.mask(example) if tokens is not None else None
    kept = {}
    for name in names:
        if name.endswith("@weight"):
            continue
        value = answers[name]
        if value.dim() == 0 or len(value) != len(example["id"]):
            wrong = f"{name!r} is {tuple(value.shape)} for {len(example['id'])} samples"
            raise DataError(problem("outputs", wrong, "keep outputs with one row a sample"))
        by_tokens = mask is not None and value.shape[:2] == mask.shape
        chosen = codec.get(name, "float16") if isinstance(codec, Mapping) else codec
        how: AnyCodec = Dense(dtype=chosen) if isinstance(chosen, str) else chosen  # type: ignore[arg-type] # it refuses
        shape = tuple(value.shape[2:] if by_tokens else value.shape[1:])
        kept[name] = Output(codec=how, shape=shape, dtype=str(value.dtype).removeprefix("torch."), tokens=by_tokens)
    if isinstance(codec, Mapping) and (strange := [name for name in codec if name not in names]):
        raise ConfigError(problem("codec", f"{strange[0]!r} is not kept", nearest(strange[0], names)))
    return kept


def _sized(plan: Plan) -> Plan:
    """The plan with files of a good size: whole batches, of at most 8,192 samples and about 64 MB."""
    widest = max((output.bytes for output in plan.outputs.values()), default=1)
    fit = min(_SHARD_ROWS, _SHARD_BYTES // max(widest, 1)) // plan.batch_size
    return dataclasses.replace(plan, rows=max(fit, 1) * plan.batch_size)


def _fill(store: Store, part: tuple[int, int], work: Work, halt: Callable[[], str | None]) -> Iterator[str]:
    """Make what is missing of this part, and seal the store once nothing is. Yields what is worth a line."""
    pieces = store.missing(part)
    for file, fault in store.damaged.items():
        yield f"{store.path / file} is damaged ({fault}); it is made again"
    total = sum(len(store.rows_of(piece)) for piece in pieces)
    done = 0
    with bar(f"remembering in {store.path.name}", total, show=work.show) as advance:
        for piece in pieces:
            gathered: dict[str, list[Tensor]] = {}
            for batch in _batches(store, piece, work):
                for name, value in _answered(store, batch, piece, work).items():
                    gathered.setdefault(name, []).append(value)
                done += len(batch["id"])
                advance(done, f"view {piece.view + 1}")
                _leave(halt())
            rows = {name: torch.cat(values) for name, values in gathered.items()}
            lengths = rows.pop("lengths", None)
            store.write(piece, rows, lengths)
    left = store.covers(store.ids, range(store.plan.views))  # what is there; sealing reads it
    if left:
        yield f"left to the other parts: {'; '.join(left)}. The last one to end seals the targets"
    elif not store.sealed:
        store.seal()


def _batches(store: Store, piece: Piece, work: Work) -> Iterator[Named]:
    """The batches of a piece, cut in the same places however it is come by."""
    ids = store.rows_of(piece)
    order = work.batches.source.ids.argsort()
    positions = order[torch.searchsorted(work.batches.source.ids[order], ids)]
    return map(work.engine.batch, work.batches.read(torch.split(positions, work.batches.batch_size), piece.view))


def _answered(store: Store, batch: Named, piece: Piece, work: Work) -> dict[str, Tensor]:
    """The rows to keep of one batch, and the lengths of its samples where tokens are kept."""
    signal = work.teacher(batch)
    rows = {}
    mask = work.tokens.mask(batch) if work.tokens is not None else None
    for name in piece.outputs:
        kept, value = store.plan.outputs[name], signal[name].detach()
        lead = tuple(mask.shape) if mask is not None and kept.tokens else (len(batch["id"]),)
        if tuple(value.shape) != (*lead, *kept.shape):
            wrong = f"{name!r} is {tuple(value.shape)} for one batch, {(*lead, *kept.shape)} was to come"
            mend = "give every sample one shape (pad texts to a fixed length), or say with `tokens` which tokens count"
            raise DataError(problem("outputs", wrong, mend))
        rows[name] = (value[mask] if mask is not None and kept.tokens else value).cpu()
    if mask is not None:
        rows["lengths"] = mask.sum(1).cpu()
    return rows


def _leave(reason: str | None) -> None:
    """End as a signal asked; whole files stay, and the same call goes on from them."""
    if reason is None:
        return
    if EXIT_CODES[reason] == 128 + signals.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(EXIT_CODES[reason])
