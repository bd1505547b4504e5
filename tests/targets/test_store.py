"""A store is a function of its plan: whoever fills it, in whatever order, killed or not, and damage is found."""

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor

import made
import pytest
import torch

from limbeck.core.errors import CheckpointError, ConfigError, DataError, ShapeError
from limbeck.targets import Dense, Output, Store
from limbeck.targets import shard as shards
from warm import SERVER


def test_a_filled_and_sealed_store_lacks_nothing(tmp_path):
    store = made.made(tmp_path / "s")
    assert store.sealed
    assert not store.missing()
    opened = Store.open(tmp_path / "s")
    assert opened.sealed
    assert opened.ids.tolist() == sorted(made.IDS.tolist())
    assert opened.covers(made.IDS, [0, 1]) == []
    before = made.content(tmp_path / "s")
    opened.seal()
    assert made.content(tmp_path / "s") == before


def test_two_stores_are_the_same_bytes_whoever_fills_them(tmp_path):
    made.made(tmp_path / "a")
    store = Store.create(tmp_path / "b", made.plan(), made.IDS.flip(0), made.CONSTANTS)
    made.fill(store, store.missing()[::-1])
    store.seal()
    assert made.content(tmp_path / "a") == made.content(tmp_path / "b")


def test_parts_are_the_whole_and_stay_as_they_are(tmp_path):
    store = Store.create(tmp_path / "s", made.plan(), made.IDS, made.CONSTANTS)
    everything = store.missing()
    assert len(everything) == 6
    parts = [store.missing((i, 4)) for i in range(4)]
    assert sorted(piece for part in parts for piece in part) == sorted(everything)
    made.fill(store, parts[1][:1])
    assert [store.missing((i, 4)) for i in (0, 2, 3)] == [parts[0], parts[2], parts[3]]
    assert store.missing((1, 4)) == parts[1][1:]
    for wrong in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError):
            store.missing(wrong)


def fill_part(path, index):
    store = Store.create(path, made.plan(), made.IDS, made.CONSTANTS)
    made.fill(store, store.missing((index, 2)))
    with contextlib.suppress(CheckpointError):  # the other is still at it, and will seal
        store.seal()


def test_two_threads_fill_and_seal_one_store(tmp_path):
    for turn in range(3):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill_part, [tmp_path / f"s{turn}"] * 2, (0, 1)))
        assert Store.open(tmp_path / f"s{turn}").sealed
        assert made.content(tmp_path / f"s{turn}") == made.content(made.made(tmp_path / f"t{turn}").path)


