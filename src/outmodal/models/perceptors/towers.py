"""What the towers of ImageBind and LanguageBind share.

Parameters carry the names that the released checkpoints give them, so loading renames nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGelu}
"""`hidden_act` -> module; "gelu" is the exact one (erf), not its tanh approximation."""


class Mlp(nn.Module):
    """fc2(act(fc1(x)))."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention: [B, L, D] of queries [B, L, D], keys and values [B, K, D].

    Either `mask` [L, K] is added to the scores, or `causal` hides what comes later.
    """
    rows, size = len(q), q.shape[-1] // heads
    q, k, v = (t.reshape(rows, -1, heads, size).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """[B, D]: of x [B, L, D], the position `index` [B] of every row."""
    return x[torch.arange(len(x), device=x.device), index]


def end_token(ids: Tensor) -> Tensor:
    """[B]: where each row of token ids [B, L] first holds its largest id, the end token."""
    return ids.argmax(dim=-1)


def unit(x: Tensor) -> Tensor:
    """[..., d] at unit length, in fp32."""
    return F.normalize(x.float(), dim=-1)
