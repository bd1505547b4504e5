from __future__ import annotations

import os
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.errors import ConfigError, DataError, ExtraError
from limbeck.core.normalize import Normalize
from limbeck.core.setting import as_plain, build
from limbeck.data import SOURCES, Digits, Npz

RNG = np.random.default_rng(0)


def arrays(n=20, **more):
    made = {}
    for part, size in (("train", n), ("test", 6)):
        made[f"{part}_images"] = RNG.integers(0, 256, (size, 5, 4, 3), dtype=np.uint8)
        made[f"{part}_labels"] = (np.arange(size) % 3).astype(np.uint8)
    return {**made, **more}


def saved(tmp_path, **held):
    path = tmp_path / "data.npz"
    np.savez(path, **held)
    return str(path)


def test_the_table_of_sources_knows_each_by_its_kind():
    for kind, cls in SOURCES.items():
        needed = {"images": {"path": "a", "size": 4}, "table": {"path": "a", "label": "b"}, "npz": {"path": "a"}}
        made = cls(**needed.get(kind, {}))
        assert made.kind == kind
        assert build(cls, as_plain(made), "recipe") == made


def test_digits_are_the_real_ones_split_by_class():
    held = pytest.importorskip("sklearn.datasets").load_digits()
    train, val, test = Digits().load()
    ids = torch.cat([part.ids for part in (train, val, test)])
    assert sorted(ids.tolist()) == list(range(1797))
    assert len(test) == round(0.3 * 1797)
    got = test.fetch(torch.arange(len(test)))
    assert got["x"].shape[1:] == (1, 8, 8)
    np.testing.assert_allclose(got["x"][:, 0].numpy(), held.images[test.ids.numpy()] / 16)
    assert got["y"].tolist() == held.target[test.ids.numpy()].tolist()
    share = {k: n / 1797 for k, n in Counter(held.target.tolist()).items()}
    assert all(abs(n - share[k] * len(test)) < 1 for k, n in Counter(test.labels.tolist()).items())


def test_digits_keep_as_many_labels_as_asked_for_and_every_sample():
    whole, some = Digits().load(), Digits(labelled=100).load()
    assert torch.equal(whole.train.ids, some.train.ids)
    assert torch.equal(whole.val.labels, some.val.labels)
    kept = some.train.labels >= 0
    assert int(kept.sum()) == 100
    assert torch.equal(some.train.labels[kept], whole.train.labels[kept])
    assert set(Counter(some.train.labels[kept].tolist()).values()) <= {9, 10, 11}
    assert some.train.classes == 10
    with pytest.raises(DataError, match="training samples"):
        Digits(labelled=1700).load()


@pytest.mark.parametrize("bad", [{"test_share": 0.0}, {"val_share": 1.0}, {"labelled": 0}])
def test_impossible_digits_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Digits(**bad)


def test_npz_holds_validation_out_of_train_and_leaves_test_whole(tmp_path):
    held = arrays(label_names=np.array(["a", "b", "c"]))
    norm = Normalize(mean=(0.5,) * 3, std=(0.2,) * 3)
    for val in (6, 0.3):
        train, held_out, test = Npz(path=saved(tmp_path, **held), val=val, normalize=norm).load()
        assert (len(train), len(held_out), len(test)) == (14, 6, 6)
        assert sorted(train.ids.tolist() + held_out.ids.tolist()) == list(range(20))
        assert Counter(held_out.labels.tolist()) == {0: 2, 1: 2, 2: 2}
        assert np.array_equal(train.fetch(torch.tensor([3]))["x"][0], held["train_images"][train.ids[3]])
        assert train.class_names == ("a", "b", "c")
        assert train.normalize == test.normalize == norm


def test_npz_holds_validation_out_of_test_for_a_model_that_has_seen_all_of_train(tmp_path):
    path = saved(tmp_path, **arrays())
    plain = Npz(path=path, val=6).load()
    for val, count in ((3, 3), (0.5, 3), (5, 5)):
        train, held_out, test = Npz(path=path, val=val, val_from="test").load()
        assert train.ids.tolist() == list(range(20))
        assert (len(held_out), len(test)) == (count, 6 - count)
        assert sorted(held_out.ids.tolist() + test.ids.tolist()) == list(range(6))
        assert held_out.classes == test.classes == 3
        pixels = plain.test.fetch(held_out.ids)["x"]
        assert torch.equal(held_out.fetch(torch.arange(count))["x"], pixels)
    drawn = {tuple(Npz(path=path, val=3, val_from="test", seed=s).load().val.ids.tolist()) for s in range(9)}
    assert len(drawn) > 1
    again = Npz(path=path, val=6, val_from="train").load()
    assert [part.fingerprint() for part in again] == [part.fingerprint() for part in plain]


def test_npz_refuses_to_hold_out_of_test_what_is_there_already_or_all_of_it(tmp_path):
    with pytest.raises(DataError, match="val is 6, test has 6"):
        Npz(path=saved(tmp_path, **arrays()), val=6, val_from="test").load()
    a = arrays()
    held = {**a, "val_images": a["test_images"], "val_labels": a["test_labels"]}
    with pytest.raises(DataError, match=r"val_images.*val_from"):
        Npz(path=saved(tmp_path, **held), val=3, val_from="test").load()


