from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from limbeck.core.errors import ConfigError, DataError
from limbeck.core.normalize import Normalize
from limbeck.data import ArraySource, DatasetSource, Source, as_source, check_labels, hold_out, split

X, Y = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 3
ALL = torch.arange(12)


class Pairs(Dataset):
    def __init__(self, x=X, y=Y, wrap=lambda x, y: (x, y)):
        self.x, self.y, self.wrap = x, y, wrap

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.wrap(self.x[i], self.y[i])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(X)


def batches_of(x, y, size=5):
    return [(torch.tensor(x[i : i + size]), torch.tensor(y[i : i + size])) for i in range(0, len(x), size)]


FORMS = {
    "arrays": lambda: (X, Y),
    "tensors": lambda: (torch.tensor(X), torch.tensor(Y)),
    "label list": lambda: (X, Y.tolist()),
    "dict": lambda: {"x": X, "labels": Y},
    "dict and label": lambda: ({"x": X}, Y),
    "tensor dataset": lambda: TensorDataset(torch.tensor(X), torch.tensor(Y)),
    "dataset": Pairs,
    "dict dataset": lambda: Pairs(wrap=lambda x, y: {"x": x, "target": y}),
    "loader": lambda: DataLoader(Pairs(), batch_size=5, shuffle=True),
    "list of batches": lambda: batches_of(X, Y),
    "list of samples": lambda: [(torch.tensor(x), int(y)) for x, y in zip(X, Y, strict=True)],
    "source": lambda: ArraySource((X, Y)),
    "big-endian and reversed": lambda: (X[::-1].astype(">f8")[::-1], Y.astype(">i4")),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_columns(make):
    source = as_source(make(), classes=3)
    assert isinstance(source, Source)
    assert len(source) == 12
    assert source.classes == 3
    assert torch.equal(source.ids, ALL)
    got = source.fetch(torch.tensor([7, 0, 7]))
    assert set(got) == {"x", "y"}
    assert torch.equal(got["x"], torch.tensor(X[[7, 0, 7]]).float())
    assert torch.equal(got["y"], torch.tensor(Y[[7, 0, 7]]))
    assert got["y"].dtype == torch.int64


def test_inputs_are_named_by_place_or_by_key():
    assert set(as_source(((X, X[:, :1]), Y)).fetch(ALL)) == {"x0", "x1", "y"}
    assert set(as_source((X, X, Y)).fetch(ALL)) == {"x0", "x1", "y"}
    assert set(as_source({"a": X, "b": X, "target": Y}).fetch(ALL)) == {"a", "b", "y"}
    assert set(as_source(X).fetch(ALL)) == set(as_source((X, None)).fetch(ALL)) == {"x"}
    assert set(as_source(Pairs(wrap=lambda x, y: ((x, x), y))).fetch(ALL)) == {"x0", "x1", "y"}
    assert set(as_source(Pairs(wrap=lambda x, y: torch.tensor(x))).fetch(ALL)) == {"x"}


def test_bytes_with_four_axes_are_images_and_stored_rows_first():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    for given_ in (image, image.transpose(0, 3, 1, 2)):
        source = as_source((given_, [0, 1, 0, 1]))
        assert source.image
        assert torch.equal(source.fetch(torch.arange(4))["x"], torch.from_numpy(image))
    assert not as_source(X).image
    with pytest.raises(DataError, match="no image layout"):
        as_source(np.zeros((4, 5, 6, 7), np.uint8))


def test_labels_soft_missing_and_unlabelled():
    soft = as_source((X, np.full((12, 4), 0.25)))
    assert (soft.classes, soft.labels) == (4, None)
    assert soft.fetch(ALL)["y"].dtype == torch.float32
    some = as_source((X, np.where(Y == 0, -1, Y)))
    assert some.classes == 3
    assert int(some.labels.min()) == -1
    assert as_source((X, np.full(12, -1))).classes is None
    assert as_source(X).labels is None
    assert as_source((X, Y.astype(bool))).classes == 2
    tokens = np.full((12, 5), -100)
    assert as_source((X, tokens)).fetch(ALL)["y"].shape == (12, 5)


def bad(array, row, value):
    array = array.copy()
    array[row] = value
    return array


REFUSED = {
    "empty": (lambda: (X[:0], Y[:0]), "no samples"),
    "lengths": (lambda: (X, Y[:5]), "x has 12, y has 5"),
    "nan": (lambda: (bad(X, 7, np.nan), Y), "'x' is NaN or infinite in row 7"),
    "infinite": (lambda: {"left": bad(X, 3, np.inf), "y": Y}, "'left' is NaN or infinite in row 3"),
    "float labels": (lambda: (X, Y + 0.5), "not integers"),
    "negative label": (lambda: (X, bad(Y, 4, -2)), "-2 in row 4"),
    "large label": (lambda: (X, bad(Y, 4, 9)), "9 in row 4, of 3 classes"),
    "objects": (lambda: (np.array([object()] * 12), Y), "not numbers"),
    "words": (lambda: (X, ["cat"] * 12), "not numbers"),
    "ragged": (lambda: ([[1.0], [1.0, 2.0]], Y[:2]), "ragged"),
    "two labels": (lambda: {"x": X, "y": Y, "label": Y}, "all name the label"),
    "labels twice": (lambda: ({"x": X, "y": Y}, Y), "given twice"),
    "reserved": (lambda: {"x": X, "id": Y}, "'id'"),
    "no input": (lambda: {"y": Y}, "no input column"),
    "soft width": (lambda: (X, np.ones((12, 2))), "2 columns, of 3 classes"),
    "one number": (lambda: (X, 3), "one number"),
    "nothing": (lambda: None, "holds no data"),
    "text": (lambda: "data.npz", "holds no data"),
    "number list": (lambda: [1.0, 2.0], "neither batches nor samples"),
    "empty list": (list, "list is empty"),
    "uneven list": (
        lambda: [(torch.ones(2, 3), torch.zeros(2)), (torch.ones(2, 4), torch.zeros(2))],
        "cannot be joined",
    ),
    "mixed list": (lambda: [(torch.ones(2, 3), torch.zeros(2)), torch.ones(2, 4)], "different columns"),
    "generator": (lambda: (batch for batch in [X]), "read only once"),
    "set": (lambda: {1, 2}, "no stable ids"),
    "iterable dataset": (Stream, "no stable ids"),
    "stream loader": (lambda: DataLoader(Stream()), "IterableDataset"),
    "weighted loader": (lambda: DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 12, 12)), "would be lost"),
    "unbatched loader": (lambda: DataLoader(Pairs(), batch_size=None), "rule of its own"),
    "empty dataset": (lambda: Pairs(X[:0], Y[:0]), "empty"),
    "uneven dataset": (lambda: Pairs([np.ones(2), np.ones(3)], [0, 1]), "cannot be batched"),
    "dataset of words": (lambda: Pairs(wrap=lambda x, y: ("a word", int(y))), "not numbers"),
    "dataset nan": (lambda: Pairs(bad(X, 0, np.nan)), "NaN or infinite in row 0"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_what_contradicts_itself_is_refused_with_a_way_to_mend_it(make, said):
    def read():
        source = as_source(make(), where="val", classes=3)
        source.fetch(torch.arange(len(source)))

    with pytest.raises(DataError, match=said) as caught:
        read()
    assert "To mend" in str(caught.value)
    assert str(caught.value).startswith("val")


def test_a_dataset_is_checked_as_it_is_read_and_the_row_is_its_own():
    source = as_source(Pairs(bad(X, 9, np.nan)))
    source.fetch(torch.tensor([0, 1]))
    with pytest.raises(DataError, match="row 9"):
        source.fetch(torch.tensor([1, 9]))


def test_check_labels_names_the_first_row_that_the_outputs_cannot_hold():
    check_labels(as_source((X, Y)), 3, "student")
    with pytest.raises(DataError, match="student: label `y` is 2 in row 2, of 2 classes"):
        check_labels(as_source((X, Y)), 2, "student")
    check_labels(as_source(X), 2, "student")


def test_subsets_keep_the_ids_of_what_they_are_part_of():
    for dataset in (Pairs(), TensorDataset(torch.tensor(X), torch.tensor(Y))):
        part = as_source(Subset(Subset(dataset, [8, 6, 4, 2]), [3, 0]))
        assert part.ids.tolist() == [2, 8]
        assert torch.equal(part.fetch(torch.tensor([1]))["x"], torch.tensor(X[[8]]).float())
    loader = DataLoader(Pairs(), batch_size=2, sampler=SubsetRandomSampler([5, 1]))
    assert as_source(loader).ids.tolist() == [1, 5]
    with pytest.raises(DataError, match="12 samples"):
        as_source((X, Y)).subset(torch.tensor([12]))
    with pytest.raises(DataError, match="no samples"):
        as_source((X, Y)).subset(torch.tensor([], dtype=torch.int64))


def test_a_loader_keeps_its_collate_function_and_workers():
    def collate(samples):
        return {
            "twice": torch.stack([torch.tensor(x) * 2 for x, _ in samples]),
            "y": torch.tensor([y for _, y in samples]),
        }

    source = as_source(DataLoader(Pairs(), batch_size=4, collate_fn=collate, num_workers=1))
    assert isinstance(source, DatasetSource)
    assert source.workers == 1
    (batch,) = source.read([torch.tensor([3, 1])])
    assert torch.equal(batch["twice"], torch.tensor(X[[3, 1]] * 2).float())
    short = as_source(DataLoader(Pairs(), batch_size=4, collate_fn=lambda samples: torch.ones(1, 2)))
    with pytest.raises(DataError, match="1 rows for 2 samples"):
        short.fetch(torch.tensor([0, 1]))


def test_labels_beside_a_dataset_are_used_only_where_samples_agree():
    honest, lying = Pairs(), Pairs(wrap=lambda x, y: (x, 0))
    honest.targets = lying.targets = Y.tolist()
    honest.classes = ["a", "b", "c"]
    assert as_source(honest).labels.tolist() == Y.tolist()
    assert as_source(honest).class_names == ("a", "b", "c")
    assert as_source(lying).labels is None


def test_fingerprints_follow_content():
    one = as_source((X, Y)).fingerprint()
    assert one == as_source((torch.tensor(X), torch.tensor(Y))).fingerprint()
    assert len(one) == 64
    assert one != as_source((bad(X, 11, 0.0), Y)).fingerprint()
    assert one != as_source((X, bad(Y, 11, 0))).fingerprint()
    assert one != as_source((X, Y), normalize=Normalize(mean=(0.0,), std=(1.0,))).fingerprint()
    parts = [as_source((X, Y)).subset(torch.tensor(i)).fingerprint() for i in ([0, 1], [1, 0], [0, 1])]
    assert parts[0] == parts[2] != parts[1]
    assert as_source(Pairs()).fingerprint() == as_source(Pairs()).fingerprint() != as_source(Pairs(X + 1)).fingerprint()


def test_a_datasets_own_words_count_in_its_fingerprint_and_its_address_does_not():
    class Worded(Pairs):
        def __repr__(self):
            return f"Worded({self.said}) at {id(self):#x}"

    first, second, other = Worded(), Worded(), Worded()
    first.said, second.said, other.said = "crop", "crop", "flip"
    one, same, another = (as_source(dataset).fingerprint() for dataset in (first, second, other))
    assert one == same != another


def test_a_source_keeps_its_own_normalisation():
    norm = Normalize(mean=(0.0,), std=(1.0,))
    source = ArraySource((X, Y), normalize=norm)
    assert as_source(source, normalize=norm) is source
    with pytest.raises(DataError, match="own normalisation"):
        as_source(source, normalize=Normalize(mean=(1.0,), std=(1.0,)))


@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5), share=st.floats(0.01, 0.99), seed=st.integers(0, 99)
)
@settings(max_examples=80)
def test_splits_are_disjoint_whole_stratified_and_the_same_again(counts, share, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    source = as_source((np.zeros((len(y), 1)), y))
    rest, held = split(source, share, seed)
    assert sorted(rest.ids.tolist() + held.ids.tolist()) == list(range(len(y)))
    assert torch.equal(held.ids, split(source, share, seed)[1].ids)
    assert torch.equal(held.labels, torch.tensor(y)[held.ids])
    assert len(held) == min(max(round(share * len(y)), 1), len(y) - 1)
    got = Counter(held.labels.tolist())
    for klass, count in enumerate(counts):
        assert abs(got[klass] - count * len(held) / len(y)) <= len(counts)
        if len(rest) >= 2 * len(counts) and len(held) <= len(y) / 2:
            assert abs(got[klass] - count * len(held) / len(y)) < 1


def test_splits_differ_by_seed_and_go_without_labels():
    source = as_source(np.zeros((50, 1)))
    assert split(source, 0.3, 0)[1].ids.tolist() != split(source, 0.3, 1)[1].ids.tolist()
    rare = as_source((X, bad(np.zeros(12, int), 3, 1)))
    assert len(hold_out(rare, 4)[1]) == 4


def test_impossible_splits_are_refused():
    with pytest.raises(ConfigError, match="share"):
        split(as_source((X, Y)), 1.0)
    with pytest.raises(DataError, match="at least two"):
        split(as_source((X[:1], Y[:1])))


def test_importing_data_brings_in_nothing_heavy():
    heavy = "{'sklearn', 'PIL', 'torchvision', 'pydantic', 'pandas'}"
    code = f"import torch, sys; had = set(sys.modules); import limbeck.data; print({heavy} & (set(sys.modules) - had))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
