"""Laws over targets: stored equals live for every sample and view, however it was made and however it is read."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import limbeck as lb
from limbeck.core.errors import CheckpointError, ConfigError, DataError, LimbeckError, ModelError
from limbeck.data import Batches, as_source
from limbeck.replaying import augment_seed
from limbeck.targets import CODECS, Dense, Origin, Sampled, Store, TopK
from warm import Started

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
import kinds

G = torch.Generator().manual_seed(0)
X = torch.randint(0, 256, (50, 10, 10, 3), generator=G, dtype=torch.uint8)
Y = torch.randint(0, 5, (50,), generator=G)
VIEWS = 3
AUGMENT = lb.Augment(crop=2, flip=True, cutout=3)
MIXED = lb.Augment(crop=2, mixup=0.4)
HOW = {
    "float32": Dense(dtype="float32"), "float16": Dense(), "bfloat16": Dense(dtype="bfloat16"),
    "int8": Dense(dtype="int8"), "top3": TopK(k=3), "sampled": Sampled(draws=3),
}  # fmt: skip
ROUNDING = 1e-5  # of another batch size, on logits of about 1


class Images(Dataset):
    """The same images, one at a time."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], int(Y[i])


def net(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 5),
    )  # fmt: skip


def remember(out, teacher=None, data=None, **changed):
    given = {"views": VIEWS, "augment": AUGMENT, "batch_size": 8, "codec": "float32", "seed": 4, "progress": False}
    data = (X, Y) if data is None else data
    return lb.remember(teacher or net(), data, out=out, **{**given, **changed})


def live(teacher, data, *, augment=AUGMENT, names=("logits",), size=7, workers=0, views=VIEWS):
    """The live answers of every (sample, view), through shuffled batches of another size."""
    source, master = as_source(data), lb.teacher(teacher) if isinstance(teacher, nn.Module) else teacher
    batches = Batches(
        source, batch_size=size, seed=11, augment=augment, augment_seed=augment_seed(4), views=views, workers=workers
    )
    master.open(names, next(batches.epoch(0)), applied=source.normalize)
    for view in range(views):
        for batch in batches.epoch(view):
            yield batch, master(batch)


def assert_stored_is_live(targets, pairs, how, name="logits", rounding=ROUNDING):
    seen = 0
    for batch, signal in pairs:
        stored = targets(batch)
        x = signal[name]
        if isinstance(how, Sampled):
            parts = how.encode(x, Origin(name, 4, int(batch["view"][0]), batch["id"], torch.zeros(len(x)).long()))
            assert torch.equal(stored[f"{name}.ids"], how.decode(parts)["ids"])
        elif isinstance(how, TopK):
            dense = x.double().log_softmax(-1)
            assert torch.equal(stored[f"{name}.ids"], dense.topk(how.k, -1).indices)
            error = (stored[f"{name}.log_probs"] - dense.topk(how.k, -1).values).abs()
            assert (error <= how.bound(x)["log_probs"] + rounding).all()
        else:
            assert ((stored[name] - x).abs() <= how.bound(x)[""] + rounding).all()
        seen += len(x)
    assert seen


@pytest.mark.parametrize("codec", HOW)
@pytest.mark.parametrize("augment", [AUGMENT, MIXED], ids=["moved", "mixed"])
def test_stored_equals_live_for_every_sample_and_view_in_any_order(tmp_path, codec, augment):
    assert {each.kind for each in HOW.values()} == set(CODECS)
    targets = remember(tmp_path / "t", codec=HOW[codec], augment=augment)
    assert_stored_is_live(targets, live(net(), (X, Y), augment=augment), HOW[codec])


@pytest.mark.parametrize("kind", list(kinds.rows(None)))
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
def test_stored_equals_live_for_every_kind_of_teacher(tmp_path, kind):
    row = kinds.rows(tmp_path / "models")[kind]
    teacher = row.teacher(row.model(0))
    some = kinds.batch()
    x, y = torch.zeros(100, kinds.FEATURES), torch.zeros(100, dtype=torch.int64)
    x[some["id"]], y[some["id"]] = some["x"], some["y"]
    source = as_source((x, y)).subset(some["id"])
    answers = list(live(row.teacher(row.model(0)), source, augment=None, size=3, views=1))
    for name, how in HOW.items():
        if isinstance(how, Sampled) or (isinstance(how, TopK) and answers[0][1]["logits"].shape[-1] < how.k):
            continue  # draws have no bound, and a regressor has one answer
        targets = remember(tmp_path / name, teacher, source, views=1, augment=None, codec=how)
        assert_stored_is_live(targets, answers, how, rounding=row.parts + ROUNDING)


