"""Gathering is plain indexing, whatever the order, the views, the files and the process."""

import pickle
import warnings
from pathlib import Path

import made
import pytest
import torch

from limbeck.core.errors import CheckpointError, DataError, ShapeError
from limbeck.targets import Dense, Origin, Output, Store, scatter


def expected(store, name, ids, views):
    """One row at a time, straight from the teacher through the codec."""
    output, rows = store.plan.outputs[name], []
    for i, v in zip(ids.tolist(), views.tolist(), strict=True):
        one = torch.tensor([i])
        x = made.answers(store.plan, name, v, one)
        n = len(x)
        at = Origin(name, store.plan.seed, v, one.expand(n), torch.arange(n) if output.tokens else None)
        rows.append(output.codec.decode(output.codec.encode(x, at)))
    return {f"{name}.{key}" if key else name: torch.cat([row[key] for row in rows]) for key in rows[0]}


def check(store, ids, views):
    each = views if isinstance(views, torch.Tensor) else torch.full(ids.shape, views)
    found = store.gather(ids, views)
    assert set(found) == set(store.names)
    for name, output in store.plan.outputs.items():
        for key, x in expected(store, name, ids, each).items():
            assert found[key].dtype == x.dtype
            assert torch.equal(found[key], x), key
        if output.tokens:
            assert torch.equal(found[f"{name}.lengths"], made.lengths(ids))
    assert torch.equal(found["hidden@weight"], made.CONSTANTS["hidden@weight"])


def test_gather_is_indexing_for_any_order_repeats_and_views(tmp_path):
    store = made.made(tmp_path / "s")
    g = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 30):
        ids = made.IDS[torch.randint(len(made.IDS), (count,), generator=g)]
        check(store, ids, 1)
        check(store, ids, torch.randint(2, (count,), generator=g))
    check(store, torch.tensor([7, 7, 2]), 0)  # one file
    check(store, torch.tensor([40]), 0)  # no token at all


def test_an_empty_batch_gives_empty_tensors(tmp_path):
    found = made.made(tmp_path / "s").gather(torch.empty(0, dtype=torch.int64), 0)
    assert found["logits"].shape == (0, 5)
    assert found["words.ids"].shape == (0, 3)
    assert found["words.lengths"].shape == (0,)


@pytest.mark.parametrize("rows", [1, 3, 11, 50])
def test_the_size_of_blocks_changes_nothing(tmp_path, rows):
    check(made.made(tmp_path / "s", rows=rows), made.IDS.flip(0), torch.arange(11) % 2)


def test_names_choose_what_is_read(tmp_path):
    store = made.made(tmp_path / "s")
    ids = made.IDS[:3]
    assert set(store.gather(ids, 0, ["top"])) == {"top.ids", "top.log_probs", "top.log_tail"}
    assert set(store.gather(ids, 0, ["top.ids", "hidden@weight"])) == {"top.ids", "hidden@weight"}
    assert set(store.gather(ids, 0, ["words.lengths"])) == {"words.lengths"}
    with pytest.raises(DataError, match=r"'logit'(?s:.)*did you mean 'logits'"):
        store.gather(ids, 0, ["logit"])


def test_what_is_not_held_is_named(tmp_path):
    store = made.made(tmp_path / "s")
    for strange in (1, 10, 101, -5):
        with pytest.raises(DataError, match=f"no sample with the id {strange}\\."):
            store.gather(torch.tensor([9, strange]), 0)
    for views in (2, torch.tensor([0, 2]), torch.tensor([0, -1]), -1):
        with pytest.raises(DataError, match=r"no view (2|-1), only 0 to 1"):
            store.gather(torch.tensor([9, 2]), views)
    with pytest.raises(DataError, match="int64"):
        store.gather(torch.tensor([9.0]), 0)
    with pytest.raises(ShapeError, match="one view for each id"):
        store.gather(torch.tensor([9, 2]), torch.tensor([0]))


def test_files_are_mapped_and_not_read(tmp_path):
    plan = made.plan(outputs={"big": Output(codec=Dense(dtype="float32"), shape=(4096,))}, views=1, rows=2000)
    store = Store.create(tmp_path / "s", plan, torch.arange(2000))
    store.write(store.missing()[0], {"big": torch.ones(2000, 4096)})

    def own():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    before = own()
    assert store.gather(torch.tensor([5]), 0)["big"].sum() == 4096
    assert own() - before < 8000  # kB, of 32,000 in the file


def test_an_open_store_can_be_pickled(tmp_path):
    store = made.made(tmp_path / "s")
    here = store.gather(made.IDS, 1)
    again = pickle.loads(pickle.dumps(store)).gather(made.IDS, 1)
    assert all(torch.equal(again[name], x) for name, x in here.items())
    assert len(pickle.dumps(store)) < 20_000


class Rows(torch.utils.data.Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(made.IDS)

    def __getitem__(self, index):
        return self.store.gather(made.IDS[index : index + 1], 1, ["logits"])["logits"][0]


def test_an_open_store_goes_into_forked_workers(tmp_path):
    store = made.made(tmp_path / "s")
    here = store.gather(made.IDS, 1, ["logits"])["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
        loader = torch.utils.data.DataLoader(Rows(store), 3, num_workers=2, multiprocessing_context="fork")
        assert torch.equal(torch.cat(list(loader)), here)


def test_closing_lets_go_and_what_was_gathered_stays(tmp_path):
    with made.made(tmp_path / "s") as store:
        found = store.gather(made.IDS, 0)
    before = found["logits"].clone(), found["hidden@weight"].clone()
    for file in (tmp_path / "s").rglob("*.safetensors"):
        file.unlink()
    assert torch.equal(found["logits"], before[0])
    assert torch.equal(found["hidden@weight"], before[1])


def test_a_missing_file_is_named_when_it_is_read(tmp_path):
    store = made.made(tmp_path / "s")
    (tmp_path / "s/logits/0001-00002.safetensors").unlink()
    store.gather(made.IDS, 0)
    with pytest.raises(CheckpointError, match=r"0001-00002.safetensors.*missing"):
        store.gather(made.IDS, 1)


def test_scatter_puts_tokens_at_their_places():
    mask = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    flat = torch.arange(8.0).view(4, 2)
    out = scatter(flat, torch.tensor([2, 0, 2]), mask)
    assert torch.equal(out[mask], flat)
    assert out[~mask].abs().sum() == 0
    with pytest.raises(ShapeError, match="sample 1 of the batch has 0 tokens that count, 1 are stored"):
        scatter(flat, torch.tensor([2, 1, 1]), mask)
