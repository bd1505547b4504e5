"""Attention of torch's own kind whose heads together are narrower than what it reads and writes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.errors import ModelError, problem
from limbeck.core.surgery import find, replace

__all__ = ["NarrowAttention", "narrow_attention"]


class NarrowAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with any number of heads of a given width: same parameters by name, same call.

    `nn.MultiheadAttention` demands heads x width == embed_dim, so that it cannot lose a head. This one doesn't.
    """

    def __init__(self, old: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        if old.bias_k is not None or old.add_zero_attn:
            wrong = "attention with `add_bias_kv` or `add_zero_attn` cannot lose heads"
            raise ModelError(problem("plan", wrong, "exclude it"))
        self.embed_dim, self.num_heads, self.head_dim = old.embed_dim, old.num_heads, old.head_dim
        self.kdim, self.vdim = old.kdim, old.vdim
        self.dropout, self.batch_first = old.dropout, old.batch_first
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(name, getattr(old, name))
        self.bias_k = self.bias_v = None
        self.add_zero_attn = False
        self.out_proj = old.out_proj
        self._qkv_same_embed_dim = False  # encoder layers ask this before they take a shortcut past `forward`

    def _reset_parameters(self) -> None:
        """As its base, which asks a flag what is there."""
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if (weight := getattr(self, name)) is not None:
                nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def forward(  # noqa: PLR0917 - the call of its base
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 - a hint beside the mask, which is asked for too
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`; a causal mask must be given as a mask."""
        single = query.dim() == 2
        if single:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._split(x, which) for which, x in enumerate((query, key, value)))
        weights = (q @ k.transpose(-2, -1)) * self.head_dim**-0.5
        mask = self._mask(q, key_padding_mask, attn_mask)
        weights = F.dropout((weights if mask is None else weights + mask).softmax(-1), self.dropout, self.training)
        output: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        output = output if self.batch_first else output.transpose(0, 1)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if single:
            output = output.squeeze(0 if self.batch_first else 1)
            shown = None if shown is None else shown.squeeze(0)
        return output, shown

    def _split(self, x: Tensor, which: int) -> Tensor:
        """[B, T, E] to [B, heads, T, width]."""
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[which]
        if self.in_proj_weight is not None:
            weight = self.in_proj_weight.chunk(3)[which]
        else:
            weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[which]
        return F.linear(x, weight, bias).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """What is added to the scores: [B, heads, T, S] or what broadcasts to it."""
        total: Tensor | None = None
        if mask is not None:
            mask = _added(mask, q)
            total = mask.view(q.shape[0], -1, *mask.shape[-2:]) if mask.dim() == 3 else mask
        if padding is not None:
            padded = _added(padding, q)[:, None, None, :]
            total = padded if total is None else total + padded
        return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def narrow_attention(model: nn.Module, at: str, **_: Any) -> None:
    """Put a `NarrowAttention` with the same parameters in the place of an `nn.MultiheadAttention`.

    Raises:
        ModelError: there is no attention of torch's own kind, or it is of a sort that cannot lose heads.
    """
    old = find(model, at)
    if isinstance(old, NarrowAttention):
        return
    if not isinstance(old, nn.MultiheadAttention):
        wrong = f"the layer {at!r} is no attention but {type(old).__name__}"
        raise ModelError(problem("plan", wrong, "replay the plan on the model that it was made for"))
    replace(model, at, NarrowAttention(old))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # nested tensors are for torch's shortcut alone
