"""First weights from a teacher: identities, what is preserved, what is sliced, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from nets import NETS, made
from test_structure import answer, halved
from torch import nn

from limbeck.compress import Depth, Evidence, Prune, apply, plan
from limbeck.compress.units import coupled
from limbeck.core.coupling import silence
from limbeck.core.errors import ConfigError, ModelError
from limbeck.models import CifarResNet
from limbeck.transfer import inherit, outline, shrink

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def apart(a, b):
    own = {t.untyped_storage().data_ptr() for t in (*a.parameters(), *a.buffers())}
    return not own & {t.untyped_storage().data_ptr() for t in (*b.parameters(), *b.buffers())}


@pytest.mark.parametrize("name", NETS)
def test_at_equal_shape_it_is_the_identity(name):
    teacher, batch = made(name)
    student = made(name, seed=5)[0]
    before = copy.deepcopy(teacher.state_dict())
    found = inherit(student, teacher)
    assert equal(student, teacher)
    assert torch.allclose(answer(student, batch), answer(teacher, batch), atol=1e-5)
    assert found.share == 1
    assert not found.left
    assert {row.how for row in found.tensors} == {"copied"}
    assert apart(student, teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", NETS)
def test_a_slice_is_the_teacher_pruned_by_the_same_cut(name):
    teacher, batch, student = halved(name)
    student = copy.deepcopy(student).eval()
    before = copy.deepcopy(teacher.state_dict())
    found = inherit(student, teacher, criterion="l2")
    pruned = apply(teacher, plan(teacher, Prune(criterion="l2", ratio=0.5, scope="layer"), Evidence(batch=batch)))
    assert equal(student, pruned)
    assert torch.allclose(answer(student, batch), answer(pruned, batch), atol=1e-6)
    assert found.share == 1
    assert "sliced" in {row.how for row in found.tensors}
    assert apart(student, teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_units_of_an_mlp_by_hand():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    student = nn.Sequential(nn.Linear(5, 2), nn.ReLU(), nn.Linear(2, 3))
    first, last = teacher[0].weight.detach(), teacher[2].weight.detach()
    norm = (first.square().sum(1).sqrt() + last.square().sum(0).sqrt()) / 2
    keep = sorted(norm.topk(2).indices.tolist())
    found = inherit(student, teacher)
    assert torch.equal(student[0].weight, first[keep])
    assert torch.equal(student[0].bias, teacher[0].bias[keep])
    assert torch.equal(student[2].weight, last[:, keep])
    assert found.units == {"0": tuple(keep)}
    inherit(student, teacher, width="first")
    assert torch.equal(student[0].weight, first[:2])
    assert torch.equal(student[2].weight, last[:, :2])


def test_gates_of_an_lstm_by_hand():
    teacher, _ = made("lstm")
    student = type(teacher)(nn.LSTM)
    student.rnn = nn.LSTM(6, 3, batch_first=True)
    student.head = nn.Linear(3, 3)
    keep = list(inherit(student, teacher).units["rnn"])
    rows = [gate * 8 + unit for gate in range(4) for unit in keep]
    ours, theirs = student.rnn, teacher.rnn
    assert len(keep) == 3
    assert torch.equal(ours.weight_ih_l0, theirs.weight_ih_l0[rows])
    assert torch.equal(ours.weight_hh_l0, theirs.weight_hh_l0[rows][:, keep])
    assert torch.equal(ours.bias_hh_l0, theirs.bias_hh_l0[rows])
    assert torch.equal(student.head.weight, teacher.head.weight[:, keep])
    assert torch.equal(student.embed.weight, teacher.embed.weight)


def test_heads_of_an_attention_by_hand():
    teacher, _ = made("multihead attention")
    student = shrink(teacher, width=1.0, heads=0.34)
    (keep,) = (list(units) for name, units in inherit(student, teacher).units.items() if "attention" in name)
    assert len(keep) == 2
    rows = [head * 4 + i for head in keep for i in range(4)]
    joint = [part * 12 + row for part in range(3) for row in rows]
    ours, theirs = student.attention.inner, teacher.attention.inner
    assert torch.equal(ours.in_proj_weight, theirs.in_proj_weight[joint])
    assert torch.equal(ours.out_proj.weight, theirs.out_proj.weight[:, rows])


@pytest.mark.parametrize(
    "name", ["mlp", "conv", "residual", "lstm", "gru", "encoder", "bert", "llama", "tied embeddings"]
)
def test_dead_units_are_the_ones_that_go_and_nothing_changes(name):
    teacher, batch, student = halved(name)
    student, teacher = copy.deepcopy(student).eval(), copy.deepcopy(teacher)
    coupling = coupled(teacher, Evidence(batch=batch))
    kept = {cut.group: cut.kept for cut in outline(student).cuts}
    silence(teacher, coupling, {g.name: range(len(g.units) - kept[g.name]) for g in coupling.groups})
    inherit(student, teacher)
    wanted = answer(teacher, batch).detach()
    assert torch.allclose(answer(student, batch), wanted, atol=1e-5 * float(wanted.abs().max().clamp_min(1)))


def duplicated():
    """The last three hidden units say what combinations of the first three say."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        mix = torch.randn(3, 3)
        teacher[0].weight[3:] = 0.1 * mix @ teacher[0].weight[:3]
        teacher[0].bias[3:] = 0.1 * mix @ teacher[0].bias[:3] + 0.3
        teacher[3].bias.add_(1)
    return teacher, torch.randn(64, 5)


