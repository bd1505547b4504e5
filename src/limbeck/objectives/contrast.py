"""Losses by contrast: a sample's own teacher vector against those of others, in the batch or remembered.

Shapes: B = batch, D = width, K = remembered samples. Student first, teacher second, one value per example out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.check import positive, same_shape, whole
from limbeck.core.errors import ConfigError, problem
from limbeck.core.schedules import Number
from limbeck.core.setting import setting
from limbeck.core.types import Named, Needs
from limbeck.objectives.geometry import products, unit
from limbeck.objectives.heads import Head, make_head
from limbeck.objectives.logspace import Reduction, reduce, widened
from limbeck.objectives.term import BatchWide, Formula, OnLayers, same_batch

__all__ = ["CRD", "Bank", "Contrasted", "Contrasting", "InfoNCE", "crd", "info_nce"]


def info_nce(
    student: Tensor,
    teacher: Tensor,
    *,
    negatives: Tensor | None = None,
    allowed: Tensor | None = None,
    temperature: float = 0.07,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of finding a sample's own teacher vector among those of the batch, by cosine over temperature.

    Args:
        student: the student's vectors [B, D]; tokens and maps are averaged over their places first.
        teacher: the teacher's, of the same width.
        negatives: further teacher vectors [K, D] to be told apart.
        allowed: which of these may stand against which sample, [B, K]; None allows all.
        temperature: how sharply; cosines are divided by it.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the numbers of samples or the widths differ.
        ConfigError: the temperature is not above zero.

    Source: van den Oord et al. 2018, "Representation learning with contrastive predictive coding", eq. 4; cosines over
    a temperature and a queue of negatives as in He et al. 2020, "Momentum contrast".
    """
    s, t = _directions("info_nce", student, teacher, temperature)
    _check_allowed("info_nce", negatives, allowed)
    logits = products(s, t) / temperature
    if negatives is not None:
        further = products(s, unit(negatives)) / temperature
        logits = torch.cat([logits, further if allowed is None else further.masked_fill(~allowed, -torch.inf)], 1)
    return reduce(-logits.log_softmax(1).diagonal(), reduction)


