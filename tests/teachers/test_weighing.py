"""What members of an ensemble are worth by sample, and classes that not all know: against loops and scipy."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

import limbeck as lb
from limbeck.core.errors import ConfigError, ModelError

G = torch.Generator().manual_seed(3)
X = torch.randn(7, 2, generator=G)
Y = torch.tensor([0, 1, 2, 3, 0, -1, 2])
BATCH = {"x": X, "y": Y, "id": torch.arange(7), "valid": torch.ones(7, dtype=torch.bool)}
SAME = [torch.randn(7, 4, generator=G) * 3 for _ in range(3)]
MAP = ((0, 1), (2, 1, 3), (3, 0))
PARTS = [torch.randn(7, len(own), generator=G) * 3 for own in MAP]


def says(table):
    return lb.teacher(lambda x: x, inputs=lambda batch: table[batch["id"]])


def several(tables, **how):
    return lb.teacher([says(table) for table in tables], **how)


def worth(costs):
    """Equation 3 of CA-MKD, sample by sample."""
    return (1 - np.exp(costs) / np.exp(costs).sum()) / (len(costs) - 1)


@pytest.mark.parametrize("trust", ["entropy", "label"])
@pytest.mark.parametrize("weights", [None, (1, 2, 5)])
def test_the_more_trusted_are_heard_more(trust, weights):
    answer = several(SAME, trust=trust, weights=weights).open([], BATCH)["logits"]
    for i in range(7):
        if trust == "entropy":
            share = worth(np.array([entropy(softmax(t[i].numpy())) for t in SAME]))
        elif Y[i] >= 0:
            share = worth(np.array([-log_softmax(t[i].numpy())[Y[i]] for t in SAME]))
        else:
            share = np.ones(3)
        share = share * np.array(weights or (1, 1, 1))
        wanted = sum(s * t[i].numpy() for s, t in zip(share / share.sum(), SAME, strict=True))
        np.testing.assert_allclose(answer[i].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_soft_label_is_trusted_as_the_hard_one():
    soft = torch.nn.functional.one_hot(Y.clamp_min(0), 4).float() * (Y >= 0).unsqueeze(-1)
    teacher = several(SAME, trust="label")
    torch.testing.assert_close(teacher({**BATCH, "y": soft})["logits"], teacher(BATCH)["logits"])


def test_one_who_is_heard_alone_has_all_the_say():
    teacher = several(SAME, trust="entropy", dropout=0.7, seed=2)
    plain = several(SAME, dropout=0.7, seed=2)
    answer, other = teacher(BATCH)["logits"], plain(BATCH)["logits"]
    alone = [i for i in range(7) if any(torch.allclose(other[i], t[i]) for t in SAME)]
    assert alone
    torch.testing.assert_close(answer[alone], other[alone])
    assert not answer.isnan().any()


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_a_class_is_the_mean_of_those_who_know_it(mean):
    answer = several(PARTS, classes=MAP, mean=mean).open([], BATCH)["logits"]
    assert answer.shape == (7, 4)
    for i in range(7):
        for c in range(4):
            known = []
            for table, own in zip(PARTS, MAP, strict=True):
                if c in own:
                    value = table[i].numpy().astype(float)
                    known.append((value if mean == "logits" else softmax(value))[own.index(c)])
            wanted = np.mean(known) if mean == "logits" else np.log(np.mean(known))
            assert float(answer[i, c]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "how", [{"choose": "confident"}, {"choose": "correct"}, {"trust": "label"}, {"trust": "entropy"}]
)
def test_choices_and_trust_go_with_different_classes(how):
    answer = several(PARTS, classes=MAP, **how)(BATCH)["logits"]
    assert not answer.isnan().any()
    assert (answer > -torch.inf).any(1).all()
    if how.get("choose") == "confident":
        for i in range(7):
            best = max(range(3), key=lambda k, i=i: float(PARTS[k][i].softmax(-1).max()))
            torch.testing.assert_close(answer[i, list(MAP[best])], PARTS[best][i])


def test_the_same_classes_for_all_are_the_plain_mean():
    every = several(SAME, classes=((0, 1, 2, 3),) * 3)(BATCH)["logits"]
    torch.testing.assert_close(every, several(SAME)(BATCH)["logits"])


def test_what_is_asked_is_part_of_the_fingerprint():
    plain = several(SAME).identity()
    assert "trust" not in plain  # targets that were stored before this could be asked stay good
    assert several(SAME, trust="entropy").identity() != plain
    assert several(PARTS, classes=MAP).identity()["classes"] == [[0, 1], [2, 1, 3], [3, 0]]


def test_a_student_learns_every_class_from_teachers_of_some():
    done = lb.distill(
        torch.nn.Linear(2, 4), several(PARTS, classes=MAP), train=(X, Y), val=(X, Y), test=(X, Y), objective=lb.KL(),
        epochs=1, batch_size=7, progress=False,
    )  # fmt: skip
    assert done.scores["teacher"]["samples"] == 6


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda: several(PARTS).open([], BATCH), ModelError, "say with `classes`"),
        (lambda: several(PARTS, classes=MAP[:2]), ModelError, "2 lists for 3 members"),
        (lambda: several(PARTS, classes=((0, 1), (1, 2, 3), (5, 0))), ModelError, "no member knows class 4"),
        (lambda: several(PARTS, classes=((0, 0), (1, 2, 3), (3, 0))), ModelError, "distinct class numbers"),
        (lambda: several(PARTS, classes=((0, 1), (2, 3), (3, 0))).open([], BATCH), ModelError, "names 2 classes"),
        (lambda: several(SAME, trust="entrop"), ConfigError, "did you mean 'entropy'"),
    ],
)
def test_what_cannot_be_joined_is_refused_with_a_mend(make, kind, said):
    with pytest.raises(kind, match=said) as caught:
        make()
    assert "To mend" in str(caught.value)