def test_projection_preserves_what_linear_combinations_say():
    teacher, x = duplicated()
    student = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    found = inherit(student, teacher, width="project", data=(x, torch.zeros(64, dtype=torch.long)))
    assert torch.allclose(student(x), teacher(x), atol=1e-4)
    assert {row.name for row in found.tensors if row.how == "projected"} == {"1.weight", "1.bias"}
    inherit(student, teacher)
    assert not torch.allclose(student(x), teacher(x), atol=1e-2)  # a slice alone does not


def test_projection_solves_least_squares_of_convolutions_too():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.randn(32, 3, 8, 8)
    found = inherit(student, teacher, width="project", data=x)
    keep = list(found.units["0"])
    gone = [at for at in range(6) if at not in keep]
    heard = teacher[:2](x).detach().movedim(1, 0).flatten(1).double().numpy()
    solved = np.linalg.lstsq(heard[keep].T, heard[gone].T, rcond=None)[0]  # [kept, gone]
    weight = teacher[2].weight.detach().double()
    wanted = weight[:, keep] + torch.einsum("ogij,kg->okij", weight[:, gone], torch.from_numpy(solved))
    assert torch.allclose(student[2].weight.double(), wanted, atol=1e-5)


def test_principal_components_carry_an_embedding_of_low_rank():
    teacher, batch = made("lstm")
    with torch.no_grad():
        teacher.embed.weight.copy_(torch.randn(11, 3) @ torch.randn(3, 6))
    student = shrink(teacher, width=1.0)
    student.embed, student.rnn = nn.Embedding(11, 3), nn.LSTM(3, 8, batch_first=True)
    student.eval()
    found = inherit(student, teacher, embeddings="pca")
    assert torch.allclose(answer(student, batch), answer(teacher, batch), atol=1e-5)
    assert {row.name for row in found.tensors if row.how == "pca"} == {"embed.weight", "rnn.weight_ih_l0"}
    inherit(student, teacher)
    assert not torch.allclose(answer(student, batch), answer(teacher, batch), atol=1e-3)
    tied, _ = made("tied embeddings")
    sliced = inherit(shrink(tied, width=0.5), tied, embeddings="pca")
    assert any("was sliced" in note for note in sliced.notes)


class Deep(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(blocks))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.head(x)