def crd(
    student: Tensor,
    teacher: Tensor,
    *,
    negatives: tuple[Tensor, Tensor] | None = None,
    allowed: Tensor | None = None,
    temperature: float = 0.07,
    log_normalizer: float | Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Contrastive representation distillation: tell the pair of one sample from m pairs of two.

    Student vectors are held against teacher vectors and teacher vectors against student vectors, and both are summed.
    With e = cos/τ − log Z it is −log σ(e⁺ − log m) − Σ log σ(log m − e⁻) for each side.

    Args:
        student: the student's vectors [B, D]; tokens and maps are averaged over their places first.
        teacher: the teacher's, of the same width.
        negatives: remembered vectors, (student's [K, D], teacher's [K, D]); None takes the other samples of the batch.
        allowed: which of these may stand against which sample, [B, K]; None allows all.
        temperature: τ; how sharply.
        log_normalizer: log Z, without gradient; None takes the log-mean-exp of the similarities at hand, for each side.
        reduction: "none" gives one value per example, [B].

    Raises:
        ShapeError: the numbers of samples or the widths differ.
        ConfigError: the temperature is not above zero.

    Source: Tian, Krishnan & Isola 2020, "Contrastive representation distillation", eq. 17 to 19. The released code
    draws negatives from a memory of the whole data set, and keeps the Z of its first batch, one for each side.
    """
    s, t = _directions("crd", student, teacher, temperature)
    _check_allowed("crd", negatives, allowed)
    own = (s * t).sum(1) / temperature
    if negatives is None:
        return reduce(_told_in_batch(own, products(s, t) / temperature, log_normalizer), reduction)
    sides = products(s, unit(negatives[1])) / temperature, products(t, unit(negatives[0])) / temperature
    value = [_told_from_noise(own, others, allowed, log_normalizer) for others in sides]
    return reduce(value[0] + value[1], reduction)


def _told_in_batch(own_B: Tensor, all_BB: Tensor, log_z: float | Tensor | None) -> Tensor:
    """Both sides of `crd` among the samples of the batch: one matrix, by rows and by columns."""
    B = len(own_B)
    if log_z is None:
        log_z = all_BB.detach().logsumexp((0, 1)) - 2 * math.log(B)
    shift = log_z + math.log(max(B - 1, 1))
    noise = F.softplus(all_BB - shift)
    others = noise.sum(0) + noise.sum(1) - 2 * noise.diagonal()  # cosines are bounded, so nothing cancels
    return others - 2 * F.logsigmoid(own_B - shift)


def _told_from_noise(
    own_B: Tensor, others_BK: Tensor, allowed_BK: Tensor | None, log_z: float | Tensor | None
) -> Tensor:
    """One side of `crd`, from similarities over temperature. Without `allowed_BK` no mask is made: it costs a tenth."""
    number = others_BK.new_tensor(others_BK.shape[1]) if allowed_BK is None else allowed_BK.sum(1, keepdim=True)
    log_m = number.clamp_min(1).to(own_B.dtype).log()
    if log_z is None:
        known = others_BK if allowed_BK is None else others_BK.masked_fill(~allowed_BK, -torch.inf)
        pairs = len(own_B) + (others_BK.numel() if allowed_BK is None else allowed_BK.sum())
        log_z = _log_mean_exp(torch.cat([own_B[:, None], known], 1).detach(), torch.as_tensor(pairs))
    noise = F.softplus(others_BK - (log_m + log_z))
    noise = noise if allowed_BK is None else torch.where(allowed_BK, noise, 0.0)
    return noise.sum(1) - F.logsigmoid(own_B - (log_m + log_z).view(-1))


def _log_mean_exp(x: Tensor, number: Tensor) -> Tensor:
    return x.logsumexp((0, 1)) - number.to(x.dtype).log()


def _directions(where: str, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    positive(f"{where}.temperature", temperature)
    same_batch(where, student=student, teacher=teacher)
    s, t = vectors(student), vectors(teacher)
    same_shape(where, student=s, teacher=t)
    return unit(s), unit(t)


def _check_allowed(where: str, negatives: Any, allowed: Tensor | None) -> None:
    if negatives is None and allowed is not None:
        raise ConfigError(problem(where, "`allowed` chooses among `negatives`, and there are none", "give both"))


def vectors(x: Tensor) -> Tensor:
    """One vector a sample, in at least float32: tokens [B, N, C] and maps [B, C, …] are averaged over their places."""
    x = widened(x)
    return x if x.dim() < 3 else x.mean(1) if x.dim() == 3 else x.flatten(2).mean(2)


class Bank(nn.Module):
    """The last `size` samples: their ids and, for each side, their directions. All of it is saved with the student.

    With `temperature` it also keeps the log-normaliser of `crd`, that of the first batch.
    """

    id: Tensor
    position: Tensor
    log_normalizer: Tensor

    def __init__(self, size: int, widths: Mapping[str, int], temperature: float | None = None) -> None:
        super().__init__()
        self.size, self.sides, self.temperature = size, tuple(widths), temperature
        self.register_buffer("id", torch.full((size,), -1))
        self.register_buffer("position", torch.tensor(0))
        for side, width in widths.items():
            self.register_buffer(side, torch.zeros(size, width))
        if temperature is not None:
            self.register_buffer("log_normalizer", torch.tensor(math.nan))

    def forward(self, student: Tensor, teacher: Tensor, batch: Named) -> dict[str, Tensor]:
        """What is remembered, [1, K, …], before this batch joins it (which it does in training only)."""
        given = {name: self.get_buffer(name).clone()[None] for name in ("id", *self.sides)}
        keep = batch["valid"]
        new = {"student": unit(student.detach())[keep], "teacher": unit(teacher.detach())[keep]}
        if self.temperature is not None:
            similar = products(new["student"], new["teacher"]) / self.temperature
            now = _log_mean_exp(similar, keep.sum() ** 2).to(self.log_normalizer.dtype)
            given["log_normalizer"] = torch.where(self.log_normalizer.isnan(), now, self.log_normalizer)
        if self.training:
            self._remember(batch["id"][keep], new)
            if self.temperature is not None:
                self.log_normalizer.copy_(given["log_normalizer"])
        return given

    def _remember(self, ids: Tensor, new: Named) -> None:
        number = min(len(ids), self.size)
        places = (self.position + torch.arange(number, device=ids.device)) % self.size
        self.id[places] = ids[len(ids) - number :]
        for side in self.sides:
            kept = self.get_buffer(side)
            kept[places] = new[side][len(ids) - number :].to(kept.dtype)
        self.position.add_(number).remainder_(self.size)


@setting
class Contrasting:
    """Asks for the vectors of two layers in one width, under `name`, and for a memory of `bank` earlier ones.

    With `width`, both sides are mapped to it; without, the student's to the teacher's. With `temperature`, the memory
    holds both sides and a log-normaliser; without, the teacher's side.
    """

    name: str
    source: str
    target: str
    form: str
    width: int | None = None
    bank: int = 0
    temperature: float | None = None

    def __call__(self, student: Named, teacher: Named) -> nn.Module:
        """The module.

        Raises:
            ShapeError: the widths differ, and the form is "none".
        """
        here, there = tuple(vectors(student[self.source]).shape), tuple(vectors(teacher[self.target]).shape)
        mapped = self.width is not None and self.form != "none"
        common = (1, self.width) if mapped and self.width is not None else there
        maps = [make_head(self.form, shape, common, self.name) for shape in ((here, there) if mapped else (here,))]
        sides = ("teacher",) if self.temperature is None else ("student", "teacher")
        bank = Bank(self.bank, dict.fromkeys(sides, common[1]), self.temperature) if self.bank else None
        return Contrasted(self.name, self.source, self.target, maps, bank)


class Contrasted(nn.Module):
    """Both sides' vectors in one width, and what is remembered, under names of its own."""

    def __init__(self, name: str, source: str, target: str, maps: list[nn.Module], bank: Bank | None) -> None:
        super().__init__()
        self.name, self.source, self.target = name, source, target
        self.maps, self.bank = nn.ModuleList(maps), bank

    def forward(self, student: Named, teacher: Named, batch: Named) -> dict[str, Tensor]:
        """The vectors and the memory."""
        s, t = self.maps[0](vectors(student[self.source])), vectors(teacher[self.target])
        t = self.maps[1](t) if len(self.maps) > 1 else t
        kept = {} if self.bank is None else self.bank(s, t, batch)
        return {self.name: s, f"{self.name}:target": t} | {f"{self.name}:{key}": value for key, value in kept.items()}


@setting
class _Contrast(OnLayers):
    """For terms that compare the vectors of two layers, brought to one width, with those of other samples."""

    temperature: Number = 0.07
    bank: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        OnLayers.__post_init__(self)
        whole(f"{self.kind}.bank", self.bank, least=0)
        if not callable(self.temperature):
            positive(f"{self.kind}.temperature", self.temperature)

    def needs(self) -> Needs:
        """One layer on each side, and the samples' ids where earlier ones are remembered."""
        return OnLayers.needs(self)._replace(batch=frozenset({"id"} if self.bank else ()))

    def heads(self) -> tuple[Head, ...]:
        """What brings both sides to one width and remembers; none where vectors are compared as they are."""
        if self.projected == self.student:
            return ()
        return (Contrasting(name=self.projected, source=self.student, target=self.teacher, **self.asked()),)

    @property
    def projected(self) -> str:
        """The name under which the student's signal holds its vectors; whatever shapes the head is part of it."""
        if self.head == "none" and not self.bank:
            return self.student
        return f"{self.kind}:{self.student}>{self.teacher}:" + ",".join(map(str, self.asked().values()))

    def asked(self) -> dict[str, Any]:
        """The settings of the head."""
        return {"form": self.head, "bank": self.bank}

    def remembered(self, student: Named) -> dict[str, Any]:
        """What the formula takes from the memory."""
        return {"negatives": student[f"{self.projected}:teacher"][0]}

    def __call__(self, student: Named, teacher: Named, batch: Named) -> Tensor:
        """One value per example."""
        name = self.projected
        left, right = student[name], student[f"{name}:target"] if self.heads() else teacher[self.teacher]
        kept: dict[str, Any] = {}
        if self.bank:
            ids = student[f"{name}:id"]
            kept = self.remembered(student) | {"allowed": (ids != batch["id"][:, None]) & (ids != -1)}
        return type(self).formula(left, right, **kept, temperature=self.temperature, reduction="none")


@setting
class InfoNCE(BatchWide, _Contrast):
    """Find a sample's own teacher vector among others. The formula is `info_nce`.

    Matches: directions, as far as it takes to tell samples apart.
    Formula: −log of the softmax of cos(h(f_s), f_t) / τ over teacher vectors, at the sample's own.
    Source: van den Oord et al. 2018, eq. 4; the queue is that of He et al. 2020.
    Defaults: τ = 0.07, negatives from the batch alone (bank 0), a linear head where widths differ; weight 1.
    Helps: embeddings and retrieval; a bank of some thousands where batches are small.
    Cost: one product of the batch with itself and the bank.
    Limits: not zero at equality; without a bank a single sample teaches nothing; with several processes the bank is
        the first one's.
    """

    formula: ClassVar[Formula] = staticmethod(info_nce)
    kind: Literal["info_nce"] = "info_nce"


@setting
class CRD(BatchWide, _Contrast):
    """Tell pairs of one sample from pairs of two, from both sides. The formula is `crd`.

    Matches: what student and teacher vectors share about a sample, in a space that is learned for it.
    Formula: −log σ(e⁺ − log m) − Σ over m negatives of log σ(log m − e⁻), e = cos/τ − log Z; both sides summed.
    Source: Tian et al. 2020, eq. 17 to 19.
    Defaults: τ = 0.07, `width` 128, linear maps and weight 0.8 as released; negatives from the batch alone (bank 0),
        where the released code draws 16384 from a memory of all samples: `bank=16384` comes near it.
    Helps: students of another family; it led the often-copied benchmark of its year.
    Cost: two linear maps and one product of the batch with itself, or two with the bank; bank · width · 8 bytes.
    Limits: not zero at equality; vectors in the bank are as old as the bank is long; Z is kept from the first batch
        with a bank, and taken from each batch without; with several processes the bank is the first one's.
    """

    formula: ClassVar[Formula] = staticmethod(crd)
    kind: Literal["crd"] = "crd"
    weight: Number = 0.8
    head: str = "linear"
    temperature: float = 0.07
    width: int = 128

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        positive("crd.temperature", self.temperature)
        _Contrast.__post_init__(self)
        whole("crd.width", self.width)

    def asked(self) -> dict[str, Any]:
        """The settings of the head: both sides are mapped, and the normaliser depends on the temperature."""
        kept = {"temperature": self.temperature} if self.bank else {}
        return {"form": self.head, "bank": self.bank, "width": self.width, **kept}

    def remembered(self, student: Named) -> dict[str, Any]:
        """Both sides, and the normaliser."""
        both = tuple(student[f"{self.projected}:{side}"][0] for side in ("student", "teacher"))
        return {"negatives": both, "log_normalizer": student[f"{self.projected}:log_normalizer"]}
