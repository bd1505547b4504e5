import hashlib
import json
import math
import os

import pytest
import yaml

from limbeck.core.errors import CheckpointError, ExtraError
from limbeck.core.extras import need
from limbeck.core.folder import RunFolder, first_difference
from limbeck.core.normalize import Normalize
from limbeck.core.records import read_json, read_lines, write_json, write_text
from limbeck.core.seeds import derive


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    write_text(tmp_path / "a" / "b.txt", "one")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        write_text(tmp_path / "a" / "b.txt", "two")
    assert (tmp_path / "a" / "b.txt").read_text() == "one"
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_nan_becomes_null_so_that_any_reader_can_read_it(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.0, math.nan], "b": (math.inf,)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.0, None], "b": [None]}


def test_damaged_and_missing_json_say_so(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_json(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "y.json")


def test_a_last_line_cut_short_is_passed_over(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a": 2')
    assert list(read_lines(tmp_path / "m.jsonl")) == [{"a": 1}]


def test_a_folder_holds_one_recipe_and_names_what_differs(tmp_path):
    RunFolder(tmp_path / "r", {"a": {"b": (1, 2)}})
    assert yaml.safe_load((tmp_path / "r" / "recipe.yaml").read_text()) == {"a": {"b": [1, 2]}}
    RunFolder(tmp_path / "r", {"a": {"b": (1, 2)}})
    with pytest.raises(CheckpointError, match=r"`a.b.1` is not the same"):
        RunFolder(tmp_path / "r", {"a": {"b": (1, 3)}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="holds other files"):
        RunFolder(tmp_path / "other", {})
    with pytest.raises(CheckpointError, match="is a file"):
        RunFolder(tmp_path / "other" / "thesis.tex", {})


def test_a_resumed_member_forgets_what_it_will_write_again(tmp_path):
    folder = RunFolder(tmp_path / "r", {})
    for step in (1, 2, 3):
        folder.log(arm="a", seed=0, step=step)
        folder.log(arm="b", seed=0, step=step)
    folder.rewind("a", 0, 1)
    folder.close()
    again = RunFolder(tmp_path / "r", {})
    assert [line["step"] for line in again.lines if line["arm"] == "a"] == [1]
    assert [line["step"] for line in again.lines if line["arm"] == "b"] == [1, 2, 3]


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path):
    folder = RunFolder(tmp_path / "r", {"story": "one\x85two"})
    folder.log(arm="a", seed=0, step=1)
    folder.close()
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "a", "st')
    again = RunFolder(tmp_path / "r", {"story": "one\x85two"})
    again.log(arm="a", seed=0, step=2)
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2]


def test_differences_are_found_at_any_depth():
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b"
    assert first_difference({"a": 1}, {"a": 1, "c": 2}) == "c"
    assert first_difference([1], [1]) is None


def test_seeds_of_purposes_are_independent_and_stable():
    assert derive(0, "shuffle", 1) == int(hashlib.sha256(b"0/shuffle/1").hexdigest()[:14], 16)
    assert len({derive(s, p, e) for s in range(5) for p in ("a", "b") for e in range(5)}) == 50


def test_a_missing_extra_names_the_command():
    with pytest.raises(ExtraError, match=r'pip install "limbeck\[demo\]"'):
        need("no_such_package_at_all", extra="demo", why="the digits")


def test_one_normalisation_after_another_ends_as_the_second_says():
    import torch

    x = torch.rand(2, 3, 4, 4)
    first = Normalize(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    second = Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    assert torch.allclose(second.after(first)(first(x)), second(x), atol=1e-6)
    assert second.after(None) == second
    by_hand = (x[:, 1] - 0.2) / 0.6
    assert torch.allclose(first(x)[:, 1], by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="standard deviations above zero"):
        Normalize(mean=(0.0,), std=(0.0,))
