from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.core.errors import ConfigError, DataError
from limbeck.core.normalize import Normalize
from limbeck.core.seeds import derive
from limbeck.data import ArraySource, Augment, Batches, Transform, as_source
from limbeck.data.mix import Mixing, draw_mix, partners

NORM = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def pictures(n=23, **settings):
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, 8, 6, 3), generator=g, dtype=torch.uint8)
    return ArraySource((x, torch.arange(n) % 4), normalize=NORM, **settings)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, source):
        self.x, self.y = source.columns["x"], source.columns["y"]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], int(self.y[i])


def equal(one, two):
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


@given(n=st.integers(1, 40), size=st.integers(1, 40), epoch=st.integers(0, 3), seed=st.integers(0, 3))
@settings(max_examples=40)
def test_an_epoch_holds_every_sample_once_and_is_the_same_again(n, size, epoch, seed):
    source = ArraySource((torch.arange(n).float().view(-1, 1), torch.zeros(n, dtype=torch.int64)))
    if size > n:
        with pytest.raises(DataError, match="batch_size"):
            Batches(source, batch_size=size)
        return
    batches = Batches(source, batch_size=size, seed=seed)
    held = list(batches.epoch(epoch))
    assert len(held) == len(batches)
    assert sorted(torch.cat([batch["id"] for batch in held]).tolist()) == list(range(n))
    assert all(torch.equal(batch["id"].float(), batch["x"][:, 0]) for batch in held)
    assert all(batch["valid"].all() and len(batch["valid"]) == len(batch["id"]) for batch in held)
    assert all(map(equal, held, Batches(source, batch_size=size, seed=seed).epoch(epoch)))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [Batches(pictures(), batch_size=5, seed=s).order(e).tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert Batches(pictures(), batch_size=5, shuffle=False).order(7).tolist() == list(range(23))


@given(start=st.integers(0, 6))
@settings(max_examples=7)
def test_start_skips_batches_and_changes_none(start):
    batches = Batches(pictures(), batch_size=5, augment=Augment(crop=2, flip=True))
    rest, whole = list(batches.epoch(2, start)), list(batches.epoch(2))
    assert len(rest) == max(len(whole) - start, 0)
    assert all(map(equal, rest, whole[start:]))


def test_skipped_batches_are_not_read():
    class Counting(ArraySource):
        reads = 0

        def fetch(self, index):
            Counting.reads += 1
            return super().fetch(index)

    batches = Batches(Counting(torch.rand(20, 2)), batch_size=5)
    list(batches.epoch(0, start=3))
    assert Counting.reads == 1


def test_the_view_is_the_epoch_or_its_rest():
    how = Augment(crop=2, flip=True)

    def by_id(batches, epoch):
        held = list(batches.epoch(epoch))
        return torch.cat([b["x"] for b in held])[torch.cat([b["id"] for b in held]).argsort()]

    source = pictures()
    endless, two = (Batches(source, batch_size=5, augment=how, views=v) for v in (None, 2))
    assert torch.equal(by_id(two, 3), by_id(endless, 1))
    assert not torch.equal(by_id(endless, 3), by_id(endless, 1))
    other_size = Batches(source, batch_size=7, augment=how, shuffle=False)
    assert torch.equal(by_id(other_size, 3), by_id(endless, 3))


@pytest.mark.parametrize("how", [None, Augment(crop=2, flip=True, cutout=3)])
def test_worker_processes_change_nothing(how):
    source = pictures()
    dataset = as_source(Pairs(source), normalize=NORM)
    assert dataset.image
    held = [
        list(Batches(s, batch_size=6, augment=how, workers=w).epoch(1))
        for s, w in ((source, 0), (dataset, 0), (dataset, 2))
    ]
    for other in held[1:]:
        assert len(other) == len(held[0])
        assert all(map(equal, held[0], other))


def test_reading_with_workers_leaves_the_global_generator_alone():
    dataset = as_source(Pairs(pictures()))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(Batches(dataset, batch_size=12, workers=1).epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_float_features_are_normalised_and_integers_left_alone():
    source = ArraySource({"a": torch.ones(4, 2), "tokens": torch.ones(4, 3, dtype=torch.int64)},
                         normalize=Normalize(mean=(0.5, 0.0), std=(0.5, 2.0)))  # fmt: skip
    (batch,) = Batches(source, batch_size=4).epoch(0)
    assert torch.allclose(batch["a"], torch.tensor([[1.0, 0.5]]).expand(4, 2))
    assert torch.equal(batch["tokens"], torch.ones(4, 3, dtype=torch.int64))


def test_float_images_are_augmented_as_bytes_are():
    source, how = pictures(), Augment(crop=2, flip=True)
    floats = ArraySource((source.columns["x"].permute(0, 3, 1, 2).float() / 255, source.labels), normalize=NORM)
    for one, two in zip(*(Batches(s, batch_size=9, augment=how).epoch(0) for s in (source, floats)), strict=True):
        torch.testing.assert_close(one["x"], two["x"], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("how", [Augment(mixup=1.0), Augment(cutmix=1.0)])
def test_mixing_gives_soft_labels_and_mixed_images(how):
    plain, mixed = (Batches(pictures(), batch_size=23, augment=a) for a in (None, how))
    (one,), (two,) = plain.epoch(0), mixed.epoch(0)
    assert torch.equal(one["id"], two["id"])
    assert two["y"].shape == (23, 4)
    assert torch.allclose(two["y"].sum(1), torch.ones(23))
    assert not torch.equal(one["x"], two["x"])


def by_id(batches, epoch=0):
    held = list(batches.epoch(epoch))
    order = torch.cat([batch["id"] for batch in held]).argsort()
    return {name: torch.cat([batch[name] for batch in held])[order] for name in held[0]}


@pytest.mark.parametrize("how", [Augment(mixup=0.4, crop=2, flip=True), Augment(cutmix=1.0, hue=0.2, rotate=20.0)])
def test_a_mixed_sample_depends_on_no_batch(how):
    """Batch size, order, seed of the order, workers and where one goes on change nothing."""
    source = pictures()
    whole = by_id(Batches(source, batch_size=23, augment=how, augment_seed=7), 1)
    dataset = as_source(Pairs(source), normalize=NORM, classes=4)
    for size, workers, held in ((5, 0, source), (1, 0, source), (6, 0, dataset), (6, 2, dataset)):
        other = Batches(held, batch_size=size, seed=size, augment=how, augment_seed=7, workers=workers)
        assert equal(by_id(other, 1), whole)
    late = list(Batches(source, batch_size=5, augment=how, augment_seed=7).epoch(1, start=3))
    for batch in late:
        assert all(torch.equal(value, whole[name][batch["id"]]) for name, value in batch.items())


def test_a_mixed_sample_is_its_view_and_its_partners_view_in_their_shares():
    how = Augment(mixup=0.7, crop=2, flip=True)
    source = pictures().subset(torch.tensor([20, 3, 8, 9, 11, 2, 0]))
    (mixed,) = Batches(source, batch_size=7, augment=how, augment_seed=3, shuffle=False).epoch(4)
    (alone,) = Batches(source, batch_size=7, augment=Augment(crop=2, flip=True), augment_seed=3, shuffle=False).epoch(4)
    partner = partners(source.ids, seed=3, view=4)
    share = draw_mix(source.ids, Mixing("mixup", 0.7), seed=3, view=4, height=8, width=6).share
    weight = torch.tensor(share).view(-1, 1, 1, 1)
    want = alone["x"].double() * weight + alone["x"][partner].double() * (1 - weight)
    torch.testing.assert_close(mixed["x"].double(), want, atol=2e-6, rtol=1e-6)
    hot = torch.nn.functional.one_hot(alone["y"], 4).double()
    torch.testing.assert_close(mixed["y"].double(), hot * weight[:, 0, 0] + hot[partner] * (1 - weight[:, 0, 0]))


def test_partners_come_from_the_data_at_hand_and_the_digest_says_which():
    source, how = pictures(), Augment(mixup=1.0)
    part = source.subset(torch.arange(10))
    whole, some = (Batches(s, batch_size=5, augment=how, augment_seed=0) for s in (source, part))
    assert whole.partners_depend_on != some.partners_depend_on
    back = source.subset(torch.arange(22, -1, -1))
    assert Batches(back, batch_size=5, augment=how).partners_depend_on == whole.partners_depend_on
    assert Batches(source, batch_size=5, augment=Augment(flip=True)).partners_depend_on is None
    ids = torch.cat([b["id"] for b in some.epoch(0)])
    assert ids.max() < 10


def test_images_without_labels_are_mixed_too():
    source = ArraySource(pictures().columns["x"])
    (batch,) = Batches(source, batch_size=23, augment=Augment(cutmix=1.0)).epoch(0)
    assert "y" not in batch
    assert batch["x"].shape == (23, 3, 8, 6)


def test_every_batch_says_its_view():
    source, how = pictures(), Augment(flip=True)
    for views, want in ((None, 5), (2, 1)):
        for batch in Batches(source, batch_size=5, augment=how, views=views).epoch(5):
            assert torch.equal(batch["view"], torch.full((len(batch["id"]),), want))
            assert batch["view"].dtype == torch.int64
    for nothing in (None, Augment()):
        assert all(not b["view"].any() for b in Batches(source, batch_size=5, augment=nothing).epoch(5))


def test_the_seed_of_augmentation_is_its_own_or_comes_from_the_other():
    source, how = pictures(), Augment(crop=2, flip=True, brightness=0.3)
    one, two, third = (
        Batches(source, batch_size=5, seed=s, augment=how, augment_seed=a) for s, a in ((0, 7), (1, 7), (1, 8))
    )
    assert not torch.equal(one.order(0), two.order(0))
    assert torch.equal(by_id(one)["x"], by_id(two)["x"])
    assert not torch.equal(by_id(one)["x"], by_id(third)["x"])
    own = Batches(source, batch_size=5, seed=4, augment=how)
    assert own.augment_seed == derive(4, "augment")
    assert equal(by_id(own), by_id(Batches(source, batch_size=9, augment=how, augment_seed=derive(4, "augment"))))


def jig(image):
    image = image.roll(int(torch.randint(-2, 3, ())), 2)
    return image.flip(1) if np.random.rand() < 0.5 else image  # noqa: NPY002


def test_a_transform_is_replayed_whatever_the_batches_and_normalised_after():
    source = pictures()
    whole = by_id(Batches(source, batch_size=23, augment=Transform(jig), augment_seed=2), 3)
    for size, workers, held in ((4, 0, source), (6, 2, as_source(Pairs(source), normalize=NORM))):
        other = Batches(held, batch_size=size, seed=size, augment=Transform(jig), augment_seed=2, workers=workers)
        assert equal(by_id(other, 3), whole)
    raw = Transform(jig).apply(source.columns["x"], source.ids, seed=2, view=3)
    torch.testing.assert_close(whole["x"], NORM(raw.float() / 255))
    assert whole["x"].is_contiguous(memory_format=torch.channels_last)
    assert (whole["view"] == 3).all()
    floats = by_id(Batches(source, batch_size=6, augment=Transform(lambda x: jig(x) / 255), augment_seed=2), 3)
    torch.testing.assert_close(floats["x"], whole["x"], atol=2e-6, rtol=1e-6)


def test_a_transform_may_change_any_column_but_the_label():
    source = ArraySource({"a": torch.rand(6, 2), "b": torch.rand(6, 3), "y": torch.arange(6)})
    batches = Batches(source, batch_size=6, shuffle=False, augment=Transform(lambda x: x[:2] + 1, on="b"))
    (batch,) = batches.epoch(0)
    assert torch.equal(batch["a"], source.columns["a"])
    assert torch.equal(batch["b"], source.columns["b"][:, :2] + 1)
    for on, said in (("c", "no column 'c'"), ("y", "is the label")):
        with pytest.raises(DataError, match=said):
            Batches(source, batch_size=2, augment=Transform(lambda x: x, on=on))
    with pytest.raises(DataError, match="failed on sample 0: TypeError"):
        Batches(source, batch_size=2, augment=Transform(lambda x: x.split(), on="a"))


def test_colours_need_pixels_from_nought_to_one():
    for x, said in ((torch.randn(4, 3, 5, 5), "runs from"), (torch.rand(4, 2, 5, 5), "2 channels")):
        with pytest.raises(DataError, match=said):
            Batches(ArraySource(x), batch_size=2, augment=Augment(contrast=0.5))
    (batch,) = Batches(ArraySource(torch.rand(4, 3, 5, 5)), batch_size=4, augment=Augment(contrast=0.5)).epoch(0)
    assert 0 <= batch["x"].min() <= batch["x"].max() <= 1


def test_a_table_cannot_be_augmented():
    table = ArraySource((torch.rand(4, 3), torch.arange(4)))
    for how in (Augment(flip=True), Augment(mixup=0.2)):
        with pytest.raises(DataError, match="no input is an image"):
            Batches(table, batch_size=2, augment=how)
    assert len(Batches(table, batch_size=2, augment=Augment())) == 2


def test_mixing_needs_classes_and_one_label_a_sample():
    unlabelled = ArraySource((torch.rand(4, 3, 4, 4), torch.full((4,), -1)))
    with pytest.raises(DataError, match="number of classes"):
        Batches(unlabelled, batch_size=2, augment=Augment(mixup=1.0))
    two = ArraySource(((torch.rand(4, 3, 4, 4), torch.rand(4, 2)), torch.arange(4)))
    with pytest.raises(DataError, match="of one size alone"):
        Batches(two, batch_size=2, augment=Augment(cutmix=1.0))


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 24}])
def test_a_batch_size_that_does_not_suit_is_refused(bad):
    with pytest.raises(DataError, match="batch_size"):
        Batches(pictures(), **bad)


@pytest.mark.parametrize("bad", [{"workers": -1}, {"views": 0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError, match="workers"):
        Batches(pictures(), batch_size=2, **bad)
