"""What several teachers are worth in a sample, and in a class that not all of them know.

Shapes: B = samples of a batch, M = members, C = classes of the student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.errors import ModelError, problem
from limbeck.teachers.signal import Classes, check_classes

__all__ = ["check_union", "mean_of_known", "placed", "trusted"]

_MOST = 50.0
"""A cross-entropy above this is no trust at all; where the label is ruled out it is infinite."""


def trusted(each: Sequence[Tensor], heard_BM: Tensor, y: Tensor | None) -> Tensor:
    """The share of each member that is heard, [B, M]: 1/(M − 1)·(1 − softmax of its costs); rows sum to 1.

    The cost is the cross-entropy with the label, or, without `y`, the entropy of the member's answer. A sample without
    a label gives all the same.

    Source: Zhang et al. 2022, "Confidence-aware multi-teacher knowledge distillation", eqs. 2 and 3; by entropy as in
    Kwon et al. 2020, "Adaptive knowledge distillation based on entropy".
    """
    costs = []
    for logits in each:
        log_p = logits.double().log_softmax(-1)
        if y is None:
            costs.append(-torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p).sum(-1))
        elif y.is_floating_point():
            share = F.pad(y.double(), (0, log_p.shape[-1] - y.shape[-1]))
            costs.append(-torch.where(share == 0, 0.0, share * log_p).sum(-1))
        else:
            own = -log_p.gather(-1, y.clamp_min(0).unsqueeze(-1)).squeeze(-1)
            costs.append(torch.where(y < 0, 0.0, own))
    cost_BM = torch.stack(costs, 1).clamp_max(_MOST).masked_fill(~heard_BM, -torch.inf)
    others_B1 = heard_BM.sum(1, keepdim=True) - 1
    share_BM = (1 - cost_BM.softmax(1)) / others_B1.clamp_min(1)
    return torch.where(others_B1 > 0, share_BM, 1.0) * heard_BM


def check_union(classes: Sequence[Classes] | None, members: int) -> tuple[Tensor, ...] | None:
    """For each member, the student's class for each of its own, [C_m]; None where all have the same.

    Raises:
        ModelError: there is not one list for each member, one names a class twice, or a class is nobody's.
    """
    if classes is None:
        return None
    where = "teacher.classes"
    if len(classes) != members:
        wrong = f"it has {len(classes)} lists for {members} members"
        raise ModelError(problem(where, wrong, "give one list of the student's class numbers for each member"))
    found = [check_classes(tuple(own)) for own in classes]
    if any(index is None or index.dim() != 1 for index in found):
        raise ModelError(problem(where, "a member's class is a group", "merge classes where that member is made"))
    every = tuple(index for index in found if index is not None)
    known = set(torch.cat(every).tolist())
    lacks = sorted(set(range(max(known) + 1)) - known)
    if lacks:
        wrong = f"no member knows class {', '.join(map(str, lacks))}"
        raise ModelError(problem(where, wrong, "name every class of the student's at least once, from 0"))
    return every


def placed(each: Sequence[Tensor], union: Sequence[Tensor]) -> list[Tensor]:
    """Each member's logits among the student's classes [B, C], −inf where it does not know one.

    Raises:
        ModelError: a member has another number of classes than its list.
    """
    classes = 1 + max(int(index.max()) for index in union)
    wide = []
    for number, (logits, index) in enumerate(zip(each, union, strict=True)):
        if logits.dim() != 2 or logits.shape[-1] != len(index):
            wrong = f"member {number} answers with {tuple(logits.shape)}, and its list names {len(index)} classes"
            raise ModelError(problem("teacher.classes", wrong, "name the student's class for each of its classes"))
        full = logits.new_full((len(logits), classes), -torch.inf)
        wide.append(full.index_copy(1, index.to(logits.device), logits))
    return wide


def mean_of_known(each: Sequence[Tensor], weights_BM: Tensor, union: Sequence[Tensor], *, of: str) -> Tensor:
    """For each class the weighted mean of those who know it, float64 [B, C]; −inf where nobody who is heard does.

    Source: the standard averaging of Vongkulbhisal et al. 2019, "Unifying heterogeneous classifiers with distillation",
    section 3.
    """
    classes = each[0].shape[-1]
    total, share = (each[0].new_zeros((len(each[0]), classes), dtype=torch.float64) for _ in range(2))
    for number, (logits, index) in enumerate(zip(each, union, strict=True)):
        knows_C = torch.zeros(classes, dtype=torch.bool, device=logits.device)
        knows_C[index.to(logits.device)] = True
        weight_BC = weights_BM[:, number : number + 1] * knows_C
        value = logits.double() if of == "logits" else logits.double().softmax(-1)
        total += torch.where(weight_BC > 0, weight_BC * value, 0.0)
        share += weight_BC
    mean = torch.where(share > 0, total / torch.where(share > 0, share, 1.0), -torch.inf if of == "logits" else 0.0)
    return mean if of == "logits" else mean.log()