def test_two_processes_fill_and_seal_one_store(tmp_path):
    children = [SERVER.Process(target=fill_part, args=(tmp_path / "s", i)) for i in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert Store.open(tmp_path / "s").sealed
    assert made.content(tmp_path / "s") == made.content(made.made(tmp_path / "t").path)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("before_rename", [True, False], ids=["half written", "just renamed"])
def test_killed_at_any_write_and_taken_up_again_is_the_same_store(tmp_path, monkeypatch, before_rename):
    small = {"rows": 8, "outputs": {name: made.OUTPUTS[name] for name in ("logits", "words")}}
    whole = made.content(made.made(tmp_path / "whole", **small).path)
    real, count = shards._written, 0

    def deadly(path, data):
        nonlocal count
        count += 1
        if count == at:
            path.parent.mkdir(exist_ok=True, parents=True)
            if before_rename:
                (path.parent / f".{path.name}.dead").write_bytes(data[: len(data) // 2])
            else:
                path.write_bytes(data)
            raise Killed
        return real(path, data)

    monkeypatch.setattr(shards, "_written", deadly)
    for at in range(1, 40):
        count, path = 0, tmp_path / str(at)
        try:
            made.made(path, **small)
        except Killed:
            made.made(path, **small)
        assert made.content(path) == whole, at
        if count < at:
            break
    assert at == 12  # 2 views of 2 blocks of 2 outputs, the manifest, ids and constants; then none was killed


def test_damage_is_found_named_and_remade_alone(tmp_path):
    path = made.made(tmp_path / "s").path
    good = made.content(path)
    bad = path / "logits/0001-00001.safetensors"
    data = bytearray(bad.read_bytes())
    data[-3] ^= 16
    bad.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"0001-00001.safetensors.*digest(?s:.*)remakes this file alone"):
        Store.open(path)
    Store.open(path, verify=False)
    store = Store.create(path, made.plan(), made.IDS, made.CONSTANTS)
    pieces = store.missing()
    assert [tuple(piece) for piece in pieces] == [(1, 1, ("logits",))]
    assert list(store.damaged) == ["logits/0001-00001.safetensors"]
    with pytest.raises(CheckpointError, match="damaged"):
        store.gather(made.IDS, 1)
    with pytest.raises(CheckpointError, match=r"cannot be sealed: 1 of 36.*logits/0001-00001"):
        store.seal()
    made.fill(store, pieces)
    assert not store.damaged
    store.gather(made.IDS, 1)
    store.seal()
    assert made.content(path) == good


def test_files_that_are_gone_cut_swapped_or_foreign_are_named(tmp_path):
    good = made.made(tmp_path / "good").path
    other = made.made(tmp_path / "other", teacher={"class": "Other"}).path

    def swap(path):
        shutil.copy(path / "logits/0000-00001.safetensors", path / "logits/0000-00000.safetensors")

    def foreign(path):
        shutil.copy(other / "logits/0000-00000.safetensors", path / "logits/0000-00000.safetensors")

    faults = {
        "missing": lambda path: (path / "logits/0000-00000.safetensors").unlink(),
        "0 bytes": lambda path: (path / "logits/0000-00000.safetensors").write_bytes(b""),
        "block differs": swap,
        "another plan": foreign,
    }
    for said, harm in faults.items():
        path = tmp_path / said
        shutil.copytree(good, path)
        harm(path)
        with pytest.raises(CheckpointError, match=rf"logits/0000-00000.*{said}"):
            Store.open(path)
        store = Store.create(path, made.plan(), made.IDS, made.CONSTANTS)
        assert [tuple(piece) for piece in store.missing()] == [(0, 0, ("logits",))]


@pytest.mark.parametrize("file", ["ids.safetensors", "constants.safetensors"])
def test_shared_files_are_checked_and_mended(tmp_path, file):
    path = made.made(tmp_path / "s").path
    good = made.content(path)
    for harm in (lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\1")):
        harm(path / file)
        with pytest.raises(CheckpointError, match=rf"{file}.*(missing|digest)(?s:.*)limbeck remember"):
            Store.open(path)
        Store.create(path, made.plan(), made.IDS, made.CONSTANTS)
        assert made.content(path) == good


def test_more_views_and_outputs_extend_and_fewer_join(tmp_path):
    few = {name: made.OUTPUTS[name] for name in ("logits", "words")}
    path = made.made(tmp_path / "s", outputs=few, views=1).path
    before = made.content(path)
    store = Store.create(path, made.plan(), made.IDS, made.CONSTANTS)
    assert not store.sealed
    after = made.content(path)
    assert all(
        after[file] == data for file, data in before.items() if file not in ("manifest.json", "constants.safetensors")
    )
    assert {piece.view: len(piece.outputs) for piece in store.missing()} == {0: 4, 1: 6}
    smaller = Store.create(path, made.plan(outputs=few, views=1), made.IDS)
    assert smaller.plan == store.plan
    made.fill(store)
    store.seal()
    assert made.content(path) == made.content(made.made(tmp_path / "whole").path)
    assert Store.create(path, made.plan(outputs=few, views=1), made.IDS).sealed


def test_sealing_does_not_undo_what_another_process_extended(tmp_path):
    first = made.made(tmp_path / "s", seal=False, views=1)
    Store.create(tmp_path / "s", made.plan(views=2), made.IDS, made.CONSTANTS)
    with pytest.raises(CheckpointError, match="18 of 36 files"):
        first.seal()
    assert first.plan.views == 2


def test_other_versions_may_join_what_is_done_but_not_add_to_it(tmp_path):
    newer = made.plan(made_by={"torch": "2.14.0"})
    made.made(tmp_path / "s")
    store = Store.create(tmp_path / "s", newer, made.IDS, made.CONSTANTS)
    assert not store.missing()
    (tmp_path / "s/logits/0000-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"`made_by.torch` differs"):
        made.fill(store)


def test_an_unsealed_store_opens_and_says_what_it_lacks(tmp_path):
    store = Store.create(tmp_path / "s", made.plan(), made.IDS, made.CONSTANTS)
    pieces = store.missing()
    made.fill(store, pieces[:3])
    opened = Store.open(tmp_path / "s")
    assert not opened.sealed
    assert opened.missing() == pieces[3:]
    assert opened.covers(made.IDS, [0]) == []
    lacks = opened.covers(torch.tensor([9, 1, 4]), [0, 1, 5], ["logits", "other"])
    assert lacks[0] == "the output 'other'"
    assert lacks[1] == "the sample 1 and 1 more"
    assert lacks[2] == "view 5"
    assert lacks[3].startswith("1 of 2 files of 'logits', first logits/0001-0000")
    opened.gather(made.IDS, 0)
    told = opened.describe()
    assert (told["shards"], told["shards_there"], told["sealed"]) == (36, 18, False)
    assert told["teacher"] == made.plan().teacher
    assert told["bytes"] == opened.nbytes == sum(map(len, made.content(tmp_path / "s").values()))
    assert told["outputs"]["top"]["names"] == ["top.ids", "top.log_probs", "top.log_tail"]


def test_folders_that_are_no_stores_are_refused_and_left_alone(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name, said in (("other", "holds other files"), ("file", "is a file")):
        with pytest.raises(CheckpointError, match=said):
            Store.create(tmp_path / name, made.plan(), made.IDS)
    for name in ("other", "nowhere"):
        with pytest.raises(CheckpointError, match="no store of targets"):
            Store.open(tmp_path / name)
    assert made.content(tmp_path / "other") == {"notes.txt": b"x"}


def test_rows_that_do_not_line_up_are_refused(tmp_path):
    store = Store.create(tmp_path / "s", made.plan(), made.IDS)
    piece = store.missing()[0]
    ids = store.rows_of(piece)
    with pytest.raises(ShapeError, match=r"\(3, 5\), the plan and the piece want \(4, 5\)"):
        store.write(piece, {"logits": torch.ones(3, 5)})
    with pytest.raises(ShapeError, match="lengths are none"):
        store.write(piece, {"words": torch.ones(3, 12)})
    with pytest.raises(ShapeError, match="the plan and the piece want"):
        store.write(piece, {"words": torch.ones(int(made.lengths(ids).sum()) + 1, 12)}, made.lengths(ids))
    with pytest.raises(DataError, match="did you mean 'logits'"):
        store.write(piece, {"logit": torch.ones(4, 5)})
    with pytest.raises(DataError, match="encode it with the plan's codec"):
        store.write(piece, {"logits": Dense(dtype="float16").encode(torch.ones(4, 5))})
    assert not list((tmp_path / "s").glob("logits/*"))


def test_what_a_codec_made_may_be_written_as_it_is(tmp_path):
    store, other = made.made(tmp_path / "a"), Store.create(tmp_path / "b", made.plan(), made.IDS, made.CONSTANTS)
    for piece in other.missing():
        x = made.answers(other.plan, "top", piece.view, other.rows_of(piece))
        other.write(piece, {"top": other.plan.outputs["top"].codec.encode(x)})
    assert other.gather(made.IDS, 1, ["top"])["top.ids"].equal(store.gather(made.IDS, 1, ["top"])["top.ids"])


def test_the_size_is_that_of_the_arithmetic(tmp_path):
    outputs = {"logits": Output(codec=Dense(), shape=(100,)), "top": made.OUTPUTS["top"]}
    n, views = 3000, 2
    store = Store.create(tmp_path / "s", made.plan(outputs=outputs, rows=1000, views=views), torch.arange(n))
    for piece in store.missing():
        store.write(piece, {"logits": torch.zeros(1000, 100), "top": torch.zeros(1000, 5)})
    store.seal()
    arithmetic = n * views * (100 * 2 + 2 * (2 + 4) + 4) + n * 8
    assert arithmetic <= store.nbytes <= 1.05 * arithmetic