@pytest.mark.parametrize(
    ("depth", "wanted"),
    [
        ("even", (0, 3, 5)), ("first_last", (0, 1, 5)), ("every_other", (0, 2, 4)), ([5, 0, 2], (5, 0, 2)),
        ({0: 1, 1: 1, 2: 4}, (1, 1, 4)), ({"blocks": [2, 3, 4]}, (2, 3, 4)),
    ],
)  # fmt: skip
def test_depth_maps(depth, wanted):
    torch.manual_seed(0)
    teacher, student = Deep(6), Deep(3)
    found = inherit(student, teacher, depth=depth)
    assert found.blocks == {"blocks": tuple((at,) for at in wanted)}
    for block, at in zip(student.blocks, wanted, strict=True):
        assert torch.equal(block.weight, teacher.blocks[at].weight)
    assert found.share == 1


def test_a_map_of_all_blocks_is_the_identity_and_blocks_are_averaged():
    torch.manual_seed(0)
    teacher, student = Deep(4), Deep(4)
    inherit(student, teacher, depth=[0, 1, 2, 3])
    assert equal(student, teacher)
    two = Deep(2)
    found = inherit(two, teacher, depth="average")
    assert torch.allclose(two.blocks[1].weight, (teacher.blocks[2].weight + teacher.blocks[3].weight) / 2, atol=1e-7)
    assert found.blocks == {"blocks": ((0, 1), (2, 3))}
    assert "averaged" in str(found)
    inherit(two, teacher, depth=[(0, 3), 1])
    assert torch.allclose(two.blocks[0].bias, (teacher.blocks[0].bias + teacher.blocks[3].bias) / 2, atol=1e-7)


def test_a_deeper_student_repeats_blocks():
    teacher, student = Deep(2), Deep(4)
    assert inherit(student, teacher).blocks == {"blocks": ((0,), (0,), (1,), (1,))}


def test_a_search_keeps_the_blocks_that_do_something():
    torch.manual_seed(0)
    teacher, student = Deep(5), Deep(2)
    with torch.no_grad():
        for at in (0, 2, 3):
            for parameter in teacher.blocks[at].parameters():
                parameter.zero_()
    x = torch.randn(32, 5)
    found = inherit(student, teacher, depth="search", data=x)
    assert found.blocks == {"blocks": ((1,), (4,))}
    assert torch.allclose(student(x), teacher(x), atol=1e-5)


def test_depth_and_width_at_once_in_a_residual_network():
    torch.manual_seed(0)
    teacher = CifarResNet(depth=20).build((3, 32, 32), 10).eval()
    student = shrink(teacher, width=0.5, depth=0.5).eval()
    found = inherit(student, teacher)
    assert found.share == 1
    assert found.blocks == {"layer1": ((0,), (2,)), "layer2": ((0,),), "layer3": ((0,),)}
    units = found.units["layer1.2.conv1"]
    keep = next(units for name, units in found.units.items() if name == "conv1")
    expected = teacher.layer1[2].conv1.weight.detach()[list(units)][:, list(keep)]
    assert torch.equal(student.layer1[1].conv1.weight, expected)


def test_blocks_that_do_nothing_leave_without_a_trace():
    batch = made("encoder")[1]
    layer = nn.TransformerEncoderLayer(12, 4, 10, batch_first=True, norm_first=True)
    teacher = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    with torch.no_grad():
        for parameter in (*teacher.layers[1].self_attn.out_proj.parameters(), *teacher.layers[1].linear2.parameters()):
            parameter.zero_()
    student = shrink(teacher, depth=0.67).eval()
    inherit(student, teacher, depth=[0, 2])
    assert torch.allclose(answer(student, batch), answer(teacher, batch), atol=1e-5)
    gone = apply(teacher, plan(teacher, Depth(count=1), Evidence(batch=batch)))
    assert torch.allclose(answer(student, batch), answer(gone, batch), atol=1e-5)


def test_names_are_mapped_by_pattern():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    teacher = nn.ModuleDict({"encoder": body, "top": nn.Linear(4, 3)})
    student = nn.ModuleDict({"body": copy.deepcopy(body), "head": nn.Linear(4, 3)})
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    found = inherit(student, teacher, names={"body.*": "encoder.*", "head.*": "top.*"})
    assert found.share == 1
    assert torch.equal(student["body"][0].weight, body[0].weight)
    assert torch.equal(student["head"].bias, teacher["top"].bias)
    with pytest.raises(ConfigError, match="fits nothing of the student"):
        inherit(student, teacher, names={"trunk.*": "encoder.*"})
    with pytest.raises(ConfigError, match="which the teacher has not"):
        inherit(student, teacher, names={"body.*": "encodr.*"})


