"""No byte of a file changes unseen, and a file is what it says."""

import random

import pytest
import torch
from safetensors.torch import load

from limbeck.core.errors import CheckpointError
from limbeck.targets.shard import look, mapped, packed, place, replace, sweep

WHO = {"format": 1, "plan": "abc", "output": "logits", "view": 0, "block": 2}
TENSORS = {"values": torch.arange(9, dtype=torch.float16), "ids": torch.arange(3), "none": torch.zeros(0, 3)}


def test_a_flipped_byte_is_found_wherever_it_is(tmp_path):
    data = bytes(packed(TENSORS, WHO))
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    assert look(path, WHO).fault is None
    rng = random.Random(0)
    for at in range(len(data)):
        for other in (data[at] ^ 1 << rng.randrange(8), 0x0A if data[at] != 0x0A else 0x20):
            path.write_bytes(data[:at] + bytes([other]) + data[at + 1 :])
            assert look(path, WHO).fault, at


def test_any_other_length_is_found(tmp_path):
    data = bytes(packed(TENSORS, WHO))
    path = tmp_path / "x.safetensors"
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        assert look(path, WHO).fault, cut
    path.write_bytes(data + b"\0")
    assert look(path, WHO).fault
    path.write_bytes(b"\xff" * 200)
    assert look(path, WHO).fault
    path.unlink()
    assert look(path, WHO).fault == "it is missing"


@pytest.mark.parametrize("key", ["output", "view", "block", "plan", "format"])
def test_a_file_in_the_place_of_another_is_found(tmp_path, key):
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(TENSORS, {**WHO, key: 7}))
    fault = look(path, WHO).fault
    assert ("another plan" if key == "plan" else key) in fault
    with pytest.raises(CheckpointError, match="limbeck remember"):
        mapped(path, WHO)


def test_it_is_plain_safetensors_and_the_same_each_time(tmp_path):
    data = packed(TENSORS, WHO)
    assert all(packed(dict(reversed(TENSORS.items())), dict(reversed(WHO.items()))) == data for _ in range(20))
    assert all(torch.equal(x, TENSORS[name]) for name, x in load(bytes(data)).items())
    (tmp_path / "x").write_bytes(data)
    assert all(torch.equal(x, TENSORS[name]) for name, x in mapped(tmp_path / "x", WHO).items())
    assert look(tmp_path / "x", WHO).bytes == len(data)


def test_a_strange_name_does_not_hide_the_digest(tmp_path):
    who = {**WHO, "output": '"sha256":"' + "0" * 64 + '\\"sha256\\":\\"'}
    (tmp_path / "x").write_bytes(packed(TENSORS, who))
    assert look(tmp_path / "x", who).fault is None


def test_of_several_writers_the_first_places_and_the_last_replaces(tmp_path):
    path = tmp_path / "a" / "x.safetensors"
    place(path, b"one")
    place(path, b"two")
    assert path.read_bytes() == b"one"
    replace(path, b"three")
    assert path.read_bytes() == b"three"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [f.name for f in path.parent.iterdir()] == ["x.safetensors"]


def test_what_was_left_half_written_is_swept(tmp_path):
    (tmp_path / ".x.safetensors.abc").write_bytes(b"")
    (tmp_path / ".other").write_bytes(b"")
    sweep(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [".other"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be written"):
        replace(tmp_path / "file" / "x", b"")
