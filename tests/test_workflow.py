"""The public calls, as people make them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import limbeck as lb
from limbeck import functional as F
from limbeck.core.errors import ConfigError, DataError, LimbeckError, ModelError

G = torch.Generator().manual_seed(0)
X = torch.randn(200, 6, generator=G)
Y = X[:, :3].argmax(1)


def net(width=8, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], Y[i]


class Dicts(Pairs):
    def __getitem__(self, i):
        return {"features": X[i], "label": Y[i]}


FORMS = {
    "tensors": lambda: (X, Y),
    "arrays": lambda: (X.numpy(), Y.numpy().astype(np.uint8)),
    "dict": lambda: {"x": X, "labels": Y},
    "tensor dataset": lambda: TensorDataset(X, Y),
    "dataset of tuples": Pairs,
    "dataset of dicts": Dicts,
    "loader": lambda: DataLoader(Pairs(), batch_size=7, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_trains_the_same_student(form):
    def trained(data):
        model = net()
        settings = {"inputs": ["features"]} if form == "dataset of dicts" and data is not None else {}
        data = FORMS[form]() if data is not None else (X, Y)
        lb.distill(
            model, None, train=data, val=(X, Y) if not settings else Dicts(), epochs=2, batch_size=50, **settings
        )
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.allclose(trained("given"), trained(None), atol=1e-6)


def test_unlabelled_data_is_enough_where_there_is_a_teacher():
    teacher = net(32)
    lb.distill(teacher, None, train=(X, Y), epochs=20, batch_size=50)
    student = net()
    before = lb.evaluate(student, (X, Y), teacher=teacher)["agreement"]
    run = lb.distill(student, teacher, train=X, objective=lb.KL(), epochs=20, batch_size=50, patience=15, keep="best")
    assert "teacher" not in run.scores or "accuracy" not in run.scores["teacher"]
    assert run.scores["student"]["agreement"] > before
    assert lb.evaluate(student, (X, Y))["accuracy"] > 0.6


def test_a_teacher_with_other_classes_may_still_teach_its_layers():
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 50))
    objective = (lb.Hint(student="0", teacher="0"), lb.Label())
    run = lb.distill(net(), teacher, train=(X, Y), objective=objective, epochs=1, batch_size=50)
    assert "agreement" not in run.scores["student"]
    assert "teacher" not in run.scores
    assert 0 <= run.scores["student"]["accuracy"] <= 1


def test_a_run_that_time_cut_in_its_first_epoch_has_validation_scores():
    data = (X.repeat(500, 1), Y.repeat(500))
    run = lb.distill(net(), None, train=data, val=(X, Y), epochs=1, batch_size=2, max_seconds=0.2)
    assert run.state.stopped_by == "time"
    assert run.state.epoch == 0
    assert run.document["arms"]["student"]["runs"][0]["validation"]["samples"] == 200


def test_scores_of_both_and_the_page(tmp_path):
    run = lb.distill(net(), net(32, 1), train=(X, Y), test=(X, Y), epochs=1, batch_size=50)
    assert run.scores["student"]["samples"] == 200
    assert run.scores["teacher"]["accuracy"] == lb.evaluate(net(32, 1), (X, Y))["accuracy"]
    page = run.report(tmp_path / "page")
    assert "<html" in page.read_text()
    with pytest.raises(ConfigError, match="this run has no folder"):
        run.report()


def test_evaluate_and_footprint_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    before = copy.deepcopy(model.state_dict())
    lb.evaluate(model, (X, Y))
    size = lb.footprint(model, X[:1])
    assert size.parameters == 28 + 8 + 15
    assert size.macs == 24 + 12
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_weight_may_move_and_any_torch_optimizer_serves():
    objective = (lb.KL(weight=lb.schedules.Linear(start=1.0, end=0.0)), lb.Label())
    for name in ("AdamW", "rmsprop", "NAdam"):
        optimizer = lb.Optimizer(name=name, rate=1e-3)
        run = lb.distill(
            net(), net(32), train=(X, Y), objective=objective, epochs=1, batch_size=50, optimizer=optimizer,
            schedule=lb.schedules.Cosine(warmup=0.1),
        )  # fmt: skip
        assert run.state.step == 4


FAULTS = {
    "no module": (lambda: lb.distill("net", None, train=(X, Y)), "student: str is no torch.nn.Module"),
    "no teacher": (lambda: lb.distill(net(), None, train=(X, Y), objective=lb.KL()), "'kl' needs a teacher"),
    "same object": (lambda: lb.distill((m := net()), m, train=(X, Y)), "shares parameters"),
    "frozen": (lambda: lb.distill(net().requires_grad_(False), None, train=(X, Y)), "no trainable parameter"),
    "classes": (lambda: lb.distill(net(), nn.Linear(6, 5), train=(X, Y)), r"student is \(2, 3\), teacher is \(2, 5\)"),
    "labels": (lambda: lb.distill(nn.Linear(6, 2), None, train=(X, Y)), "label"),
    "nan": (lambda: lb.distill(net(), None, train=(X.clone().fill_(float("nan")), Y)), "NaN|not finite"),
    "epochs": (lambda: lb.distill(net(), None, train=(X, Y), epochs=0), "epochs: 0"),
    "batch": (lambda: lb.distill(net(), None, train=(X, Y), batch_size=1000), "1000"),
    "layer": (
        lambda: lb.distill(net(), net(16), train=(X, Y), objective=lb.Hint(student="00", teacher="0")),
        "student: .*'00'",
    ),
    "teacher's layer": (
        lambda: lb.distill(net(), net(16), train=(X, Y), objective=lb.Hint(student="0", teacher="layer1")),
        "teacher: .*'layer1'",
    ),
    "setting": (lambda: lb.distill(net(), None, train=(X, Y), optimiser="adam"), "did you mean 'optimizer'"),
    "no label": (lambda: lb.distill(net(), None, train=X), "has not"),
    "unlabelled": (lambda: lb.distill(net(), None, train=(X, torch.full((200,), -1))), "no sample has a label"),
    "nothing to score with": (lambda: lb.distill(net(), None, train=(X, Y), val=X), "val: no sample has a label"),
    "no term": (lambda: lb.distill(net(), None, train=(X, Y), objective=()), "holds no term"),
    "class of a term": (lambda: lb.distill(net(), net(), train=(X, Y), objective=lb.KL), r"limbeck.KL\(\)"),
    "shape": (lambda: lb.distill(nn.Linear(9, 3), None, train=(X, Y)), r"cannot be called with the batch \(x \(2, 6\)"),
    "pieces": (lambda: lb.distill(net(), None, train=(X, Y), batch_size=50, accumulate=3), "3 equal micro-batches"),
    "optimizer": (lambda: lb.Optimizer(name="Adma"), "did you mean 'Adam"),
    "option": (
        lambda: lb.distill(net(), None, train=(X, Y), optimizer=lb.Optimizer(options={"dampness": 1})),
        "optimizer.options: .*dampness",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_told_before_any_work_with_its_mend(fault):
    call, said = FAULTS[fault]
    with pytest.raises(LimbeckError, match=said) as caught:
        call()
    assert "To mend" in str(caught.value)
    assert isinstance(caught.value, ValueError | ModelError | DataError)


class Bigrams(torch.nn.Module):
    """What follows each token, and, for scores, what follows the last one."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)

    def forward(self, tokens):
        answers = self.table(tokens)
        return {"words": answers, "logits": answers[:, -1]}