def test_stacks_under_other_names_are_mapped_too():
    torch.manual_seed(0)
    teacher = Deep(4)

    class Other(Deep):
        def __init__(self, blocks):
            super().__init__(blocks)
            self.levels = self.blocks
            del self.blocks

    student = Other(2)
    assert inherit(student, teacher, names={"levels.*": "blocks.*"}).blocks == {"levels": ((0,), (3,))}
    assert torch.equal(student.levels[1].weight, teacher.blocks[3].weight)


def test_the_student_keeps_its_type_and_what_does_not_fit_is_told():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 10))
    student = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    own = student[2].weight.detach().clone()
    found = inherit(student, teacher)
    assert student[0].weight.dtype == torch.float64
    assert torch.equal(student[0].weight, teacher[0].weight.double())
    assert torch.equal(student[2].weight, own)
    assert set(found.left) == {"2.weight", "2.bias"}
    assert "it is (3, 6), and (10, 6) is left of the teacher's" in found.left["2.weight"]
    assert found.share == pytest.approx(36 / 57)
    assert "63.2% of 57 parameters inherited" in str(found)


@pytest.mark.parametrize("criterion", ["l1", "taylor", "fisher", "activation", "geometric_median", "lamp", "random"])
def test_any_measure_of_compression_chooses(criterion):
    teacher, batch, student = halved("conv")
    student = copy.deepcopy(student)
    data = (batch["x"], batch["y"])
    found = inherit(student, teacher, criterion=criterion, data=data)
    assert found.share == 1
    again = copy.deepcopy(halved("conv")[2])
    assert inherit(again, teacher, criterion=criterion, data=data) == found
    assert equal(student, again)


def test_what_a_measure_cannot_judge_another_does():
    teacher, _ = made("residual")
    found = inherit(shrink(teacher, width=0.5), teacher, criterion="norm_scale")
    assert found.share == 1
    mlp, _ = made("mlp")
    assert any(
        "norm_scale cannot judge it" in n for n in inherit(shrink(mlp, width=0.5), mlp, criterion="norm_scale").notes
    )


def test_what_cannot_be_is_refused_and_the_student_stays():
    teacher, _ = made("mlp")
    student = nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 9))
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ModelError, match=r"no tensor of this Sequential fits(.|\n)*limbeck.transfer.shrink"):
        inherit(student, teacher)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    with pytest.raises(ModelError, match="are one piece of memory"):
        inherit(teacher, teacher)
    for settings, said in [
        ({"width": "widest"}, "not one of its words"), ({"criterion": "l7"}, "not one of its words"),
        ({"embeddings": "svd"}, "not one of its words"), ({"width": "project"}, r"give data=\(X, y\)"),
        ({"criterion": "taylor"}, r"give data=\(X, y\)"), ({"depth": "search"}, r"give data=\(X, y\)"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            inherit(made("mlp", seed=1)[0], teacher, **settings)
    for depth, said in [
        ("odd", "is no choice of blocks"), ([0], "the map is for 1 blocks"), ([0, 9, 1], "has no block 9"),
        ({"block": [0, 1, 2]}, "has no stack of blocks 'block'"), ({0: 0, 1: 1}, "the map is for 2 blocks"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            inherit(Deep(3), Deep(6), depth=depth)
    with pytest.raises(ConfigError, match='use "even"'):
        inherit(Deep(3), Deep(4), depth="every_other")


def test_a_wider_student_and_uneven_widths_are_told():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    wide = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    found = inherit(wide, teacher)
    assert any("the student has 8 units, the teacher only 6" in note for note in found.notes)
    assert set(found.left) == {"0.weight", "0.bias", "2.weight"}
