"""Laws over every kind of teacher. `kinds.py` is the table."""

import json

import pytest
import torch
from kinds import Rule, batch, rows

import limbeck as lb
from limbeck.core.errors import LimbeckError, ModelError
from limbeck.core.seeds import derive
from limbeck.teachers import Teaching, as_teacher

# Keras saves its arrays through a door that NumPy 2 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

NAMES = list(rows(None))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return rows(tmp_path_factory.mktemp("models"))


@pytest.fixture(params=NAMES)
def row(request, table):
    return table[request.param]


def opened(row, model):
    teacher = row.teacher(model)
    teacher.open(row.names, batch(2))
    return teacher


def part(index):
    return {name: value[index] for name, value in batch().items()}


def test_it_is_a_teacher_and_says_what_it_is(row):
    teacher = row.teacher(row.model(0))
    assert isinstance(teacher, Teaching)
    assert as_teacher(teacher) is teacher
    assert teacher.words
    assert json.loads(json.dumps(teacher.identity())) == teacher.identity()
    assert "logits" in opened(row, row.model(0))(batch())
    json.dumps(dict(teacher.form))


def test_answers_repeat_and_carry_no_gradient(row):
    teacher = opened(row, row.model(0))
    first, again = teacher(batch()), teacher(batch())
    assert set(row.names) <= set(first)
    for name, value in first.items():
        assert not value.requires_grad
        assert torch.equal(value, again[name]), name
        assert value.device == batch()["id"].device
    assert torch.isfinite(first["logits"]).all()
    assert first["logits"].dtype == torch.float32


def test_the_answer_for_a_batch_is_the_answers_for_its_parts_in_any_order(row):
    teacher = opened(row, row.model(0))
    whole = teacher(batch())["logits"]
    for index in (slice(0, 1), slice(1, 6), slice(6, 8), torch.randperm(8)):
        torch.testing.assert_close(teacher(part(index))["logits"], whole[index], atol=row.parts, rtol=row.parts)


def test_what_was_handed_over_is_bit_identical_afterwards(row):
    model = row.model(0)
    state, print_ = row.state(model), row.teacher(model).fingerprint()
    teacher = opened(row, model)
    teacher(batch())
    teacher.close()
    assert row.state(model) == state
    assert row.teacher(model).fingerprint() == print_
    again = opened(row, model)  # and it can be opened again
    assert torch.equal(again(batch())["logits"], teacher(batch())["logits"])


def test_the_fingerprint_changes_with_the_answers_and_survives_a_reload(row, tmp_path):
    model, other = row.model(0), row.model(1)
    teacher, back = row.teacher(model), row.teacher(row.reload(model, tmp_path))
    assert not torch.equal(row.teacher(other)(batch())["logits"], teacher(batch())["logits"])
    if not isinstance(model, Rule):  # what a function closes over can't be seen
        assert row.teacher(other).fingerprint() != teacher.fingerprint()
    assert back.fingerprint() == teacher.fingerprint()
    assert torch.equal(back(batch())["logits"], teacher(batch())["logits"])


def test_a_name_that_it_lacks_is_refused_with_the_nearest(row):
    teacher = row.teacher(row.model(0))
    with pytest.raises(ModelError, match=r"'logitz'[^$]*did you mean '(\d\.)?logits'"):
        teacher.open(["logitz"], batch(2))


def test_classes_of_its_own_in_another_order(row):
    if isinstance(row.model(0), list) or "data" in row.settings():
        pytest.skip("a setting of the members")
    model = row.model(0)
    whole = row.teacher(model)(batch())["logits"]
    if whole.shape[1] < 3:
        pytest.skip("a regression")
    chosen = lb.teacher(model, **{**row.settings(), "classes": (2, 0)})
    assert torch.equal(chosen(batch())["logits"], whole[:, [2, 0]])
    assert chosen.fingerprint() != row.teacher(model).fingerprint()
    with pytest.raises(ModelError, match="class 9 is asked for, the teacher has 3"):
        lb.teacher(model, **{**row.settings(), "classes": (0, 9)}).open(["logits"], batch(2))


def test_another_number_of_features_is_refused(row):
    if "data" in row.settings():
        pytest.skip("it reads its own data")
    short = {**batch(2), "x": batch(2)["x"][:, :2]}
    with pytest.raises(LimbeckError):
        row.teacher(row.model(0)).open(row.names, short)


def test_the_random_state_of_the_run_is_left_alone(row):
    teacher = opened(row, row.model(0))
    torch.manual_seed(derive(0, "law"))
    expected = torch.rand(3)
    torch.manual_seed(derive(0, "law"))
    teacher(batch())
    assert torch.equal(torch.rand(3), expected)
