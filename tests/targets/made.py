"""Small stores for the tests."""

import torch

from limbeck.targets import Dense, Output, Plan, Sampled, Store, TopK

IDS = torch.tensor([9, 2, 40, 11, 7, 100, 3, 55, 23, 8, 61])
OUTPUTS = {
    "logits": Output(codec=Dense(dtype="float32"), shape=(5,)),
    "Layer/3@in": Output(codec=Dense(dtype="int8"), shape=(2, 3, 3)),
    "top": Output(codec=TopK(k=2, dtype="float32"), shape=(5,)),
    "words": Output(codec=TopK(k=3), shape=(12,), tokens=True),
    "hidden": Output(codec=Dense(dtype="bfloat16"), shape=(4,), tokens=True),
    "drawn": Output(codec=Sampled(draws=4), shape=(12,), tokens=True),
}
CONSTANTS = {"hidden@weight": torch.arange(48.0).view(12, 4)}


def plan(**changes):
    settings = {
        "teacher": {"class": "Net", "weights": "abc", "normalize": {"mean": [0.5, 0.25]}},
        "data": {"sha256": "def"},
        "augmentation": {"crop": 4, "flip": True},
        "outputs": OUTPUTS,
        "seed": 3,
        "views": 2,
        "rows": 4,
        "batch_size": 4,
        "made_by": {"torch": "2.13.0"},
    }
    return Plan(**settings | changes)


def lengths(ids):
    return ids % 4  # some samples have no token that counts


def tokens(ids):
    """(id, place) of every token that counts."""
    return [(int(i), t) for i in ids for t in range(int(i) % 4)]


def value(name, view, *at, shape):
    """What the teacher says: a function of output, view, sample and token alone."""
    seed = hash((view, *at)) % 2**31 + sum(name.encode())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def answers(store_plan, name, view, ids):
    output = store_plan.outputs[name]
    keys = tokens(ids) if output.tokens else [(int(i),) for i in ids]
    rows = [value(name, view, *key, shape=output.shape) for key in keys]
    return torch.stack(rows) if rows else torch.zeros((0, *output.shape))


def fill(store, pieces=None):
    for piece in store.missing() if pieces is None else pieces:
        ids = store.rows_of(piece)
        store.write(piece, {n: answers(store.plan, n, piece.view, ids) for n in piece.outputs}, lengths(ids))


def made(path, *, seal=True, **changes):
    store = Store.create(path, plan(**changes), IDS, CONSTANTS)
    fill(store)
    if seal:
        store.seal()
    return store


def content(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
