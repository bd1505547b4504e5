"""Runs beside each other: what is joined, what is compared with what, and what is refused or said."""

from __future__ import annotations

import copy
import json
import statistics
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_run import metrics, scores, write
from scipy import stats

from limbeck.comparing import compare
from limbeck.core.errors import CheckpointError, ConfigError, DataError, LimbeckError
from limbeck.report import lines, render

RECIPE = {"title": "one", "data": {"kind": "npz", "path": "a.npz"}, "training": {"epochs": 10}, "seeds": 3}
MACHINE = {"limbeck": "0.1.0", "processor": "x86_64", "threads": 2, "cores": 2, "device": "cpu", "seconds": 7.0}


def kept(folder, found=None, recipe=None, machine=None, recorded=()):
    """A run folder with these records."""
    write(folder, scores() if found is None else found, list(recorded))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE if recipe is None else recipe))
    (folder / "environment.json").write_text(json.dumps(MACHINE if machine is None else machine))
    return folder


def moved(found, by):
    """The same run with students that are better by so much, more so with each seed; the teacher is the same."""
    found = copy.deepcopy(found)
    for name, arm in found["arms"].items():
        for run in arm["runs"] if name != "teacher" else []:
            run["scores"]["accuracy"] += by * (1 + run["seed"] ** 2)
    return found


@pytest.fixture
def two(tmp_path):
    """Two runs with the same teacher; the students of `b` are better."""
    records = metrics(epochs=2)
    return [kept(tmp_path / "a", recorded=records), kept(tmp_path / "b", moved(scores(), 0.01), recorded=records)]


def accuracies(found, arm):
    return [run["scores"]["accuracy"] for run in found["arms"][arm]["runs"]]


def row(document, arm, metric="accuracy"):
    [found] = [r for r in document["comparisons"] if (r["arm"], r["metric"]) == (arm, metric)]
    return found


def notes(document):
    return "\n".join(document["notes"])


def test_arms_are_named_by_their_run_and_the_same_teacher_is_there_once(two, tmp_path):
    found = compare(two, out=tmp_path / "both").document
    students = [f"{run}/{arm}" for run in "ab" for arm in ("plain", "model", "knowledge")]
    assert sorted(found["arms"]) == sorted(["a/teacher", *students])
    assert found["arms"]["a/teacher"]["label"] == "Teacher"
    assert found["arms"]["b/model"]["label"] == "Distilled (outputs) (b)"
    assert found["arms"]["b/plain"]["role"] == "plain"
    assert accuracies(found, "b/model") == accuracies(moved(scores(), 0.01), "model")
    assert found["title"] == "a · b"
    assert found["samples"] == 10000
    assert found["split"] == "test"
    assert "a: The teacher was trained with one seed" in notes(found)