@pytest.mark.parametrize("workers", [0, 2])
def test_data_workers_change_nothing(tmp_path, workers):
    targets = remember(tmp_path / "t", data=Images(), workers=workers)
    assert_stored_is_live(targets, live(net(), Images(), workers=2 - workers), HOW["float32"])
    assert torch.equal(
        targets.store.gather(torch.arange(50), 1)["logits"],
        remember(tmp_path / "arrays").store.gather(torch.arange(50), 1)["logits"],
    )


def test_a_part_of_the_data_is_served_from_targets_of_the_whole(tmp_path):
    targets = remember(tmp_path / "t")
    part = as_source((X, Y)).subset(torch.tensor([41, 3, 17, 8, 30, 2, 49, 12]))
    assert_stored_is_live(targets, live(net(), part), HOW["float32"])


def folder_of(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_what_was_cut_short_goes_on_and_ends_byte_identical(tmp_path, monkeypatch):
    whole = remember(tmp_path / "whole")
    assert whole.store.sealed
    write, calls = Store.write, []

    def failing(self, *args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(write(self, *args, **kwargs))

    monkeypatch.setattr(Store, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        remember(tmp_path / "cut")
    monkeypatch.undo()
    assert not Store.open(tmp_path / "cut").sealed
    remember(tmp_path / "cut")
    assert folder_of(tmp_path / "cut") == folder_of(tmp_path / "whole")


def test_two_processes_fill_one_folder_and_the_last_seals_it(tmp_path):
    code = f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}]
        import test_targets as t
        part = int(sys.argv[1])
        t.remember({str(tmp_path / "both")!r}, shard=(part, 2))
    """
    script = tmp_path / "part.py"
    script.write_text(textwrap.dedent(code))
    both = [Started(part, script=script) for part in ("1", "2")]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.poll() == 0, said
    remember(tmp_path / "one")
    assert folder_of(tmp_path / "both") == folder_of(tmp_path / "one")


def test_a_flipped_byte_is_found_named_and_only_its_file_is_made_anew(tmp_path):
    remember(tmp_path / "t")
    before = folder_of(tmp_path / "t")
    file = max((tmp_path / "t").rglob("0001-*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"(?s){file.name}.*limbeck remember"):
        lb.Targets(tmp_path / "t")
    said, written = [], []
    write = Store.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", lambda self, piece, *rest: (written.append(piece), write(self, piece, *rest)))
        remember(tmp_path / "t", say=said.append)
    assert len(written) == 1
    assert file.name in said[0]
    assert folder_of(tmp_path / "t") == before


CHANGES = {
    "teacher.weights": {"teacher": net(1)},
    "data.inputs": {"data": (X.flip(0), Y)},
    "augmentation.crop": {"augment": lb.Augment(crop=1, flip=True, cutout=3)},
    "seed": {"seed": 5},
    "batch_size": {"batch_size": 16},
    "outputs.logits.codec.dtype": {"codec": "float16"},
    "teacher.normalize": {"teacher": lb.teacher(net(), normalize=lb.Normalize(mean=(0.5,) * 3, std=(0.2,) * 3))},
    "samples": {"data": as_source((X, Y)).subset(torch.arange(49))},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_is_refused_and_its_field_is_named(tmp_path, field):
    remember(tmp_path / "t")
    before = folder_of(tmp_path / "t")
    with pytest.raises(LimbeckError, match=field):
        remember(tmp_path / "t", **CHANGES[field])
    assert folder_of(tmp_path / "t") == before


def test_a_normalisation_of_the_data_is_part_of_what_the_teacher_saw(tmp_path):
    remember(tmp_path / "t")
    other = as_source((X, Y), normalize=lb.Normalize(mean=(0.5,) * 3, std=(0.2,) * 3))
    with pytest.raises(CheckpointError, match=r"data\.normalize"):
        remember(tmp_path / "t", data=other)


def test_labels_are_no_part_of_it(tmp_path):
    targets = remember(tmp_path / "t", data=X)
    distil(net(2), targets, train=(X, Y), augment=AUGMENT)


def distil(student, teacher, **changed):
    given = {"train": (X, Y), "augment": AUGMENT, "epochs": 2, "batch_size": 16, "progress": False}
    return lb.distill(student, teacher, **{**given, **changed})


class Live(lb.Targets):
    """Answers from the model on what the student sees, where targets read from disk."""

    def __call__(self, batch):
        with torch.no_grad():
            return {"logits": net().eval()(batch["x"])}


def test_training_on_float32_targets_is_training_with_the_live_teacher(tmp_path):
    remember(tmp_path / "t")
    weights = []
    for kind in (lb.Targets, Live):
        student = net(2)
        distil(student, kind(tmp_path / "t"), epochs=VIEWS + 1, objective=(lb.KL(), lb.Label()))
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.allclose(*weights, atol=1e-5)
    assert not torch.allclose(weights[0], torch.cat([p.detach().flatten() for p in net(2).parameters()]), atol=1e-3)


REFUSED = {
    "augmentation": ({"augment": None}, "augmentation.kind"),
    "another augmentation": ({"augment": lb.Augment(flip=True)}, "augmentation"),
    "other pixels": ({"train": (X.flip(0), Y)}, "data.inputs"),
    "a layer": ({"objective": (lb.Hint(student="0", teacher="0"),)}, r"hold no '0'.*limbeck.remember"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_targets_do_not_fit_or_hold_is_refused_before_the_first_step(tmp_path, case):
    changed, says = REFUSED[case]
    remember(tmp_path / "t")
    targets, student = lb.Targets(tmp_path / "t"), net(2)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    with pytest.raises(LimbeckError, match=f"(?s){says}"):
        distil(student, targets, **changed)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_missing_files_are_refused_without_the_teacher_and_added_with_it(tmp_path):
    targets = remember(tmp_path / "t", shard=(1, 2))
    assert not targets.store.sealed
    with pytest.raises(DataError, match=r"(?s)lack.*limbeck.remember"):
        distil(net(2), lb.Targets(tmp_path / "t"))
    run = distil(net(2), lb.Targets(tmp_path / "t", teacher=lb.teacher(net())))
    assert Store.open(tmp_path / "t").sealed
    assert "agreement" in run.scores["student"]
    remember(tmp_path / "whole")
    assert folder_of(tmp_path / "t") == folder_of(tmp_path / "whole")


def test_an_output_that_is_not_held_is_added_by_the_live_teacher(tmp_path):
    remember(tmp_path / "t")
    targets = lb.Targets(tmp_path / "t", teacher=lb.teacher(net()))
    objective = (lb.KL(), lb.Hint(student="0", teacher="0"))
    distil(net(2), targets, objective=objective)
    assert set(targets.store.names) == {"logits", "0"}
    distil(net(2), lb.Targets(tmp_path / "t"), objective=objective)


def test_another_teacher_cannot_stand_behind_targets(tmp_path):
    remember(tmp_path / "t")
    with pytest.raises(CheckpointError, match=r"teacher\.weights"):
        lb.Targets(tmp_path / "t", teacher=lb.teacher(net(1)))


def test_more_views_and_outputs_extend_what_is_there(tmp_path):
    remember(tmp_path / "t", views=2)
    old = folder_of(tmp_path / "t")
    remember(tmp_path / "t", views=3, outputs=("logits", "0"))
    new = folder_of(tmp_path / "t")
    assert all(new[name] == content for name, content in old.items() if name != "manifest.json")
    remember(tmp_path / "whole", views=3, outputs=("logits", "0"))
    assert new == folder_of(tmp_path / "whole")


def test_views_without_augmentation_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="one and the same"):
        remember(tmp_path / "t", augment=None)
    assert not (tmp_path / "t").exists()


def test_an_unknown_output_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ModelError, match="layer9"):
        remember(tmp_path / "t", outputs=("layer9",))
    assert not (tmp_path / "t").exists()


def test_mixed_targets_belong_to_their_set_of_samples(tmp_path):
    targets = remember(tmp_path / "t", augment=MIXED)
    part = as_source((X, Y)).subset(torch.arange(40))
    with pytest.raises(CheckpointError, match=r"augmentation\.partners"):
        distil(net(2), targets, train=part, val=(X, Y), augment=MIXED)


def test_an_output_whose_size_changes_from_batch_to_batch_is_refused_in_words(tmp_path):
    def answer(x):
        return x.flatten(1)[:, : 3 + len(x) % 2]

    with pytest.raises(DataError, match=r"'logits' is .* was to come"):
        remember(tmp_path / "t", lb.teacher(answer), batch_size=7)


class Writer(nn.Module):
    """Tokens in, an answer a token out."""

    def __init__(self, seed=0, words=11, width=4):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)

    def forward(self, ids, attention_mask):
        mixed = self.embed(ids) * attention_mask.unsqueeze(-1)
        return {"logits": self.head(mixed.cumsum(1)), "hidden": mixed.cumsum(1)}


def sentences():
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 7, (20,), generator=g)
    mask = (torch.arange(6) < lengths.unsqueeze(1)).long()
    ids = torch.randint(1, 11, (20, 6), generator=g) * mask
    return {"ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


@pytest.mark.parametrize("codec", ["float32", "top3"])
def test_only_tokens_that_count_are_kept_and_come_back_in_their_places(tmp_path, codec):
    data = sentences()
    targets = lb.remember(
        Writer(), data, out=tmp_path / "t", codec={"logits": HOW[codec], "hidden": "float32"},
        outputs=("logits", "hidden", "head@weight"), tokens="attention_mask", batch_size=6, progress=False,
    )  # fmt: skip
    rows = int(data["attention_mask"].sum())
    model = Writer().eval()
    at = torch.randperm(20)[:9]
    batch = {"id": at, "view": torch.zeros(9).long(), **{name: value[at] for name, value in data.items()}}
    stored, mask = targets(batch), batch["attention_mask"].bool()
    with torch.no_grad():
        live = model(batch["ids"], batch["attention_mask"])
    assert torch.allclose(stored["hidden"][mask], live["hidden"][mask], atol=1e-6)
    assert not stored["hidden"][~mask].any()
    assert torch.equal(stored["head@weight"], model.head.weight)
    if codec == "top3":
        assert torch.equal(stored["logits.ids"][mask], live["logits"][mask].topk(3).indices)
    size = sum(f.stat().st_size for f in (tmp_path / "t" / "hidden").rglob("*.safetensors"))
    assert size < rows * 4 * 4 + 20 * 8 + 4 * 2000  # rows of four floats, offsets, headers: no padding
    term = lb.Tokens(term=lb.KL() if codec == "float32" else lb.TopKKL(), column="labels", shift=0)
    wholly = lb.Tokens(term=lb.KL() if codec == "float32" else lb.TopKKL(k=3), column="labels", shift=0)
    batch["valid"] = torch.ones(9, dtype=torch.bool)
    student = {"logits": torch.randn(9, 6, 11)}
    assert torch.allclose(term(student, stored, batch), wholly(student, live, batch), atol=5e-3)


def test_a_targets_folder_is_passed_by_its_path(tmp_path):
    remember(tmp_path / "t")
    shutil.copytree(tmp_path / "t", tmp_path / "moved")
    distil(net(2), tmp_path / "moved")
    distil(net(2), str(tmp_path / "moved"))
    with pytest.raises(LimbeckError, match="nowhere"):
        distil(net(2), tmp_path / "nowhere")


def figures(form):
    return [name for name, value in form.items() if isinstance(value, float | list)]


def test_the_form_of_a_prepared_teacher_is_in_the_manifest_without_what_was_measured_and_in_the_log_with_it(tmp_path):
    teacher = lb.teacher(net(), precision="bfloat16")
    form = remember(tmp_path / "t", teacher).store.plan.teacher["form"]
    assert form["precision"] == "bfloat16"
    assert not figures(form)  # they may differ in the last digit from process to process, and would refuse a resume
    distil(net(2), teacher, out=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    said = [line for line in lines if line["kind"] == "teacher"]
    assert len(said) == 1
    assert said[0]["form"]["precision"] == "bfloat16"
    assert figures(said[0]["form"])


def test_targets_do_not_answer_on_other_data(tmp_path):
    targets = remember(tmp_path / "t")
    assert lb.evaluate(net(2), (X, Y), teacher=targets)["agreement"] == pytest.approx(
        lb.evaluate(net(2), (X, Y), teacher=net())["agreement"]
    )
    with pytest.raises(ConfigError, match="give the teacher itself"):
        lb.evaluate(net(2), (X, Y), teacher=lb.Targets(tmp_path / "t"))


def test_filling_reads_each_file_once_when_it_seals(tmp_path, monkeypatch):
    from limbeck.targets import store

    looked = []
    look_over = store.look_over

    def counted(folder, manifest, places=None):
        seen = look_over(folder, manifest, *([] if places is None else [places]))
        looked.append(sum(found.bytes > 0 for found in seen.values()))
        return seen

    monkeypatch.setattr(store, "look_over", counted)
    remember(tmp_path / "t")
    assert sum(looked) == VIEWS
