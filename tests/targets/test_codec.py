"""What a codec gives back is within its bound, and what it cannot keep it refuses."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from limbeck.core.errors import ConfigError, DataError
from limbeck.objectives.sequence import topk_kl
from limbeck.targets import CODECS, Dense, Origin, Sampled, TopK
from limbeck.targets.draw import draw

SHAPES = {"logits": (7, 10), "two": (5, 2), "map": (3, 4, 5, 6), "tokens": (2, 5, 33), "number": (6,)}
SPREADS = (1e-40, 1e-6, 1.0, 1e4)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ALL = [Dense(dtype=d) for d in ("float16", "float32", "bfloat16", "int8")] + [
    TopK(k=2, dtype=d) for d in ("float16", "float32", "bfloat16")
]


def values(shape, spread=1.0, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread).to(dtype)


def label(codec):
    return f"{codec.kind}-{codec.dtype}"


@pytest.mark.parametrize("codec", ALL, ids=label)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_comes_back_is_within_the_bound(codec, shape):
    for spread in SPREADS:
        for dtype in DTYPES:
            x = values(shape, spread, dtype)
            if codec.kind == "topk" and len(shape) == 1:
                continue
            if not x.isfinite().all():
                continue
            kept = codec.encode(x)
            assert {k: (v.dtype, tuple(v.shape[1:])) for k, v in kept.items()} == codec.parts(shape[1:])
            back, bound = codec.decode(kept), codec.bound(x)
            wide = x.double()
            if codec.kind == "dense":
                truth = {"": wide}
            else:
                log_p = torch.from_numpy(special.log_softmax(wide.numpy(), -1))
                rest = special.logsumexp(log_p.scatter(-1, back["ids"], -torch.inf).numpy(), -1)
                truth = {"log_probs": log_p.gather(-1, back["ids"]), "log_tail": torch.from_numpy(np.asarray(rest))}
            for name, exact in truth.items():
                assert back[name].dtype == torch.float32
                error = torch.where(back[name] == exact, 0.0, (back[name].double() - exact).abs())
                assert (error <= bound[name]).all(), (name, spread, dtype, float((error - bound[name]).max()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_the_bound_is_not_slack(dtype):
    x = values((64, 512))
    error = (Dense(dtype=dtype).decode(Dense(dtype=dtype).encode(x))[""].double() - x).abs()
    assert (error / Dense(dtype=dtype).bound(x)[""]).max() > 0.9


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float32_is_exact_and_int8_keeps_zeros(shape):
    x = values(shape)
    assert torch.equal(Dense(dtype="float32").decode(Dense(dtype="float32").encode(x))[""], x)
    zeros = torch.zeros(shape)
    assert torch.equal(Dense(dtype="int8").decode(Dense(dtype="int8").encode(zeros))[""], zeros)


def test_int8_scales_each_row_alone():
    x = values((4, 8))
    x[1] *= 1e6
    kept = Dense(dtype="int8").encode(x)
    assert kept["values"].abs().amax(1).tolist() == [127] * 4
    assert torch.allclose(kept["scale"], x.abs().amax(1) / 127)


@pytest.mark.parametrize("classes", [2, 3, 1000, 65_536, 65_537, 70_000])
def test_ids_of_any_number_of_classes_come_back(classes):
    x = values((3, classes))
    x[0, -1], x[1, 0] = 20.0, 20.0
    codec = TopK(k=2)
    kept = codec.encode(x)
    assert kept["ids"].dtype == (torch.int16 if classes <= 65_536 else torch.int32)
    back = codec.decode(kept)["ids"]
    assert back.dtype == torch.int64
    assert torch.equal(back, torch.from_numpy(np.argsort(-x.numpy(), -1, kind="stable")[:, :2].copy()))
    kept = Sampled(draws=2).encode(x)
    assert Sampled(draws=2).decode(kept)["ids"].max() == classes - 1  # probability 1 - 1e-4 of sample 0


def test_equals_are_ordered_and_cut_by_their_id():
    x = torch.randint(0, 3, (200, 40), generator=torch.Generator().manual_seed(1)).float()
    back = TopK(k=7).decode(TopK(k=7).encode(x))["ids"]
    assert torch.equal(back, torch.from_numpy(np.argsort(-x.numpy(), -1, kind="stable")[:, :7].copy()))


def test_all_answers_leave_no_tail_and_ruled_out_ones_no_mass():
    x = torch.tensor([[1.0, 2.0, -torch.inf]])
    back = TopK(k=3).decode(TopK(k=3).encode(x))
    assert back["log_tail"].tolist() == [-torch.inf]
    assert back["ids"].tolist() == [[1, 0, 2]]
    assert back["log_probs"][0, 2] == -torch.inf
    assert Dense().decode(Dense().encode(x))[""].tolist() == [[1.0, 2.0, -math.inf]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equals_of_many_words_and_parts_of_the_work_change_nothing(dtype):
    x = values((50, 30_000), 2.0, dtype)  # a half type has a few hundred distinct values: the edge is cut in most rows
    kept = TopK(k=64).encode(x)
    order = np.argsort(-x.float().numpy(), -1, kind="stable")[:, :64]
    assert torch.equal(TopK(k=64).decode(kept)["ids"], torch.from_numpy(order.copy()))
    alone = TopK(k=64).encode(x[17:18])
    assert all(torch.equal(alone[name], kept[name][17:18]) for name in kept)


def test_a_faint_tail_is_not_lost():
    x = torch.tensor([[300.0, 0.0, 1.0, 0.0], [80.0, 0.0, 0.0, 0.0], [1e4, -1e4, -1e4, 0.0]])
    back = TopK(k=1, dtype="float32").decode(TopK(k=1, dtype="float32").encode(x))
    exact = special.logsumexp(x.double().numpy()[:, 1:], -1) - special.logsumexp(x.double().numpy(), -1)
    assert np.allclose(back["log_tail"], exact, rtol=1e-6)


def test_a_small_tail_is_summed_and_not_what_is_left_of_one():
    x = torch.tensor([[60.0, 0.0, 0.0, 1.0]])  # 1 - p is 0 in float32
    tail = TopK(k=1, dtype="float32").decode(TopK(k=1, dtype="float32").encode(x))["log_tail"]
    assert float(tail) == pytest.approx(math.log(2 + math.e) - 60, rel=1e-6)


@pytest.mark.parametrize(
    ("codec", "bad", "said"),
    [
        (Dense(), 7e4, "beyond float16"),
        (Dense(), math.nan, "NaN"),
        (Dense(dtype="bfloat16"), math.inf, r"\+inf"),
        (Dense(dtype="int8"), -math.inf, "cannot be kept as int8"),
        (Dense(dtype="int8"), math.nan, "NaN"),
        (TopK(k=2), math.nan, "NaN"),
        (TopK(k=4), 7e4, "beyond float16"),
        (Sampled(draws=2), math.inf, "NaN"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused_by_name(codec, bad, said):
    x = values((5, 4))
    x[2, 1] = bad
    with pytest.raises(DataError, match=rf"'logits'.*{said}"):
        codec.encode(x, Origin("logits"))
    with pytest.raises(DataError, match="int64"):
        codec.encode(x.nan_to_num(0, 0, 0).long())


def test_no_answer_at_all_is_refused():
    for codec in (TopK(k=1), Sampled(draws=1)):
        with pytest.raises(DataError, match="all −inf"):
            codec.encode(torch.full((1, 3), -torch.inf))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="at most 10"):
        TopK(k=11).check("logits", (10,))
    with pytest.raises(ConfigError, match="no axis of classes"):
        Sampled(draws=1).check("logits", ())
    for wrong in (lambda: TopK(k=0), lambda: Sampled(draws=0), lambda: Dense(dtype="int4")):
        with pytest.raises(ConfigError):
            wrong()


@pytest.mark.parametrize("codec", [*ALL, Sampled(draws=2)], ids=lambda c: getattr(c, "dtype", "x") + c.kind)
def test_bytes_are_those_of_the_tensors(codec):
    for shape in ((4,), (5, 300), (2, 70_000)):
        kept = codec.encode(values((3, *shape)))
        assert sum(x.numel() * x.element_size() for x in kept.values()) == 3 * codec.bytes(shape)


def test_every_codec_is_in_the_table_by_its_kind():
    assert all(
        codec.kind == kind for kind, codec in (("dense", Dense()), ("topk", TopK(k=1)), ("sampled", Sampled(draws=1)))
    )
    assert set(CODECS) == {"dense", "topk", "sampled"}


# Sampled --------------------------------------------------------------------------------------------------------------


def test_sampled_shares_are_unbiased():
    x = values((1, 6), 2.0).expand(4000, 6)
    codec = Sampled(draws=5)
    back = codec.decode(codec.encode(x, Origin(ids_n=torch.arange(4000))))
    shares = torch.zeros(x.shape).scatter_add_(-1, back["ids"], back["log_probs"].exp())
    assert torch.allclose(shares.sum(-1), torch.ones(4000))
    z = (shares.double().mean(0) - x[0].double().softmax(-1)) / (codec.bound(x)["log_probs"][0] / math.sqrt(4000))
    assert z.abs().max() < 4
    spread = shares.double().std(0) / codec.bound(x)["log_probs"][0]
    assert (spread - 1).abs().max() < 0.1


def test_sampled_gives_what_topk_kl_reads_and_its_gradient_on_average():
    teacher, student = values((1, 6), 1.5), values((1, 6), 1.5, seed=3).requires_grad_()
    codec = Sampled(draws=4)
    n = 6000
    back = codec.decode(codec.encode(teacher.expand(n, 6), Origin(ids_n=torch.arange(n))))
    loss = topk_kl(student.expand(n, 6), back["ids"], back["log_probs"], tail="teacher")
    (found,) = torch.autograd.grad(loss, student)
    exact = student.softmax(-1) - teacher.softmax(-1)
    assert torch.allclose(found, exact, atol=4 * 0.5 / math.sqrt(4 * n))


def test_draws_are_a_function_of_what_they_are_for():
    x = values((6, 3, 20))
    ids, codec = torch.tensor([5, 3, 8, 1, 0, 2]), Sampled(draws=9)
    whole = codec.encode(x, Origin("a", 1, 2, ids))["ids"]
    order = torch.tensor([4, 2, 0, 5])
    assert torch.equal(codec.encode(x[order], Origin("a", 1, 2, ids[order]))["ids"], whole[order])
    flat = codec.encode(x.reshape(18, 20), Origin("a", 1, 2, ids.repeat_interleave(3), torch.arange(3).repeat(6)))
    assert torch.equal(flat["ids"].view(6, 3, 9), whole)
    state = torch.get_rng_state()
    for other in (Origin("b", 1, 2, ids), Origin("a", 2, 2, ids), Origin("a", 1, 3, ids), Origin("a", 1, 2, ids + 1)):
        assert not torch.equal(codec.encode(x, other)["ids"], whole)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_draw_lands_on_what_is_ruled_out():
    x = torch.full((2000, 8), -torch.inf)
    x[:, 2], x[:, 5] = 0.0, -1.0
    assert set(Sampled(draws=8).encode(x, Origin(ids_n=torch.arange(2000)))["ids"].unique().tolist()) == {2, 5}


@pytest.mark.parametrize("u", [2.0**-53, 1 - 2.0**-53])
def test_the_outermost_draws_land_on_answers_that_can_be(monkeypatch, u):
    monkeypatch.setattr("limbeck.targets.codec.draw", lambda *_, draws: np.full((64, draws), u))
    x = torch.cat([torch.full((64, 1), -torch.inf), values((64, 9)), torch.full((64, 1), -torch.inf)], -1)
    assert set(Sampled(draws=1).encode(x)["ids"].unique().tolist()) == {1 if u < 0.5 else 9}


def test_uniform_numbers_are_uniform_and_unrelated():
    keys = np.stack([np.arange(500), np.zeros(500, np.int64)])
    u = draw(0, "logits", 0, keys, draws=40)
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    others = [
        draw(0, "logits", 1, keys, draws=40),
        draw(1, "logits", 0, keys, draws=40),
        draw(0, "l", 0, keys, draws=40),
    ]
    for a, b in [*((u, other) for other in others), (u[:, :-1], u[:, 1:]), (u[:-1], u[1:])]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
