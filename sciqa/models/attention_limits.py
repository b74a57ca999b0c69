"""Lengths beyond which a model computes sequences otherwise: attention windows, and rotary embeddings that switch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig

#: Names of modules with learned text positions, and of similar modules to leave out.
POSITIONS = re.compile(r"(^|\.)(embed_positions|(char_)?position_embeddings?|wpe)$")
OTHER_POSITIONS = re.compile(r"vision|visual|image|audio|entity|relative")
#: Configuration settings that limit how many earlier tokens a layer attends to: sliding windows, chunks, and the
#: number of tokens that sparse attention selects.
WINDOWS = re.compile(r"window|chunk_size|local_attention|index_topk")
#: Settings of sparse attention that selects tokens. Its choice among similar tokens depends on the row length.
SELECTIONS = re.compile(r"index_topk$|keep_window|indexer_budget")
NO_WINDOWS = re.compile(r"max_window_layers|pattern|num_|layers")


@dataclass(frozen=True)
class RopeLengthLimit:
    """Sequence length beyond which a rotary embedding changes; the longest sequence of a batch decides for all.

    Attributes:
        length: tokens beyond which a sequence gets other frequencies; None if they never change.
        dynamic: whether these differ with every length beyond it.
    """

    length: int | None = None
    dynamic: bool = False

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "RopeLengthLimit":
        """Return the switch of a model's configuration."""
        rope = getattr(config, "rope_parameters", None) or {}
        for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            kind = each.get("rope_type")
            if kind == "longrope":
                original = each.get("original_max_position_embeddings")
                return cls(original or getattr(config, "original_max_position_embeddings", None))
            if kind == "dynamic":
                return cls(config.max_position_embeddings, dynamic=True)
        return cls()

    def key(self, length: int) -> object:
        """Return a key that all sequences of a batch must share."""
        return self.length is not None and length > self.length

    def alone(self, length: int) -> bool:
        """Whether a sequence must be a batch of its own."""
        return self.dynamic and self.length is not None and length > self.length

    def splits(self, lengths: Sequence[int]) -> bool:
        """Whether sequences cannot all be in one batch."""
        return len({self.key(length) for length in lengths}) > 1 or any(map(self.alone, lengths))


def attention_window(config: PreTrainedConfig, names: re.Pattern = WINDOWS) -> int:
    """Return the longest sequence that every layer sees in full, by the settings whose names match."""
    about = config.to_dict()
    if about.get("use_sliding_window") is False:
        about = {name: value for name, value in about.items() if "sliding_window" not in name}
    sizes = [
        size
        for name, value in about.items()
        if names.search(name) and not NO_WINDOWS.search(name)
        for size in (value if isinstance(value, list | tuple) else [value])
        if isinstance(size, int) and not isinstance(size, bool) and size > 0
    ]
    return min(sizes, default=1 << 62)


def position_limit(model: nn.Module, config: PreTrainedConfig) -> int:
    """Return the maximum number of tokens that a model, or its text part, has positions for.

    The configuration and all tables of learned positions limit it. Some tables start after the padding token, such as
    RoBERTa's with 514 places for 512 tokens.
    """
    said = getattr(config, "max_position_embeddings", None) or 0
    limits = [said if said > 0 else 1 << 20]  # XLNet's is -1
    for name, module in model.named_modules():
        table = getattr(module, "weight", None)
        if POSITIONS.search(name) and not OTHER_POSITIONS.search(name) and table is not None and table.ndim == 2:
            padding = getattr(module, "padding_idx", None)
            limits.append(len(table) - getattr(module, "offset", 0 if padding is None else padding + 1))
    return min(limits)
