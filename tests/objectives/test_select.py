"""Terms around a term: the tokens that count, and some of the student's classes."""

import pytest
import torch

from limbeck.core.errors import ConfigError, ShapeError
from limbeck.core.schedules import Linear
from limbeck.objectives import DIST, DKD, JSD, KL, Hint, Label, ReverseKL, SkewKL, TotalVariation
from limbeck.objectives.adapt import Balanced, Weighed
from limbeck.objectives.linear import LinearKL, linear_kl
from limbeck.objectives.select import Classes, Tokens, among
from limbeck.objectives.sequence import ULD, TopKKL, uld
from limbeck.objectives.temperature import Curriculum
from limbeck.train.loop import combine, counted

TEACHER = torch.tensor([[[2, 1, 0.5, -1, -2], [0, 3, -1, 0.5, 1], [1, 1, 1, 1, 1]]], dtype=torch.float64)
STUDENT = torch.tensor([[[1, 1.5, 0, -0.5, -1], [0.5, 1, 0, -0.5, 2], [9, 0, 0, 0, 0]]], dtype=torch.float64)
GOLDEN = {"y": torch.tensor([[0, 4, -100]]), "valid": torch.tensor([True])}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def loss(terms, student, teacher, *batches):
    """The loss of one step over micro-batches of a sample's signals."""
    counts = sum(counted(terms, batch) for batch in batches).clamp_min(1)
    sides = zip(student, teacher, batches, strict=True)
    return sum(combine(terms, s, t, batch, progress=0.0, counts=counts)[0] for s, t, batch in sides)


@pytest.mark.parametrize(
    ("inner", "golden"),
    [
        (KL(temperature=1.0), 0.532621666),
        (KL(temperature=2.0), 0.575301627),
        (ReverseKL(), 0.576221183),
        (JSD(), 0.128846814),
        (SkewKL(), 0.417296089),
        (TotalVariation(), 0.462430945),
        (Label(), 0.904436963),
        (ULD(), 0.364647668),
        (TopKKL(k=2), 0.500009872),
        (Weighed(term=KL(temperature=1.0), floor=1.0), 0.532621666),
    ],
    ids=lambda x: x.kind if hasattr(x, "kind") else "",
)
def test_with_the_third_token_masked_every_loss_gives_its_golden_number(inner, golden):
    term = Tokens(term=inner, shift=0)
    value = loss((term,), [{"logits": STUDENT}], [{"logits": TEACHER}], GOLDEN)
    assert value.item() == pytest.approx(golden, abs=1e-8)


def test_the_label_of_a_position_is_the_next_one_unless_told_otherwise():
    logits = drawn(2, 4, 5)
    labels = torch.tensor([[1, 2, -100, 3], [-100, 4, 0, -100]])
    batch = {"y": labels, "valid": torch.tensor([True, True])}
    log_p = logits.log_softmax(-1)
    asked = {(0, 0): 2, (0, 2): 3, (1, 0): 4, (1, 1): 0}
    value = Tokens(term=Label())({"logits": logits}, {}, batch)
    assert value.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            expected = -log_p[i, j, asked[i, j]].item() if (i, j) in asked else 0.0
            assert value[i, j].item() == pytest.approx(expected)
    assert Tokens(term=Label()).units(batch) == 4
    batch["valid"][0] = False
    assert Tokens(term=Label()).units(batch) == 2
    assert not Tokens(term=Label())({"logits": logits}, {}, batch)[0].any()


@pytest.mark.parametrize("inner", [KL(), Label(), DKD(), ULD(), TopKKL(k=2)], ids=lambda x: x.kind)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_what_a_masked_position_holds_reaches_neither_value_nor_gradient(inner, poison):
    labels = torch.tensor([[-100, 2, 3, -100], [0, 1, -100, -100]])
    batch = {"y": labels, "valid": torch.tensor([True, True])}
    student, teacher = drawn(2, 4, 5), drawn(2, 4, 5, seed=1)
    term = Tokens(term=inner)
    clean = student.clone().requires_grad_()
    expected = term({"logits": clean}, {"logits": teacher}, batch)
    expected.sum().backward()
    masked = ~torch.tensor([[True, True, False, False], [True, False, False, False]])
    student[masked], teacher[masked] = poison, poison
    student.requires_grad_()
    value = term({"logits": student}, {"logits": teacher}, batch)
    value.sum().backward()
    assert torch.equal(value, expected)
    assert torch.equal(student.grad, clean.grad)
    assert not student.grad[masked].any()