def test_a_language_model_is_distilled_on_the_tokens_that_count():
    """Labels [N, tokens] with -100, next-token shift; whole sequences are scored by their last answer."""
    torch.manual_seed(0)
    teacher, student = Bigrams(torch.randn(12, 12) * 2), Bigrams(torch.zeros(12, 12))
    tokens = torch.randint(0, 12, (40, 9))
    following = tokens.clone()
    following[::2, :5] = -100
    objective = lb.Tokens(term=lb.KL(temperature=1.0, on="words"), column="following")
    data = {"input": tokens, "following": following}

    def apart():
        return F.kl(student.table.weight.detach(), teacher.table.weight.detach())

    before = apart()
    settings = {"epochs": 20, "batch_size": 10, "accumulate": 2, "progress": False, "inputs": ("input",)}
    run = lb.distill(
        student, lb.teacher(teacher, inputs=("input",)), train=data, val=data, objective=objective, **settings
    )
    assert apart() < before / 3
    assert run.scores["student"]["agreement"] > 0.5


def test_numbers_are_matched_and_a_teacher_bounds_the_error():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=g)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    teacher, student = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[1.0, -2.0, 0.4]]))
        teacher.bias.zero_()
    objective = (lb.MSELogits(), lb.SquaredError(), lb.BoundedError(weight=0.5))
    settings = {"epochs": 20, "batch_size": 20, "progress": False, "optimizer": lb.Optimizer(rate=0.05)}
    lb.distill(student, teacher, train=(x, y), val=(x, y), objective=objective, **settings)
    assert (student(x) - y).square().mean() < 0.05


def test_a_teacher_with_data_of_its_own_judges_only_where_ids_mean_the_same_samples():
    x, y = torch.randn(400, 4), torch.arange(400) % 3
    inner = torch.nn.Linear(4, 3)
    teacher = lb.teacher(inner, data={"x": x})
    settings = {"epochs": 1, "batch_size": 50, "progress": False}
    part = lb.distill(torch.nn.Linear(4, 3), teacher, train=(x, y), **settings)
    assert "agreement" in part.scores["student"]
    other = lb.distill(torch.nn.Linear(4, 3), teacher, train=(x, y), val=(x.flip(0), y.flip(0)), **settings)
    assert "agreement" not in other.scores["student"]
    short = lb.teacher(inner, data={"x": x[:390]})
    with pytest.raises(lb.LimbeckError, match="it has no sample 390"):
        lb.distill(torch.nn.Linear(4, 3), short, train=(x, y), val=(x, y), **settings)


def test_a_student_inside_an_ensemble_that_teaches_it_is_refused():
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    student = torch.nn.Linear(4, 3)
    with pytest.raises(lb.LimbeckError, match="shares parameters with the student"):
        lb.distill(student, [torch.nn.Linear(4, 3), student], train=(x, y), epochs=1, batch_size=10, progress=False)