def test_npz_takes_other_names_a_validation_part_and_labels_in_a_column(tmp_path):
    a = arrays()
    held = {"x_train": a["train_images"], "y_train": a["train_labels"][:, None], "x_test": a["test_images"],
            "y_test": a["test_labels"], "x_val": a["test_images"], "y_val": a["test_labels"]}  # fmt: skip
    train, val, test = Npz(path=saved(tmp_path, **held)).load()
    assert (len(train), len(val), len(test)) == (20, 6, 6)
    assert train.classes == 3


def test_a_larger_limit_holds_the_smaller_one(tmp_path):
    path = saved(tmp_path, **arrays())
    small, large = (Npz(path=path, val=5, limit=n).load().train for n in (4, 9))
    assert (len(small), len(large)) == (4, 9)
    assert set(small.ids.tolist()) < set(large.ids.tolist())
    assert len(Npz(path=path, val=5, limit=99).load().train) == 15


def write(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    return str(path)


def npy(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    return str(tmp_path / "one.npy")


def cut_short(tmp_path):
    path = saved(tmp_path, **arrays())
    content = bytearray(Path(path).read_bytes())
    content[300:400] = bytes(100)
    return write(tmp_path, bytes(content))


without = {key: value for key, value in arrays().items() if key != "test_labels"}
FAULTS = {
    "missing": (lambda p: str(p / "no.npz"), "no such file"),
    "folder": (str, "this is a folder"),
    "empty": (lambda p: write(p, b""), "file is empty"),
    "no zip": (lambda p: write(p, b"hello"), "not a zip"),
    "npy": (npy, "not a zip"),
    "damaged": (cut_short, "damaged"),
    "missing key": (lambda p: saved(p, **without), "no 'test_labels'; it holds test_images"),
    "other keys": (lambda p: saved(p, pictures=np.ones(3)), "it holds pictures"),
    "objects": (lambda p: saved(p, **arrays(train_labels=np.array([{}] * 20))), "pickled objects are never loaded"),
    "float labels": (lambda p: saved(p, **arrays(train_labels=np.ones(20))), "'train_labels' is float64"),
    "label axes": (lambda p: saved(p, **arrays(train_labels=np.ones((20, 2), int))), "one axis is expected"),
    "length": (lambda p: saved(p, **arrays(train_labels=np.ones(9, int))), "differ in length"),
    "image layout": (lambda p: saved(p, **arrays(train_images=np.ones((20, 5, 5, 9), np.uint8))), "no image layout"),
    "label names": (lambda p: saved(p, **arrays(label_names=np.array(["a", "b"]))), "of 2 classes"),
    "test label": (lambda p: saved(p, **arrays(test_labels=np.full(6, 7))), "of 3 classes"),
    "val": (lambda p: saved(p, **arrays()), "val is 5000, train has 20"),
}


@pytest.mark.parametrize(("make", "said"), FAULTS.values(), ids=FAULTS)
def test_npz_faults_say_what_is_wrong_and_how_to_mend_it(tmp_path, make, said):
    path = make(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        Npz(path=path).load()
    assert "To mend" in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"path": "a", "val": 0},
        {"path": "a", "val": 1.0},
        {"path": "a", "limit": 0},
        {"path": "a", "val_from": "tset"},
    ],
)
def test_impossible_npz_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        Npz(**bad)


def test_torchvision_sets_are_read_by_name(monkeypatch, tmp_path):
    class FakeDigits:
        def __init__(self, root, train, download):
            if root != str(tmp_path):
                raise RuntimeError("Dataset not found")
            size = 20 if train else 6
            self.data = torch.arange(size * 16).view(size, 4, 4).to(torch.uint8)
            self.targets = torch.arange(size) % 2
            self.classes = ["even", "odd"]

    fake = types.ModuleType("torchvision.datasets")
    fake.FakeDigits = FakeDigits
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    train, val, test = Npz(torchvision="FakeDigits", path=str(tmp_path), val=4).load()
    assert (len(train), len(val), len(test)) == (16, 4, 6)
    assert train.image
    assert train.class_names == ("even", "odd")
    assert test.fetch(torch.tensor([0]))["x"].shape == (1, 4, 4, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Dataset not found"):
        Npz(torchvision="FakeDigits", path=str(tmp_path / "empty")).load()
    with pytest.raises(DataError, match="there is no such file"):  # a path that is no folder means an npz file
        Npz(torchvision="FakeDigits", path="elsewhere").load()
    with pytest.raises(ConfigError, match="did you mean 'FakeDigits'"):
        Npz(torchvision="FakeDigit").load()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ExtraError, match="torchvision"):
        Npz(torchvision="CIFAR10").load()
    with pytest.raises(ExtraError, match=r"limbeck\[demo\]"):
        Digits().load()


def test_the_real_cifar10_is_read():
    path = Path(os.environ.get("LIMBECK_DATA", "../shared/data")) / "cifar10.npz"
    if not path.is_file():
        pytest.skip("LIMBECK_DATA holds no cifar10.npz")
    train, val, test = Npz(path=str(path), limit=1000).load()
    assert (len(train), len(val), len(test)) == (1000, 5000, 10_000)
    assert set(Counter(val.labels.tolist()).values()) == {500}
    assert train.class_names is not None
    assert len(train.class_names) == 10