@pytest.mark.parametrize("inner", [KL(), DKD(), TopKKL(k=3)], ids=lambda x: x.kind)
def test_one_batch_of_four_equals_four_of_one_with_ragged_masks(inner):
    student, teacher = drawn(4, 6, 5).requires_grad_(), drawn(4, 6, 5, seed=1)
    labels = torch.randint(0, 5, (4, 6), generator=torch.Generator().manual_seed(2))
    labels[0, 2:], labels[1], labels[2, :3] = -100, -100, -100  # one token, none, three, five
    valid = torch.tensor([True, True, True, True])
    terms = (Tokens(term=inner, weight=0.7), Tokens(term=Label(), weight=0.3))

    def cut(size):
        parts = [slice(i, i + size) for i in range(0, 4, size)]
        return (
            [{"logits": student[p]} for p in parts],
            [{"logits": teacher[p]} for p in parts],
            *({"y": labels[p], "valid": valid[p]} for p in parts),
        )

    whole, split = loss(terms, *cut(4)), loss(terms, *cut(1))
    torch.testing.assert_close(split, whole)
    torch.testing.assert_close(torch.autograd.grad(split, student), torch.autograd.grad(whole, student))
    mask = torch.cat([labels[:, 1:] != -100, torch.zeros(4, 1, dtype=torch.bool)], 1)
    y = torch.cat([labels[:, 1:], torch.zeros(4, 1, dtype=torch.int64)], 1)[mask]
    flat = {"logits": student[mask]}, {"logits": teacher[mask]}, {"y": y, "valid": torch.ones(len(y))}
    torch.testing.assert_close(whole, 0.7 * inner(*flat).mean() + 0.3 * Label()(*flat).mean())


def test_relations_are_among_the_tokens_that_count():
    student, teacher = drawn(2, 4, 5), drawn(2, 4, 5, seed=1)
    batch = {"y": torch.tensor([[0, 1, -100, 2], [3, -100, -100, -100]]), "valid": torch.tensor([True, True])}
    mask = batch["y"] != -100
    value = Tokens(term=DIST(), shift=0)({"logits": student}, {"logits": teacher}, batch)
    flat = {"logits": student[mask]}, {"logits": teacher[mask]}, {"valid": torch.ones(4, dtype=torch.bool)}
    torch.testing.assert_close(value[mask], DIST()(*flat))


class Tallest:
    """A term of one's own that cannot do without a sample."""

    kind, weight = "tallest", 1.0

    def needs(self):
        return KL().needs()

    def __call__(self, student, teacher, batch):
        return student["logits"].amax(-1) - student["logits"].amax()


def test_a_batch_without_a_token_costs_nothing_and_can_be_trained_on():
    student = drawn(2, 3, 5).requires_grad_()
    batch = {"y": torch.full((2, 3), -100), "valid": torch.tensor([True, False])}
    for inner in (KL(), DIST(), Label(), Tallest()):
        value = loss((Tokens(term=inner),), [{"logits": student}], [{"logits": student.detach()}], batch)
        assert value == 0
        value.backward()
        assert not student.grad.any()


def test_layers_and_weights_go_through():
    hidden, teacher = drawn(2, 4, 3), drawn(2, 4, 3, seed=1)
    batch = {"y": torch.tensor([[0, 1, -100, 2], [3, -100, -100, -100]]), "valid": torch.tensor([True, True])}
    mask = batch["y"] != -100
    hint = Tokens(term=Hint(student="s", teacher="t", head="none"), shift=0)
    value = hint({"s": hidden}, {"t": teacher}, batch)
    torch.testing.assert_close(value[mask], (hidden - teacher)[mask].square().mean(-1))
    weight = drawn(2, 3, seed=2)  # as many words as samples: what is no token is known by its name
    term = Tokens(
        term=LinearKL(student="s", student_weight="h@weight", teacher="t", teacher_weight="o@weight"), shift=0
    )
    value = term({"s": hidden, "h@weight": weight}, {"t": teacher, "o@weight": weight}, batch)
    torch.testing.assert_close(value[mask], linear_kl(hidden[mask], weight, teacher[mask], weight, reduction="none"))


def test_uld_may_have_other_numbers_of_tokens_and_nothing_else_may():
    batch = {"y": torch.tensor([[0, 1, 2, 3]]), "valid": torch.tensor([True])}
    student, teacher = drawn(1, 4, 5), drawn(1, 3, 8, seed=1)
    value = Tokens(term=ULD(), shift=0)({"logits": student}, {"logits": teacher}, batch)
    torch.testing.assert_close(value[:, :3], uld(student[:, :3], teacher, reduction="none"))
    assert value[0, 3] == 0
    with pytest.raises(ShapeError, match=r"'logits' is \(1, 3, 8\), the labels are \(1, 4\)"):
        Tokens(term=KL())({"logits": student}, {"logits": teacher}, batch)
    with pytest.raises(ShapeError, match=r"'logits' is \(1, 5\)"):
        Tokens(term=KL())({"logits": drawn(1, 5)}, {"logits": drawn(1, 5)}, batch)
    with pytest.raises(ShapeError, match="column of token labels"):
        Tokens(term=KL())({"logits": student}, {"logits": teacher}, {**batch, "y": torch.tensor([1])})


