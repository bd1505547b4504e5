from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.core.errors import ConfigError, DataError
from limbeck.data import ImageFolder

Image = pytest.importorskip("PIL.Image")
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def fill(folder, count, colours=COLOURS, size=(6, 9)):
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, colour).save(folder / name / f"{i}.png")


def test_parts_in_folders_are_read_as_bytes_with_sorted_classes(tmp_path):
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        fill(tmp_path / part, count)
    train, val, test = ImageFolder(path=str(tmp_path), size=4).load()
    assert [len(part) for part in (train, val, test)] == [10, 4, 6]
    assert train.class_names == ("blue", "red")
    got = train.fetch(torch.arange(10))
    assert got["x"].shape == (10, 4, 4, 3)
    assert got["x"].dtype == torch.uint8
    want = np.where(got["y"].numpy()[:, None] == 1, COLOURS["red"], COLOURS["blue"])
    assert np.array_equal(got["x"][:, 2, 1].numpy(), want)


def test_one_folder_of_classes_is_split_by_shares(tmp_path):
    fill(tmp_path, 10)
    train, val, test = ImageFolder(path=str(tmp_path), size=2, test_share=0.2, val_share=0.25).load()
    assert [len(part) for part in (train, val, test)] == [12, 4, 4]
    assert sorted(torch.cat([p.ids for p in (train, val, test)]).tolist()) == list(range(20))
    assert test.labels.bincount().tolist() == [2, 2]


def test_faults_name_the_folder_or_file(tmp_path):
    def refused(said):
        with pytest.raises(DataError, match=said) as caught:
            ImageFolder(path=str(tmp_path / "data"), size=4).load()
        assert "To mend" in str(caught.value)

    refused("no such folder")
    (tmp_path / "data").mkdir()
    refused("no folder of a class")
    (tmp_path / "data" / "train" / "red").mkdir(parents=True)
    refused("holds no image")
    (tmp_path / "data" / "train" / "red" / "0.png").write_bytes(b"not an image")
    refused("no readable image")
    Image.new("L", (3, 3)).save(tmp_path / "data" / "train" / "red" / "0.png")
    refused("at least two")
    fill(tmp_path / "data" / "test", 1, {"green": (0, 255, 0)})
    refused("'green' is not in train")


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 4, "val_share": 0.0}, {"size": 4, "test_share": 1.5}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        ImageFolder(path="a", **bad)
