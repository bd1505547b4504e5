"""Data of its own: joined by id, never by position."""

import numpy as np
import pytest
import torch
from kinds import batch, module
from torch import nn

import limbeck as lb
from limbeck.core.errors import ConfigError, DataError, ModelError
from limbeck.data import ArraySource
from limbeck.teachers import Rows


def test_rows_are_found_by_id_in_any_order_and_number():
    own = Rows({"x": torch.arange(5.0).view(5, 1)}, ids=[50, 10, 40, 20, 30])
    teacher = lb.teacher(lambda x: torch.cat([x, x], 1), data=own)
    ids = torch.tensor([20, 50, 20, 30])
    assert teacher({"id": ids, "x": torch.zeros(4, 9)})["logits"][:, 0].tolist() == [3, 0, 3, 4]


def test_a_source_of_images_has_its_own_size_and_normalisation():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    ours, theirs = lb.Normalize(mean=(0.5,) * 3, std=(0.2,) * 3), lb.Normalize(mean=(0.1,) * 3, std=(0.4,) * 3)
    source = ArraySource((pixels, np.zeros(6, dtype=np.int64)), normalize=ours)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    small = {"id": torch.tensor([4, 1]), "x": torch.zeros(2, 3, 2, 2)}
    raw = torch.from_numpy(pixels[[4, 1]]).permute(0, 3, 1, 2) / 255
    for settings, expected in (({}, ours(raw)), ({"normalize": theirs}, theirs(raw))):
        teacher = lb.teacher(net, data=source, **settings)
        answer = teacher.open(["logits"], small, applied=lb.Normalize(mean=(9.0,) * 3, std=(9.0,) * 3))
        torch.testing.assert_close(answer["logits"], net(expected).detach(), atol=1e-5, rtol=1e-4)


def test_another_modality_through_a_function_of_the_raw_columns():
    def lengths(columns):
        return {"x": torch.tensor([[float(len(text))] for text in columns["text"]])}

    teacher = lb.teacher(lambda x: x * torch.tensor([1.0, -1.0]), data=["a", "bbb", "cc"], encode=lengths)
    assert teacher.open(["logits"], {"id": torch.tensor([1, 2])})["logits"].tolist() == [[3, -3], [2, -2]]
    with pytest.raises(DataError, match="cannot be encoded: KeyError"):
        lb.teacher(module(), data=["a"], encode=lambda c: c["sound"]).open([], {"id": torch.tensor([0])})
    with pytest.raises(ModelError, match="column 'text' is text"):
        lb.teacher(module(), data=["a"]).open([], {"id": torch.tensor([0])})


def test_samples_that_it_lacks_are_refused_before_any_work():
    teacher = lb.teacher(module(), data={"x": torch.zeros(3, 6)})
    teacher.require(torch.tensor([2, 0]))
    with pytest.raises(DataError, match="it has no sample 3 and 1 more"):
        teacher.require(torch.tensor([0, 3, 7]))
    with pytest.raises(DataError, match="has no sample -1"):
        teacher.require(torch.tensor([-1]))
    with pytest.raises(DataError, match="the id 5 is there twice"):
        lb.teacher(module(), data=Rows({"x": torch.zeros(3, 6)}, ids=[5, 1, 5]))
    with pytest.raises(DataError, match="no `id`"):
        teacher.open([], {"x": torch.zeros(2, 6)})


def test_the_fingerprint_covers_teacher_data_and_encoding():
    x = torch.zeros(3, 6)
    prints = {
        lb.teacher(module(), data={"x": x}).fingerprint(),
        lb.teacher(module(), data={"x": x + 1}).fingerprint(),
        lb.teacher(module(1), data={"x": x}).fingerprint(),
        lb.teacher(module(), data=Rows({"x": x}, ids=[3, 4, 5])).fingerprint(),
        lb.teacher(module(), data={"x": x}, encode=lambda c: c).fingerprint(),
        lb.teacher(module()).fingerprint(),
        lb.teacher(module(), data=["ab", "c"]).fingerprint(),
        lb.teacher(module(), data=["a", "bc"]).fingerprint(),
    }
    assert len(prints) == 8


@pytest.mark.parametrize("columns", [{}, {"x": torch.zeros(0, 2)}, {"x": torch.zeros(2), "t": ["a"]}, {"x": object()}])
def test_columns_that_are_none_are_told(columns):
    with pytest.raises(DataError, match=r"teacher.data"):
        Rows(columns)


def test_data_that_cannot_be_joined_is_told():
    with pytest.raises(ConfigError, match="a float can't be joined by id"):
        lb.teacher(module(), data=3.0)
    with pytest.raises(ConfigError, match="no `data` to encode"):
        lb.teacher(module(), encode=lambda c: c)


def test_labels_are_the_batch_s():
    seen = []
    teacher = lb.teacher(
        lambda x: x, inputs=lambda b: (seen.append(sorted(b)), b["x"])[1], data={"x": torch.rand(8, 3)}
    )
    teacher({**batch(), "id": torch.arange(8)})
    assert seen[0] == ["id", "valid", "view", "x", "y"]