def test_every_student_is_compared_with_the_first_plain_one_seed_by_seed(two, tmp_path):
    found = compare(two, out=tmp_path / "both").document
    assert found["baseline"] == "a/plain"
    assert {r["arm"] for r in found["comparisons"]} == set(found["arms"]) - {"a/teacher", "a/plain"}
    for arm in ("b/model", "b/knowledge", "b/plain"):
        ours, theirs = accuracies(found, arm), accuracies(found, "a/plain")
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        said = row(found, arm)
        assert said["mean"] == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
        assert (said["low"], said["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert said["n"] == 3


def test_the_folder_is_one_of_a_run(two, tmp_path):
    found = compare(two, out=tmp_path / "both")
    written = {path.name for path in found.folder.iterdir()}
    assert written == {"scores.json", "metrics.jsonl", "environment.json", "recipe.yaml", "report.html"}
    assert json.loads((found.folder / "scores.json").read_text()) == json.loads(json.dumps(found.document))
    page = found.page.read_text(encoding="utf-8")
    assert all(name in page for name in ("Distilled (outputs) (a)", "Distilled (outputs) (b)"))
    found.page.unlink()
    assert render(found.folder).read_text(encoding="utf-8") == page
    assert yaml.safe_load((found.folder / "recipe.yaml").read_text()) == {"compare": {"a": RECIPE, "b": RECIPE}}


def test_a_comparison_can_be_compared_again(two, tmp_path):
    both = compare(two, out=tmp_path / "both")
    third = kept(tmp_path / "c", moved(scores(), 0.02))
    found = compare([both.folder, third], out=tmp_path / "all").document
    assert "both/b/model" in found["arms"]
    assert found["baseline"] == "both/a/plain"
    assert [name for name, arm in found["arms"].items() if arm["role"] == "teacher"] == ["both/a/teacher"]
    assert row(found, "c/model")["n"] == 3


def test_the_runs_are_only_read_and_the_same_call_writes_the_same(two, tmp_path):
    before = {path: path.read_bytes() for run in two for path in run.iterdir()}
    first = compare(two, out=tmp_path / "both").folder
    content = {name: (first / name).read_bytes() for name in ("scores.json", "metrics.jsonl", "recipe.yaml")}
    compare(two, out=tmp_path / "both")
    assert {name: (first / name).read_bytes() for name in content} == content
    assert {path: path.read_bytes() for run in two for path in run.iterdir()} == before


def test_curves_come_along_and_those_of_the_shared_teacher_once(two, tmp_path):
    found = compare(two, out=tmp_path / "both").folder
    records = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    own = metrics(epochs=2)
    expected = {f"{run}/{arm}": sum(r["arm"] == arm for r in own) for run in "ab" for arm in scores()["arms"]}
    del expected["b/teacher"]
    assert {name: sum(r["arm"] == name for r in records) for name in {r["arm"] for r in records}} == expected


def test_one_teacher_with_other_seeds_is_one_teacher(tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 1)):
        found = scores()
        found["arms"]["teacher"]["runs"][0]["seed"] = seed
        lines_ = [{"kind": "epoch", "arm": "teacher", "seed": seed, "epoch": 1, "step": 1, "validation": {"nll": 1.0}}]
        runs.append(kept(tmp_path / name, found, recorded=lines_))
    both = compare(runs, out=tmp_path / "both")
    assert [run["seed"] for run in both.document["arms"]["a/teacher"]["runs"]] == [0, 1]
    assert len((both.folder / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("change", ["describe", "scores"])
def test_another_teacher_is_there_beside_the_first_and_is_told(tmp_path, change):
    other = scores()
    if change == "describe":
        other["arms"]["teacher"]["describe"] = "ResNet"
    else:
        other["arms"]["teacher"]["runs"][0]["scores"]["accuracy"] += 0.001
    found = compare([kept(tmp_path / "a"), kept(tmp_path / "b", other)], out=tmp_path / "both").document
    assert [found["arms"][name]["label"] for name in ("a/teacher", "b/teacher")] == ["Teacher (a)", "Teacher (b)"]
    assert "different teachers" in notes(found)
    assert "b/teacher" not in {r["arm"] for r in found["comparisons"]}


def test_the_baseline_is_of_the_first_run_that_has_one(two, tmp_path):
    found = scores()
    del found["arms"]["plain"]
    found["baseline"] = None
    write(two[0], found, [])
    assert compare(two, out=tmp_path / "both").document["baseline"] == "b/plain"


def test_without_any_student_trained_alone_nothing_is_compared(tmp_path):
    found = scores()
    del found["arms"]["plain"]
    found["baseline"] = None
    runs = [kept(tmp_path / name, found) for name in "ab"]
    both = compare(runs, out=tmp_path / "both").document
    assert both["baseline"] is None
    assert both["comparisons"] == []


def test_any_student_may_be_the_baseline(two, tmp_path):
    found = compare(two, out=tmp_path / "both", baseline="a/model").document
    assert found["baseline"] == "a/model"
    difference = [x - y for x, y in zip(accuracies(found, "b/model"), accuracies(found, "a/model"), strict=True)]
    assert row(found, "b/model")["mean"] == pytest.approx(statistics.fmean(difference))
    assert not [r for r in found["comparisons"] if r["arm"] == "a/model"]
    assert compare(two, out=tmp_path / "both", baseline="b/plain").document["baseline"] == "b/plain"


@pytest.mark.parametrize(("name", "says"), [("a/modle", "did you mean 'a/model'"), ("a/teacher", "is a teacher")])
def test_a_baseline_that_is_no_student_is_refused(two, tmp_path, name, says):
    with pytest.raises(ConfigError, match=says):
        compare(two, out=tmp_path / "both", baseline=name)
    assert not (tmp_path / "both").exists()


def test_runs_without_a_common_seed_are_not_compared_and_it_is_said(tmp_path):
    other = scores()
    for arm in other["arms"].values():
        for run in arm["runs"]:
            run["seed"] += 10
    found = compare([kept(tmp_path / "a"), kept(tmp_path / "b", other)], out=tmp_path / "both").document
    assert {r["arm"] for r in found["comparisons"]} == {"a/model", "a/knowledge"}
    assert "no seed is shared with Student alone (a)" in notes(found)


def test_another_student_is_told(two, tmp_path):
    found = scores()
    found["arms"]["model"]["describe"] = "Conv(channels=(8, 8))"
    write(two[1], found, [])
    said = [note for note in compare(two, out=tmp_path / "both").document["notes"] if "another network" in note]
    assert len(said) == 1
    assert "Distilled (outputs) (b)" in said[0]
    assert "Distilled (outputs) (a)" not in said[0]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("split", "validation", r"`split` is test in a and validation in b"),
        ("samples", 500, r"`samples` is 10000 in a and 500 in b"),
        ("classes", ["x", "y"], r"`classes` is .* in b"),
    ],
)
def test_scores_on_other_test_data_are_refused_by_the_field_that_differs(two, tmp_path, key, value, says):
    write(two[1], scores() | {key: value}, [])
    with pytest.raises(DataError, match=says):
        compare(two, out=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_known_test_data_must_be_the_same(tmp_path):
    recipes = [
        {**RECIPE, "data": {"train": train, "test": test}} for train, test in (("p", "q"), ("r", "q"), ("r", "s"))
    ]
    runs = [kept(tmp_path / name, recipe=recipe) for name, recipe in zip("abc", recipes, strict=True)]
    compare(runs[:2], out=tmp_path / "both")
    with pytest.raises(DataError, match=r"`data\.test` is q in a and s in c"):
        compare([runs[0], runs[2]], out=tmp_path / "other")


def test_classes_without_names_are_no_other_classes(two, tmp_path):
    write(two[0], scores() | {"classes": None}, [])
    assert compare(two, out=tmp_path / "both").document["classes"] == scores()["classes"]


def test_what_the_recipes_have_otherwise_is_told(tmp_path):
    other = {
        **RECIPE,
        "title": "two",
        "data": {"kind": "npz", "path": "b.npz"},
        "training": {"epochs": 20, "clip": 1.0},
    }
    runs = [kept(tmp_path / "a"), kept(tmp_path / "b", recipe=other), kept(tmp_path / "c")]
    said = compare(runs, out=tmp_path / "all").document["notes"]
    assert (
        "b has other data than a: data.path is b.npz and not a.npz; where the test samples are not the same, "
        in said[0]
    )
    assert said[1] == "b beside a: training.epochs is 20 and not 10; training.clip is 1.0 and not absent."
    assert not any(note.startswith("c ") for note in said)


def test_many_settings_are_cut_and_counted(tmp_path):
    runs = [
        kept(tmp_path / n, recipe={**RECIPE, **{f"k{i}": i * by for i in range(1, 10)}})
        for n, by in (("a", 1), ("b", 2))
    ]
    said = notes(compare(runs, out=tmp_path / "both").document)
    assert "k6 is 12 and not 6; and 3 more settings differ" in said


def test_another_machine_is_told(tmp_path):
    runs = [kept(tmp_path / "a"), kept(tmp_path / "b", machine={**MACHINE, "threads": 8})]
    both = compare(runs, out=tmp_path / "both")
    assert "Times cannot be compared" in notes(both.document)
    environment = json.loads((both.folder / "environment.json").read_text())
    assert environment["threads"] == "2 (a), 8 (b)"
    assert environment["cores"] == 2
    assert "seconds" not in environment


def test_runs_of_one_name_are_told_apart_by_the_folder_above(tmp_path):
    runs = [kept(tmp_path / above / "run") for above in ("x", "y")] + [kept(tmp_path / "z")]
    arms = compare(runs, out=tmp_path / "all").document["arms"]
    assert {name.rpartition("/")[0] for name in arms} == {"x/run", "y/run", "z"}


def test_what_distill_gives_back_is_taken_by_its_folder(two, tmp_path):
    first = SimpleNamespace(folder=SimpleNamespace(path=two[0]))
    assert compare([first, str(two[1])], out=tmp_path / "both").document["title"] == "a · b"
    with pytest.raises(CheckpointError, match="has no folder"):
        compare([SimpleNamespace(folder=SimpleNamespace(path=None)), two[1]], out=tmp_path / "other")


def test_the_same_run_twice_and_one_run_alone_are_refused(two, tmp_path):
    (tmp_path / "link").symlink_to(two[0])
    for runs, says in (([two[0], tmp_path / "link"], "given twice"), ([two[0]], "one run alone"), ([], "no run")):
        with pytest.raises(ConfigError, match=says):
            compare(runs, out=tmp_path / "both")


def test_a_run_that_has_not_ended_is_named(two, tmp_path):
    (two[1] / "scores.json").unlink()
    with pytest.raises(CheckpointError, match=r"/b: this run has not ended"):
        compare(two, out=tmp_path / "both")
    (tmp_path / "empty").mkdir()
    for folder, says in (("empty", r"/empty: holds no run"), ("none", r"/none: there is no such folder")):
        with pytest.raises(CheckpointError, match=says):
            compare([two[0], tmp_path / folder], out=tmp_path / "both")


@pytest.mark.parametrize("name", ["scores.json", "evidence.json"])
def test_a_folder_of_a_newer_limbeck_is_named(two, tmp_path, name):
    (two[1] / name).write_text(json.dumps((scores() if name == "scores.json" else {}) | {"format": 2}))
    with pytest.raises(CheckpointError, match=rf"/b/{name}: has format 2"):
        compare(two, out=tmp_path / "both")


@pytest.mark.parametrize("name", ["scores.json", "evidence.json", "environment.json", "recipe.yaml"])
def test_a_damaged_file_is_named(two, tmp_path, name):
    (two[1] / name).write_text("{")
    with pytest.raises(CheckpointError, match=rf"/b/{name}: is damaged"):
        compare(two, out=tmp_path / "both")


def test_a_folder_that_holds_something_else_is_refused(two, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").touch()
    third = kept(tmp_path / "c")
    compare([two[0], third], out=tmp_path / "other")
    for out in (tmp_path / "holiday", two[0], third, tmp_path / "other"):
        before = {path: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(CheckpointError, match=r"holds another run|holds other files"):
            compare(two, out=out)
        assert {path: path.read_bytes() for path in out.iterdir()} == before


EVIDENCE = {
    "format": 1,
    "samples": 500,
    "arms": {
        name: [{"seed": seed, "overfitting": {"gap": 0.1 + 0.01 * i + 0.003 * seed * (1 + i)}} for seed in seeds]
        for i, (name, seeds) in enumerate({"teacher": [1], "plain": [0, 1, 2], "model": [0, 1, 2]}.items())
    },
    "random": {"attribution": {"grad_cam": {"rank": 0.0}}},
    "churn": {"plain": {"mean": 0.1, "pairs": []}},
    "costs": {"teacher": {"disk": 10}, "model": {"disk": 5}},
    "rates": {"model": {"rate": [0.1, 0.2], "runs": [1, 1], "diverged": [0, 0], "accuracy": [[0.5], [0.6]]}},
    "gallery": [{"id": 1, "label": "cat", "image": "data:,x", "maps": [{"arm": "teacher", "image": "data:,t"},
                                                                       {"arm": "model", "image": "data:,m"}]}],
    "disagreements": [{"arm": "model", "id": 7, "label": "dog"}],
    "comparisons": [{"arm": "model", "baseline": "plain", "measure": "churn", "mean": -0.01, "verdict": "better"},
                    {"arm": "model", "baseline": "plain", "measure": "gap", "mean": 9.0, "verdict": "worse"}],
}  # fmt: skip


@pytest.fixture
def evident(two):
    """The two runs with evidence; `b` has a smaller gap."""
    for run, factor in zip(two, (1.0, 0.5), strict=True):
        evidence = copy.deepcopy(EVIDENCE)
        for entry in evidence["arms"]["model"]:
            entry["overfitting"]["gap"] *= factor
        (run / "evidence.json").write_text(json.dumps(evidence))
    return two


def test_evidence_comes_along_under_the_new_names(evident, tmp_path):
    found = json.loads((compare(evident, out=tmp_path / "both").folder / "evidence.json").read_text())
    assert set(found["arms"]) == {"a/teacher", "a/plain", "a/model", "b/plain", "b/model"}
    assert len(found["arms"]["a/teacher"]) == 1
    assert found["samples"] == 500
    assert set(found["churn"]) == {"a/plain", "b/plain"}
    assert set(found["costs"]) == {"a/teacher", "a/model", "b/model"}
    assert set(found["rates"]) == {"a/model", "b/model"}
    assert [d["arm"] for d in found["disagreements"]] == ["a/model", "b/model"]
    [shown] = found["gallery"]
    assert [each["arm"] for each in shown["maps"]] == ["a/teacher", "a/model", "b/model"]
    assert found["random"] == EVIDENCE["random"]


def test_measures_are_compared_with_the_common_baseline(evident, tmp_path):
    found = json.loads((compare(evident, out=tmp_path / "both").folder / "evidence.json").read_text())
    rows = {(r["arm"], r["measure"]): r for r in found["comparisons"]}
    assert set(rows) == {("a/model", "gap"), ("b/model", "gap"), ("b/plain", "gap"), ("a/model", "churn")}
    assert {r["baseline"] for r in rows.values()} == {"a/plain"}
    for arm in ("a/model", "b/model"):
        ours, theirs = ([entry["overfitting"]["gap"] for entry in found["arms"][a]] for a in (arm, "a/plain"))
        interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        said = rows[arm, "gap"]
        assert (said["low"], said["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_evidence_on_other_samples_is_told_and_chance_of_another_teacher_is_left_out(evident, tmp_path):
    (evident[1] / "evidence.json").write_text(json.dumps(EVIDENCE | {"samples": 100}))
    other = scores()
    other["arms"]["teacher"]["describe"] = "ResNet"
    write(evident[1], other, [])
    both = compare(evident, out=tmp_path / "both")
    found = json.loads((both.folder / "evidence.json").read_text())
    assert "samples" not in found
    assert "random" not in found
    assert "500 (a), 100 (b) samples" in notes(both.document)


def places(value, path=()):
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in steps:
        yield from places(item, (*path, key))


PLACES = [("scores", *path) for path in places(scores()) if path] + [("evidence", *p) for p in places(EVIDENCE) if p]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.sampled_from([None, 3, "x", [], {}, [None], {"a": None}, True, float("nan")]))
def test_whatever_one_value_is_replaced_by_it_is_joined_or_refused(tmp_path, path, value):
    found = {"scores": scores(), "evidence": copy.deepcopy(EVIDENCE)}
    inner = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    kept(tmp_path / "a")
    kept(tmp_path / "b", found["scores"])
    (tmp_path / "b" / "evidence.json").write_text(json.dumps(found["evidence"]))
    try:
        both = compare([tmp_path / "a", tmp_path / "b"], out=tmp_path / "both")
    except LimbeckError:
        return
    assert lines(both.document)
