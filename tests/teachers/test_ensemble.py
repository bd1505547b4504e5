"""Several teachers as one, held against scipy and loops over samples."""

import numpy as np
import pytest
import torch
from kinds import CLASSES, batch, fitted, forest, module
from scipy.special import log_softmax, logsumexp

import limbeck as lb
from limbeck.core.errors import ConfigError, ModelError
from limbeck.teachers.ensemble import kept

G = torch.Generator().manual_seed(0)
TABLES = [torch.randn(8, CLASSES, generator=G) * 3 for _ in range(3)]
ROW = {int(i): k for k, i in enumerate(batch()["id"])}


def fixed(k):
    return lb.teacher(lambda x: x, inputs=lambda b: TABLES[k][[ROW[int(i)] for i in b["id"]]])


def ensemble(**how):
    return lb.teacher([fixed(0), fixed(1), fixed(2)], **how)


@pytest.mark.parametrize("weights", [None, (1, 2, 5)])
def test_means_are_those_of_the_formula(weights):
    share = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    logits = np.stack([t.numpy().astype(np.float64) for t in TABLES])
    answer = ensemble(weights=weights)(batch())["logits"]
    np.testing.assert_allclose(answer.numpy(), (share[:, None, None] * logits).sum(0), rtol=1e-5, atol=1e-6)
    answer = ensemble(weights=weights, mean="probabilities")(batch())["logits"]
    expected = logsumexp(log_softmax(logits, -1), axis=0, b=share[:, None, None])
    np.testing.assert_allclose(answer.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_most_confident_is_heard_alone():
    answer = ensemble(choose="confident")(batch())["logits"]
    for i in range(8):
        best = max(range(3), key=lambda k, i=i: float(TABLES[k][i].softmax(-1).max()))
        torch.testing.assert_close(answer[i], TABLES[best][i])


@pytest.mark.parametrize("soft", [False, True])
def test_those_that_are_right_are_heard_and_all_where_none_is_or_there_is_no_label(soft):
    y = torch.tensor([0, 1, 2, 0, 1, 2, -1, 0])
    given = torch.nn.functional.one_hot(y.clamp_min(0), CLASSES).float() * 0.8 if soft else y
    answer = ensemble(choose="correct")({**batch(), "y": given})["logits"]
    heard = []
    for i in range(8):
        label = int(given[i].argmax()) if soft else int(y[i])
        right = [t[i] for t in TABLES if int(t[i].argmax()) == label] or [t[i] for t in TABLES]
        heard.append(len(right))
        torch.testing.assert_close(answer[i], torch.stack(right).mean(0), atol=1e-5, rtol=1e-5)
    assert len(set(heard)) > 1
    unlabelled = {k: v for k, v in batch().items() if k != "y"}
    torch.testing.assert_close(ensemble(choose="correct")(unlabelled)["logits"], ensemble()(unlabelled)["logits"])


def test_dropout_is_a_pure_function_of_seed_id_and_view():
    ids, views = torch.arange(4000), torch.zeros(4000, dtype=torch.int64)
    how = {"members": 3, "rate": 0.4, "seed": 5}
    heard = kept(ids, views, **how)
    order = torch.randperm(4000)
    assert torch.equal(kept(ids[order], views, **how), heard[order])
    assert heard.any(1).all()
    # At least one stays: 0.6 each, and of the 0.4 ** 3 that would hear none one of three is heard.
    expected = 0.6 + 0.4**3 / 3
    assert heard.double().mean(0).sub(expected).abs().max() < 4 * (expected * (1 - expected) / 4000) ** 0.5
    for other in (kept(ids, views + 1, **how), kept(ids, views, **{**how, "seed": 6}), kept(ids + 1, views, **how)):
        same = (other == heard).double().mean()
        assert same < 0.62
    assert kept(ids, views, members=3, rate=0.0, seed=5).all()


def test_members_left_out_have_no_say():
    teacher = ensemble(dropout=0.6, seed=1)
    heard = kept(batch()["id"], batch()["view"], members=3, rate=0.6, seed=1)
    assert not heard.all()
    answer = teacher(batch())["logits"]
    for i in range(8):
        expected = torch.stack([TABLES[k][i] for k in range(3) if heard[i, k]]).mean(0)
        torch.testing.assert_close(answer[i], expected, atol=1e-5, rtol=1e-5)
    moved = teacher({**batch(), "view": batch()["view"] + 1})["logits"]
    assert not torch.equal(moved, answer)


@pytest.mark.parametrize("choose", ["correct", "confident"])
def test_who_is_left_out_is_not_chosen_either(choose):
    how = {"dropout": 0.6, "seed": 1}
    heard = kept(batch()["id"], batch()["view"], members=3, rate=0.6, seed=1)
    answer = ensemble(choose=choose, **how)(batch())["logits"]
    told = 0
    for i, y in enumerate(batch()["y"].tolist()):
        left = [TABLES[k][i] for k in range(3) if heard[i, k]]
        right = [t for t in left if int(t.argmax()) == y] or left
        best = [max(left, key=lambda t: float(t.softmax(-1).max()))]
        torch.testing.assert_close(answer[i], torch.stack(right if choose == "correct" else best).mean(0))
        told += any(int(TABLES[k][i].argmax()) == y for k in range(3) if not heard[i, k])
    assert told


def test_an_impossible_class_of_one_who_is_not_heard_stays_out():
    says = torch.tensor([[0.0, -torch.inf, 5.0]]).expand(8, 3)
    members = [lb.teacher(lambda x: says, gives="logits"), fixed(0)]
    answer = lb.teacher(members, choose="correct")({**batch(), "y": TABLES[0].argmax(1)})["logits"]
    agree = TABLES[0].argmax(1) == 2
    torch.testing.assert_close(answer[~agree], TABLES[0][~agree])
    assert not answer.isnan().any()


def test_each_member_keeps_its_own_normalisation_and_names():
    ours, theirs = lb.Normalize(mean=(1.0,) * 6, std=(2.0,) * 6), lb.Normalize(mean=(0.5,) * 6, std=(3.0,) * 6)
    model, raw = module(), batch()["x"]
    teacher = lb.teacher([lb.teacher(model, normalize=theirs), fitted(forest)(0)])
    answer = teacher.open(["0.0", "1.logits", "logits"], {**batch(), "x": ours(raw)}, applied=ours)
    torch.testing.assert_close(answer["0.0"], model[0](theirs(raw)).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answer["logits"], (answer["0.logits"] + answer["1.logits"]) / 2)
    assert teacher.words == "an ensemble of 2 (Sequential, RandomForestClassifier)"


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(ModelError, match=r"its members answer with \[\(2, 3\), \(2, 6\)\]"):
        lb.teacher([fixed(0), lambda x: x]).open([], batch(2))
    one = fixed(0)
    for members, how, said in (
        ([], {}, "different members"),
        ([one, one], {}, "different members"),
        ([one, fixed(1)], {"weights": (1, -1)}, "teacher.weights"),
        ([one, fixed(1)], {"weights": (1,)}, "for 2 members"),
        ([one, fixed(1)], {"mean": "logit"}, "did you mean 'logits'"),
        ([one, fixed(1)], {"choose": "best"}, "teacher.choose"),
        ([one, fixed(1)], {"dropout": 1.0}, "teacher.dropout"),
        ([one, fixed(1)], {"temperature": 1.0}, "has no setting 'temperature'"),
    ):
        with pytest.raises(ConfigError, match=said):
            lb.teacher(members, **how)
    for name in ("5.logits", "layer"):
        with pytest.raises(ModelError, match=f"no member gives '{name}'"):
            ensemble().open([name], batch(2))


def test_the_fingerprint_covers_members_and_settings():
    settings = ({}, {"weights": (1, 2, 3)}, {"mean": "probabilities"}, {"choose": "confident"}, {"dropout": 0.1},
                {"dropout": 0.1, "seed": 1})  # fmt: skip
    prints = [ensemble(**how).fingerprint() for how in settings]
    assert len(set(prints)) == len(prints)
    assert ensemble(seed=1).fingerprint() == prints[0]  # without dropout the seed decides nothing
    assert (
        lb.teacher([fixed(1), fixed(0), fixed(2)], weights=(1, 2, 3)).fingerprint() in prints
    )  # one source, three uses
