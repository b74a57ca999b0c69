"""Attention of packed rows on a CPU: each question of a row looks at the row's prefix and at itself alone.

PyTorch's attention on a CPU computes every pair of tokens, also those that the mask excludes. In a packed row these are
most of the pairs, and take up to half of the time.
"""

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from sciqa.models.packing import PackedRows

#: Tokens of a row from which on computing its parts by themselves takes less time.
LEAST_TOKENS = 512


def packed_attention(rows: PackedRows, mask: torch.Tensor) -> AbstractContextManager:
    """Return a context in which a model computes the attention of long packed rows by `PackedAttention`.

    It changes nothing on a GPU, whose attention is quick, and where gradients are computed.
    """
    if not rows.ends or mask.shape[-2] < LEAST_TOKENS or mask.device.type != "cpu" or torch.is_grad_enabled():
        return nullcontext()
    return PackedAttention(rows, mask)


class PackedAttention(TorchFunctionMode):
    """While this mode is active, attention with the mask of some packed rows is computed part by part.

    The result is the same but for rounding. Attention with any other mask, such as one to which a model has added
    biases, is computed as usual.

    Args:
        rows: packed rows.
        mask: the mask that the model is given for them, shape (rows, 1, tokens, tokens before them and tokens).
    """

    def __init__(self, rows: PackedRows, mask: torch.Tensor) -> None:
        super().__init__()
        self.ends, self.mask = rows.ends, mask

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Call a function of PyTorch."""
        if func is scaled_dot_product_attention:
            return self._attend(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> torch.Tensor:
        if attn_mask is None or not self._is_ours(query, key, attn_mask):
            return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **settings)
        parts = zip(self.ends, query.split(1), key.split(1), value.split(1), self.mask.split(1), strict=True)
        return torch.cat([_attend_row(*row, **settings) for row in parts])

    def _is_ours(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> bool:
        """Whether a mask is the whole of this mode's, by its place in memory, and not a part or a changed copy."""
        rows, _, tokens, seen = self.mask.shape
        sizes = (*query.shape[::2], *key.shape[::2], *mask.shape[-2:])
        return mask.data_ptr() == self.mask.data_ptr() and sizes == (rows, tokens, rows, seen, tokens, seen)


def _attend_row(
    ends: list[int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    **settings: Any,  # noqa: ANN401
) -> torch.Tensor:
    """Return the attention of one row; its prefix ends at the first of `ends`, and its questions at the others."""
    before = key.shape[2] - query.shape[2]
    prefix = before + ends[0]

    def attend(start: int, stop: int) -> torch.Tensor:
        own = slice(before + start, before + stop)
        keys, values = (torch.cat([part[:, :, :prefix], part[:, :, own]], dim=2) for part in (key, value))
        shown = torch.cat([mask[:, :, start:stop, :prefix], mask[:, :, start:stop, own]], dim=3)
        return scaled_dot_product_attention(query[:, :, start:stop], keys, values, attn_mask=shown, **settings)

    parts = [attend(start, stop) for start, stop in itertools.pairwise(ends)]
    if ends[0]:
        end = ends[0]
        how: dict[str, Any] = {"attn_mask": mask[:, :, :end, :prefix]} if before else {"is_causal": True}
        keys, values = key[:, :, :prefix], value[:, :, :prefix]
        parts.insert(0, scaled_dot_product_attention(query[:, :, :end], keys, values, **settings | how))
    padding = query.new_zeros(*query.shape[:2], query.shape[2] - ends[-1], value.shape[3])  # which nothing looks at
    return torch.cat([*parts, padding], dim=2)