def test_it_needs_what_the_inner_term_needs_with_its_own_labels():
    assert Tokens(term=DKD(), column="tags").needs() == ({"logits"}, {"logits"}, {"tags"})
    assert Tokens(term=Hint(student="a", teacher="b")).heads() == Hint(student="a", teacher="b").heads()
    assert Classes(term=DKD(), student=(0, 1)).needs() == ({"logits"}, {"logits"}, {"y"})


@pytest.mark.parametrize("around", [lambda **k: Tokens(**k), lambda **k: Classes(student=(0, 1), **k)])
def test_what_cannot_be_wrapped_is_refused(around):
    with pytest.raises(ConfigError, match="already chooses tokens"):
        around(term=Tokens(term=KL()))
    with pytest.raises(ConfigError, match="already chooses tokens"):
        around(term=Weighed(term=Tokens(term=KL())))
    with pytest.raises(ConfigError, match="is no term"):
        around(term=KL)
    assert around(term=KL(), weight=Linear(start=1.0, end=0.0)).weight(0.5) == 0.5


def test_several_terms_are_balanced_outside():
    with pytest.raises(ConfigError, match="holds several terms"):
        Tokens(term=Balanced(terms=(KL(), Label())))


@pytest.mark.parametrize("classes", [(), (1, 1), (-1, 0), (0.5,)])
def test_classes_are_distinct_numbers(classes):
    with pytest.raises(ConfigError, match=r"classes\.student"):
        Classes(term=KL(), student=classes)


def test_only_the_teacher_s_classes_are_compared_in_its_order():
    student, teacher = drawn(6, 5).requires_grad_(), drawn(6, 3, seed=1)
    term = Classes(term=KL(), student=(4, 0, 2))
    value = term({"logits": student}, {"logits": teacher}, {})
    expected = KL()({"logits": student[:, [4, 0, 2]]}, {"logits": teacher}, {})
    assert torch.equal(value, expected)
    value.sum().backward()
    assert not student.grad[:, [1, 3]].any()
    with pytest.raises(ConfigError, match="class 7 is asked for, the student has 5"):
        Classes(term=KL(), student=(7,))({"logits": student}, {"logits": teacher}, {})
    with pytest.raises(ConfigError, match="reads no output 'logits'"):
        Classes(term=Hint(student="a", teacher="b"), student=(0,))
    learned = Classes(term=KL(temperature=Curriculum(strength=1.0)), student=(4, 0, 2))
    heat = {head.name: torch.tensor(2.0) for head in learned.heads()}
    assert torch.equal(learned({"logits": student, **heat}, {"logits": teacher}, {}), expected)
    assert Classes(term=KL(on="aux"), on="aux", student=(0, 1)).needs().student == {"aux"}


def test_labels_are_renumbered_dropped_and_gathered():
    y = torch.tensor([0, 1, 2, 3, 4, -1, -100])
    assert among(y, (4, 0, 2)).tolist() == [1, -1, 2, -1, 0, -1, -1]
    assert among(y.view(1, 7), (3,)).tolist() == [[-1, -1, -1, 0, -1, -1, -1]]
    soft = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    assert torch.equal(among(soft, (4, 0, 2)), torch.tensor([[0.0, 0.2, 0.3], [0.0, 0.0, 0.0]]))
    student, teacher = drawn(7, 5), drawn(7, 3, seed=1)
    value = Classes(term=DKD(), student=(4, 0, 2))({"logits": student}, {"logits": teacher}, {"y": y})
    known = among(y, (4, 0, 2)) >= 0
    assert not value[~known].any()
    assert (value[known] > 0).all()


def test_classes_go_inside_tokens():
    student, teacher = drawn(2, 4, 5), drawn(2, 4, 3, seed=1)
    batch = {"y": torch.tensor([[0, 1, -100, 2], [3, 4, 2, 1]]), "valid": torch.tensor([True, True])}
    term = Tokens(term=Classes(term=DKD(), student=(4, 0, 2)), shift=0)
    mask = batch["y"] != -100
    value = term({"logits": student}, {"logits": teacher}, batch)
    flat = (
        {"logits": student[mask][:, [4, 0, 2]]},
        {"logits": teacher[mask]},
        {"y": among(batch["y"][mask], (4, 0, 2))},
    )
    torch.testing.assert_close(value[mask], DKD()(*flat))
