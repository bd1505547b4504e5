import pytest

from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Linear
from limbeck.core.setting import as_plain, build, pick, tagged
from limbeck.objectives import KL, TERMS, Hint, Label

TERM = tagged(TERMS)


@pytest.mark.parametrize(
    "term", [KL(temperature=4.0), Label(weight=Linear(start=1.0, end=0.5)), Hint(student="a", teacher="b")]
)
def test_plain_data_and_back(term):
    assert build(TERM, as_plain(term), "here") == term


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"kind": "kl", "temprature": 4}, "kl.temprature: no such key"),
        ({"kind": "kll"}, "did you mean 'kl'"),
        ({"kind": "kl", "temperature": "hot"}, "kl.temperature: .*'hot'"),
        ({"kind": "kl", "temperature": -1}, "is not above zero"),
        ({"kind": "kl", "weight": "much"}, "kl.weight: .*'much'"),
        ({"kind": "hint", "student": "a"}, "hint.teacher: is missing"),
        ({}, "kind"),
        (None, "top"),
    ],
)
def test_faults_are_named_by_their_path(plain, said):
    with pytest.raises(ConfigError, match=said):
        build(TERM, plain, "here")


def test_a_fault_in_a_union_is_told_once():
    with pytest.raises(ConfigError) as caught:
        build(TERM, {"kind": "kl", "weight": "much"}, "here")
    assert str(caught.value).count("weight") == 1


def test_settings_are_frozen_and_errors_can_be_pickled():
    import pickle

    with pytest.raises(AttributeError):
        KL().temperature = 3.0
    assert isinstance(pickle.loads(pickle.dumps(ConfigError(problem("a", "b", "c")))), ConfigError)
    with pytest.raises(ConfigError, match="did you mean 'label'"):
        pick(TERMS, "labl", "objective")
