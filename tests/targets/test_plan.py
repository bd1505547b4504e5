"""A plan is plain data, and two that differ are told apart by the field."""

import json

import made
import pytest
import torch

from limbeck.core.errors import CheckpointError, ConfigError, DataError
from limbeck.targets import Dense, Output, Plan, Store, TopK
from limbeck.targets.plan import Manifest, sorted_ids


def test_a_manifest_survives_its_file(tmp_path):
    store = made.made(tmp_path / "s")
    again = Manifest.read(tmp_path / "s")
    assert again.plan == made.plan()
    assert again.plain() == json.loads((tmp_path / "s/manifest.json").read_text())
    assert again == store._manifest


DIFFERENT = {
    "teacher.weights": ({"teacher": {**made.plan().teacher, "weights": "xyz"}}, '"abc" there, and "xyz" now'),
    "teacher.normalize.mean.1": (
        {"teacher": {**made.plan().teacher, "normalize": {"mean": [0.5, 0.3]}}},
        "0.25 there, and 0.3 now",
    ),
    "teacher.more": ({"teacher": {**made.plan().teacher, "more": 1}}, '"not there" there, and 1 now'),
    "data.sha256": ({"data": {"sha256": "other"}}, '"def" there, and "other" now'),
    "augmentation.crop": ({"augmentation": {"crop": 2, "flip": True}}, "4 there, and 2 now"),
    "seed": ({"seed": 4}, "3 there, and 4 now"),
    "rows": ({"rows": 5}, "4 there, and 5 now"),
    "batch_size": ({"batch_size": 8}, "4 there, and 8 now"),
    "outputs.logits.codec.dtype": (
        {"outputs": {"logits": Output(codec=Dense(), shape=(5,))}},
        '"float32" there, and "float16" now',
    ),
    "outputs.top.codec.k": (
        {"outputs": {"top": Output(codec=TopK(k=3, dtype="float32"), shape=(5,))}},
        "2 there, and 3 now",
    ),
    "outputs.logits.shape.0": (
        {"outputs": {"logits": Output(codec=Dense(dtype="float32"), shape=(6,))}},
        "5 there, and 6 now",
    ),
    "made_by.torch": ({"made_by": {"torch": "2.14.0"}}, '"2.13.0" there, and "2.14.0" now'),
}


@pytest.mark.parametrize("field", DIFFERENT)
def test_another_plan_is_refused_by_the_field_that_differs(tmp_path, field):
    path = tmp_path / "s"
    Store.create(path, made.plan(), made.IDS, made.CONSTANTS)
    before = made.content(path)
    changes, said = DIFFERENT[field]
    if field == "made_by.torch":
        changes = {**changes, "views": 3}
    with pytest.raises(CheckpointError) as caught:
        Store.create(path, made.plan(**changes), made.IDS, made.CONSTANTS)
    assert f"`{field}` is {said}" in str(caught.value)
    assert "another folder" in str(caught.value)
    assert made.content(path) == before


def test_other_samples_or_constants_are_refused(tmp_path):
    Store.create(tmp_path / "s", made.plan(), made.IDS, made.CONSTANTS)
    with pytest.raises(CheckpointError, match=r"`samples.count` is 11 there, and 10 now"):
        Store.create(tmp_path / "s", made.plan(), made.IDS[1:])
    with pytest.raises(CheckpointError, match=r"samples.sha256"):
        Store.create(tmp_path / "s", made.plan(), made.IDS + 1)
    with pytest.raises(CheckpointError, match=r"constants.hidden@weight.sha256"):
        Store.create(tmp_path / "s", made.plan(), made.IDS, {"hidden@weight": made.CONSTANTS["hidden@weight"] + 1})


def test_ids_are_each_there_once():
    assert sorted_ids(torch.tensor([3, -1, 2])).tolist() == [-1, 2, 3]
    for wrong, said in (([3, 1, 3], "the id 3 comes twice"), ([], "ids are"), ([0.5], "ids are float32")):
        with pytest.raises(DataError, match=said):
            sorted_ids(torch.tensor(wrong))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": 0}, "targets.views"),
        ({"rows": 2.5}, "targets.rows"),
        ({"teacher": {"x": float("nan")}}, "targets.teacher"),
        ({"data": {"x": torch.ones(1)}}, "targets.data"),
        ({"outputs": {"a": Output(codec=TopK(k=2), shape=(3,)), "a.ids": Output(codec=Dense(), shape=(3,))}}, "rename"),
        ({"outputs": {"a": Output(codec=TopK(k=4), shape=(3,))}}, "at most 3"),
        ({"outputs": {"a": Output(codec=Dense(), shape=(3, 0))}}, "not empty"),
    ],
)
def test_impossible_plans_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        made.plan(**changes)


def test_every_output_has_a_folder_of_its_own_that_any_file_system_can_hold():
    plan = made.plan()
    names = [
        "logits",
        "Logits",
        "a/b",
        "a-b",
        "..",
        "",
        ".x",
        "manifest.json",
        "ids.safetensors",
        "ü",
        "x" * 300,
        "layer3.0@in",
    ]
    folders = [plan.folder(name) for name in names]
    assert plan.folder("layer3.0@in") == "layer3.0@in"
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all(len(f) <= 64 and "/" not in f and not f.startswith(".") and f.isascii() for f in folders)
    assert not {"manifest.json", "ids.safetensors"} & set(folders)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "holds a list"),
        ("{}", "no 'format'"),
        ('{"format": 2}', "format 2, this limbeck reads 1"),
        ('{"format": 1}', "no 'teacher'"),
    ],
)
def test_a_damaged_manifest_is_one_clear_error(tmp_path, text, said):
    made.made(tmp_path / "s")
    (tmp_path / "s/manifest.json").write_text(text)
    for enter in (lambda: Store.open(tmp_path / "s"), lambda: Store.create(tmp_path / "s", made.plan(), made.IDS)):
        with pytest.raises(CheckpointError, match=said):
            enter()


def test_damage_to_any_field_is_found(tmp_path):
    made.made(tmp_path / "s")
    file = tmp_path / "s/manifest.json"
    good = json.loads(file.read_text())
    for key in good:
        for value in (None, 7, "x", {"x": 1}, []):
            if value == good[key]:
                continue
            file.write_text(json.dumps({**good, key: value}))
            with pytest.raises(CheckpointError):
                Store.open(tmp_path / "s").gather(made.IDS, 0)


def test_a_plan_is_frozen_and_does_not_share_its_data():
    teacher = {"a": [1]}
    plan = Plan(teacher=teacher, data={}, augmentation={}, outputs={})
    teacher["a"].append(2)
    assert plan.teacher == {"a": [1]}
    with pytest.raises(AttributeError):
        plan.views = 3
