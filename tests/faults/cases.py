"""Bad input, one kind a row: how it is made, and what the message must name."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiny
import torch
import yaml
from safetensors.torch import save_file

Args = list[str | Path]
EXECUTED = "executed.txt"


class Case(NamedTuple):
    """The arguments for the command, made in a folder of its own, and what stderr must hold."""

    make: Callable[[Path], Args]
    says: tuple[str, ...]


def change(*sets: str) -> Callable[[Path], Args]:
    """The tiny recipe with `--set`."""
    return lambda at: run(at, None, *sets)


def run(at: Path, recipe: dict[str, Any] | None = None, *sets: str) -> Args:
    flags = [word for each in sets for word in ("--set", each)]
    return ["run", tiny.written(at, recipe), "--out", at / "out", *flags]


def on(data: dict[str, Any], *sets: str) -> Callable[[Path], Args]:
    """The tiny recipe on other data; a path in it is below the case's folder."""
    return lambda at: run(at, tiny.plain({**data, "path": str(at / data["path"])}), *sets)


def text(content: str | bytes) -> Callable[[Path], Args]:
    """A recipe file with this content."""

    def make(at: Path) -> Args:
        (at / "mine.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
        return ["run", at / "mine.yaml", "--out", at / "out"]

    return make


def edit(*path: str | int, value: Any) -> Callable[[Path], Args]:
    """The tiny recipe with one value replaced."""

    def make(at: Path) -> Args:
        recipe = yaml.safe_load(tiny.written(at).read_text())
        node = recipe
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return run(at, recipe)

    return make


def npz(**changes: Any) -> Callable[[Path], Args]:
    """The tiny recipe on an npz with other arrays."""

    def make(at: Path) -> Args:
        tiny.arrays(at / "data.npz", **changes)
        return on({"kind": "npz", "path": "data.npz", "val": 0.2})(at)

    return make


def file(name: str, content: str | bytes, data: dict[str, Any]) -> Callable[[Path], Args]:
    """The tiny recipe on a data file with this content."""

    def make(at: Path) -> Args:
        (at / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return on({**data, "path": name})(at)

    return make


def csv(line: int, old: str, new: str) -> Callable[[Path], Args]:
    """The tiny table with one cell of a line replaced; `old` is a column."""

    def make(at: Path) -> Args:
        recipe = tiny.written(at)
        lines = (at / "data.csv").read_text().splitlines()
        column, cells = lines[0].split(",").index(old), lines[line - 1].split(",")
        cells[column] = new
        lines[line - 1] = ",".join(cells)
        (at / "data.csv").write_text("\n".join(lines))
        return ["run", recipe, "--out", at / "out"]

    return make


def weights(save: Callable[[Path], object] | None, name: str = "teacher.safetensors") -> Callable[[Path], Args]:
    """The tiny recipe with a file as the teacher's weights."""

    def make(at: Path) -> Args:
        if save is not None:
            save(at / name)
        return run(at, None, f"teacher.weights={at / name}")

    return make


def network(hidden: int = 8, classes: int = tiny.CLASSES) -> dict[str, torch.Tensor]:
    """Weights as the tiny teacher has them."""
    return {
        "hidden1.0.weight": torch.zeros(hidden, tiny.FEATURES),
        "hidden1.0.bias": torch.zeros(hidden),
        "linear.weight": torch.zeros(classes, hidden),
        "linear.bias": torch.zeros(classes),
    }


class Executes:
    """What a pickle does when it is trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickled(path: Path) -> None:
    torch.save({"linear.weight": Executes(path.parent / EXECUTED)}, path)


def truncated(path: Path) -> None:
    save_file(network(), path)
    path.write_bytes(path.read_bytes()[:-20])


def yaml_code(at: Path) -> Args:
    tag = f"!!python/object/apply:os.system ['touch {at / EXECUTED}']"
    return text(f"title: {tag}\n")(at)


def folder(*files: str, command: str = "run") -> Callable[[Path], Args]:
    """An output folder with foreign files."""

    def make(at: Path) -> Args:
        (at / "out").mkdir()
        for name in files:
            (at / "out" / name).write_text("mine")
        return run(at)

    return make


def out(path: str) -> Callable[[Path], Args]:
    """The tiny recipe into a folder that cannot be."""

    def make(at: Path) -> Args:
        (at / "file").write_text("a file")
        return ["run", tiny.written(at), "--out", path.format(at=at)]

    return make


def after(spoil: Callable[[Path], object], *command: str, sets: tuple[str, ...] = ()) -> Callable[[Path], Args]:
    """A copy of the finished run (`finished` beside the case's folder), spoiled, and the command on it."""

    def make(at: Path) -> Args:
        shutil.copytree(at.parent / "finished", at, dirs_exist_ok=True)
        spoil(at / "out")
        flags = [word.format(at=at) for each in sets for word in ("--set", each)]
        if command:
            return [*command, at / "out", *flags]
        return ["run", at.parent / "finished" / "tiny.yaml", "--out", at / "out", *flags]

    return make


def exports(*words: str) -> Callable[[Path], Args]:
    """A copy of the finished run, and `export` of it with these words."""
    return lambda at: [*after(untouched, "export")(at), *(word.format(at=at) for word in words)]


def killed(spoil: Callable[[Path], object]) -> Callable[[Path], Args]:
    """The same, as a kill between the last checkpoint of `plain` and its end leaves it, its checkpoint spoiled."""

    def cut(home: Path) -> None:
        for record in home.glob("checkpoints/plain-*/done.json"):
            record.unlink()
        spoil(next(home.glob("checkpoints/plain-*/step-*")))

    return after(cut)


def cut_in_half(*name: str) -> Callable[[Path], None]:
    def spoil(home: Path) -> None:
        path = home.joinpath(*name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def flip(name: str) -> Callable[[Path], None]:
    def spoil(home: Path) -> None:
        held = bytearray((home / name).read_bytes())
        held[-5] ^= 1
        (home / name).write_bytes(held)

    return spoil


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def spoil(home: Path) -> None:
        (home / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def beside(*gone: str, again: bool = False) -> Callable[[Path], Args]:
    """The finished run beside a copy of it that lacks files, compared with an arm that is not there."""

    def make(at: Path) -> Args:
        for name in ("first", "second"):
            shutil.copytree(at.parent / "finished", at / name, dirs_exist_ok=True)
        for name in gone:
            (at / "second" / name).unlink()
        runs = [at / ("second" if again else "first") / "out", at / "second" / "out"]
        return ["compare", *runs, "--out", at / "out", "--baseline", "plan"]

    return make


def untouched(home: Path) -> None:
    """Leave the run as it is."""


NAN = np.full((60, tiny.FEATURES), np.nan, np.float32)
HINT = {"kind": "hint", "student": "hiden1", "teacher": "hidden1"}
TEACHER_HINT = {"kind": "hint", "student": "hidden1", "teacher": "layer3"}
TABLE = {"kind": "table", "label": "kind"}
NPZ = {"kind": "npz"}
OBJECTIVE = ("arms", "distilled", "objective")

RECIPES: dict[str, Case] = {
    "missing recipe": Case(lambda at: ["run", at / "nowhere.yaml"], ("nowhere.yaml", "No such file")),
    "recipe is a folder": Case(lambda at: (at / "a.yaml").mkdir() or ["run", at / "a.yaml"], ("a.yaml", "directory")),
    "unknown recipe": Case(lambda at: ["run", "digitz"], ("'digitz'", "did you mean 'digits'?")),
    "empty recipe": Case(text(""), ("mine.yaml", "nothing")),
    "recipe is a list": Case(text("- 1\n- 2\n"), ("mine.yaml", "list")),
    "recipe is no text": Case(text(b"PK\x03\x04\xff\xfe\x00"), ("mine.yaml", "UTF-8")),
    "broken YAML": Case(text("title: [1, 2\nstory: x\n"), ("mine.yaml", "line 2")),
    "control character": Case(text("title: a\x07b\n"), ("mine.yaml", "not YAML")),
    "YAML that runs code": Case(yaml_code, ("mine.yaml", "python/object/apply:os.system")),
    "YAML that holds itself": Case(text("&a\ntitle: tiny\nstory: x\ndata: *a\n"), ("mine.yaml",)),
    "key that is a list": Case(text("? [1, 2]\n: 3\n"), ("mine.yaml", "line 1", "unhashable")),
    "unknown key": Case(edit("epochs", value=3), ("tiny.yaml", "epochs: no such key")),
    "key missing": Case(text("title: x\n"), ("mine.yaml", "data: is missing")),
    "unknown nested key": Case(change("training.epoch=3"), ("'training.epoch'", "did you mean 'epochs'?")),
    "views of one picture": Case(change("targets.views=4"), ("4 views", "one and the same", "give `augment`")),
    "no views": Case(change("targets.views=0"), ("targets.views", "at least 1")),
    "a codec that is none": Case(change("targets.codec.kind=zip"), ("targets.codec", "zip")),
    "--set without =": Case(change("training.epochs"), ("--set", "'training.epochs'")),
    "--set beyond a list": Case(change("arms.plain.objective.4.weight=1"), ("arms.plain.objective.4.weight",)),
    "wrong type": Case(change("training.epochs=many"), ("training.epochs", "integer", "'many'")),
    "zero epochs": Case(change("training.epochs=0"), ("training: epochs", "0 is not a whole number")),
    "zero seeds": Case(change("seeds=0"), ("seeds", "0 is not")),
    "negative rate": Case(change("training.optimizer.rate=-0.1"), ("optimizer.rate", "-0.1")),
    "rate that is no number": Case(change("training.optimizer.rate=.nan"), ("optimizer.rate", "nan")),
    "temperature 0": Case(
        edit(*OBJECTIVE, 0, "temperature", value=0),
        ("temperature", "objective.0.kl: kl.temperature", "0.0 is not above zero"),
    ),
    "unknown objective": Case(
        edit(*OBJECTIVE, 0, "kind", value="kll"), ("arms.distilled.objective.0", "'kll'", "'kl'")
    ),
    "unknown schedule": Case(change("training.schedule.kind=cosin"), ("training.schedule", "'cosin'", "'cosine'")),
    "unknown optimizer": Case(change("training.optimizer.name=AdamX"), ("optimizer.name", "'AdamX'", "did you mean")),
    "unknown option": Case(change("training.optimizer.options={momentom: 0.9}"), ("optimizer.options", "momentom")),
    "unknown device": Case(change("training.device=gpu"), ("device", "'gpu'", '"cuda"')),
    "unknown baseline": Case(change("baseline=plan"), ("baseline", "'plan'", "did you mean 'plain'?")),
    "taught baseline": Case(change("baseline=distilled"), ("baseline", "'distilled'", "has a teacher", "null")),
    "no arms": Case(edit("arms", value={}), ("tiny.yaml", "baseline", "'plain'")),
    "unknown student layer": Case(edit(*OBJECTIVE, 0, value=HINT), ("student", "'hiden1'", "did you mean 'hidden1'?")),
    "unknown teacher layer": Case(edit(*OBJECTIVE, 0, value=TEACHER_HINT), ("teacher", "'layer3'", "hidden1")),
    "unknown objective inside another": Case(
        edit(*OBJECTIVE, 0, value={"kind": "weighed", "term": {"kind": "kll"}}),
        ("objective.0.weighed.term", "'kll'", "did you mean 'kl'"),
    ),
    "a key of an objective inside another": Case(
        edit(*OBJECTIVE, 0, value={"kind": "weighed", "term": {"kind": "kl", "temprature": 3}}),
        ("weighed.term.kl.temprature", "no such key"),
    ),
    "a share at its end": Case(edit(*OBJECTIVE, 0, value={"kind": "jsd", "beta": 1}), ("jsd.beta", "at 1 `kl`")),
    "reverse over top-k without a tail": Case(
        edit(*OBJECTIVE, 0, value={"kind": "topk_kl", "k": 2, "direction": "reverse", "tail": "raw"}),
        ("topk_kl", "beyond the k", "bucket"),
    ),
    "no term": Case(edit(*OBJECTIVE, value=[]), ("objective", "no term")),
    "convolutions on a table": Case(edit("student", value={"kind": "conv"}), ("conv", "(4,)")),
    "batch larger than data": Case(change("training.batch_size=500"), ("batch_size", "500", "give at most")),
}

DATA: dict[str, Case] = {
    "missing file": Case(on({**TABLE, "path": "no.csv"}), ("no.csv", "there is no such file")),
    "data is a folder": Case(on({**TABLE, "path": "."}), ("folder", "a table is expected")),
    "empty file": Case(file("a.npz", b"", NPZ), ("a.npz", "the file is empty")),
    "text called npz": Case(file("a.npz", "hello\n", NPZ), ("a.npz", "no npz file")),
    "truncated npz": Case(lambda at: cut(at, npz()(at)), ("data.npz", "zip")),
    "npz without the keys": Case(npz(train_images=None, train_labels=None), ("data.npz", "'train_images'")),
    "npz with objects": Case(npz(train_labels=np.array([{}] * 60)), ("data.npz", "'train_labels'", "pickled")),
    "NaN in npz": Case(npz(train_images=NAN), ("train_images", "NaN or infinite in row 0")),
    "lengths differ": Case(npz(train_labels=np.arange(59) % 3), ("data.npz", "x has 60, y has 59")),
    "labels are floats": Case(npz(train_labels=np.ones(60)), ("'train_labels'", "float64")),
    "more labels than names": Case(npz(label_names=np.array(["a", "b"])), ("train_labels", "label `y` is 2 in row 2")),
    "NaN in CSV": Case(csv(5, "f1", "nan"), ("data.csv, line 5", "'f1'", "finite")),
    "text in a number column": Case(csv(7, "f2", "red"), ("data.csv, line 7", "'f2'", "'red'")),
    "CSV with a short row": Case(file("a.csv", "f,kind\n1,0\n2\n", TABLE), ("a.csv, line 3", "1 cells")),
    "CSV with a header alone": Case(file("a.csv", "f,kind\n", TABLE), ("a.csv", "no row below the header")),
    "no label column": Case(change("data.label=knd"), ("data.csv", "'knd'", "did you mean 'kind'?")),
    "no image folder": Case(on({"kind": "images", "path": "no", "size": 8}), ("no", "there is no such folder")),
    "empty image folder": Case(on({"kind": "images", "path": ".", "size": 8}), ("image",)),
    "damaged image": Case(lambda at: bad_image(at), ("cat", "1.png", "no readable image")),
    "share of everything": Case(change("data.test_share=1.0"), ("test_share", "1.0")),
    "crops of a table": Case(change("augment={crop: 2}"), ("augment", "no input is an image")),
    "keys of other data": Case(change("data.kind=digits"), ("data.digits.path: no such key",)),
    "loss that explodes": Case(
        change("training.optimizer.rate=1e30", "training.clip=null"), ("training", "NaN or infinite", "step")
    ),
}

WEIGHTS: dict[str, Case] = {
    "missing weights": Case(weights(None), ("teacher.weights", "teacher.safetensors", "there is no file")),
    "weights that run code": Case(
        weights(pickled, "teacher.pth"), ("teacher.weights", "teacher.pth", "more than tensors")
    ),
    "pickle of a list": Case(
        weights(lambda path: path.write_bytes(pickle.dumps([1, 2])), "teacher.pth"), ("teacher.weights", "teacher.pth")
    ),
    "one tensor": Case(weights(lambda p: torch.save(torch.zeros(3), p), "t.pth"), ("teacher.weights", "t.pth")),
    "numbers for tensors": Case(weights(lambda p: torch.save({"a": 1}, p), "t.pth"), ("teacher.weights", "t.pth")),
    "truncated weights": Case(weights(truncated), ("teacher.weights", "teacher.safetensors")),
    "another class count": Case(
        weights(lambda p: save_file(network(classes=100), p)), ("teacher.weights", "linear.bias", "100")
    ),
    "another network": Case(
        weights(lambda p: save_file({"conv1.weight": torch.zeros(3)}, p)), ("teacher.weights", "another network")
    ),
}

FOLDERS: dict[str, Case] = {
    "out is a file": Case(out("{at}/file"), ("file", "is a file")),
    "out below a file": Case(out("{at}/file/run"), ("file/run", "cannot be written")),
    "out in /proc": Case(out("/proc/run"), ("/proc/run", "cannot be written")),
    "foreign files": Case(folder("holiday.jpg"), ("out", "other files and no run")),
    "another recipe": Case(after(untouched, sets=("training.epochs=2",)), ("out", "`training.epochs`")),
    "damaged recipe.yaml": Case(after(write("recipe.yaml", "a: [")), ("recipe.yaml", "damaged")),
    "binary recipe.yaml": Case(after(write("recipe.yaml", b"\xff\xfe\xff")), ("recipe.yaml", "damaged")),
    "truncated checkpoint": Case(killed(cut_in_half("tensors.safetensors")), ("tensors.safetensors", "damaged")),
    "flipped byte in a checkpoint": Case(killed(flip("tensors.safetensors")), ("tensors.safetensors", "damaged")),
    "truncated state.json": Case(killed(cut_in_half("state.json")), ("state.json", "damaged")),
    "empty state.json": Case(killed(write("state.json", "{}")), ("state.json", "damaged")),
    "truncated done.json": Case(after(cut_in_half("checkpoints", "plain-0", "done.json")), ("done.json", "damaged")),
    "empty done.json": Case(after(write("checkpoints/plain-0/done.json", "{}")), ("done.json", "damaged")),
    "binary metrics.jsonl": Case(after(write("metrics.jsonl", b"\xff\xfe\xff")), ("metrics.jsonl", "damaged")),
    "show: truncated scores.json": Case(after(cut_in_half("scores.json"), "show"), ("scores.json", "damaged")),
    "show: scores.json is a list": Case(after(write("scores.json", "[1]"), "show"), ("scores.json",)),
    "report: truncated scores.json": Case(after(cut_in_half("scores.json"), "report"), ("scores.json", "damaged")),
    "report: damaged environment": Case(after(write("environment.json", "{"), "report"), ("environment.json",)),
    "report: binary metrics": Case(after(write("metrics.jsonl", b"\xff\xfe"), "report"), ("metrics.jsonl",)),
    "evaluate: truncated weights": Case(
        after(cut_in_half("student", "model.safetensors"), "evaluate"), ("student", "cannot be loaded")
    ),
    "evaluate: truncated lineage": Case(
        after(cut_in_half("student", "lineage.json"), "evaluate"), ("lineage.json", "damaged")
    ),
    "evaluate: empty lineage": Case(after(write("student/lineage.json", "{}"), "evaluate"), ("lineage.json",)),
    "evaluate: damaged recipe": Case(after(write("recipe.yaml", "a: ["), "evaluate"), ("recipe.yaml", "not YAML")),
    "evaluate: data is gone": Case(
        after(untouched, "evaluate", sets=("data.path={at}/gone.csv",)), ("gone.csv", "no such file")
    ),
    "evaluate: data of another width": Case(
        after(
            lambda home: tiny.table(home.parent / "wide.csv", features=7), "evaluate", sets=("data.path={at}/wide.csv",)
        ),
        ("saved student", "x (12, 7)"),
    ),
    "evaluate: more classes": Case(
        after(
            lambda home: tiny.table(home.parent / "more.csv", classes=5), "evaluate", sets=("data.path={at}/more.csv",)
        ),
        ("data", "label `y` is", "of 3 classes"),
    ),
    "report: no such run": Case(lambda at: ["report", at / "nowhere"], ("nowhere",)),
    "evaluate: no such run": Case(lambda at: ["evaluate", at / "nowhere"], ("nowhere",)),
    "export: no such run": Case(lambda at: ["export", at / "nowhere"], ("nowhere",)),
    "export: no such form": Case(exports("--to", "int4"), ("export", "'int4'", "did you mean 'int8'?")),
    "export: out is a file": Case(exports("--to", "folder", "--out", "{at}/out/recipe.yaml"), ("cannot be written",)),
    "export: data is gone": Case(exports("--set", "data.path={at}/gone.csv"), ("gone.csv", "no such file")),
    "show: nothing of that name": Case(lambda at: ["show", "hintt"], ("'hintt'", "did you mean 'hint'?")),
    "compare: a run that has not ended": Case(beside("out/scores.json"), ("second/out", "has not ended")),
    "compare: the same run twice": Case(beside(again=True), ("second/out", "given twice")),
    "compare: no such arm": Case(beside(), ("baseline", "'plan'", "first/out/plain")),
    "list: nothing of that name": Case(lambda at: ["list", "modells"], ("'modells'", "did you mean 'models'?")),
}


def cut(at: Path, args: Args) -> Args:
    cut_in_half("data.npz")(at)
    return args


def bad_image(at: Path) -> Args:
    for part in ("train", "test"):
        (at / part / "cat").mkdir(parents=True)
        (at / part / "cat" / "1.png").write_bytes(b"\x89PNG no")
    return on({"kind": "images", "path": ".", "size": 8})(at)


CASES = {**RECIPES, **DATA, **WEIGHTS, **FOLDERS}
