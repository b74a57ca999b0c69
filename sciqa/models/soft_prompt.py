"""Packed rows after a soft prompt, which peft itself puts only before rows with a mask of shape (rows, tokens)."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch.nn.functional import pad

from sciqa.models.packing import PackedRows

if TYPE_CHECKING:
    import peft
    from transformers import PreTrainedModel

#: Kinds of peft's soft prompts that are keys and values of each layer, not vectors in place of embeddings.
KEYS_AND_VALUES = ("PREFIX_TUNING", "CARTRIDGE")


def about_soft_prompt(model: "PreTrainedModel | peft.PeftModel") -> list:
    """Return the kind of a model's soft prompt and its number of virtual tokens; [] without one."""
    adapter = getattr(model, "active_peft_config", None)
    if adapter is None or not adapter.is_prompt_learning:
        return []
    return [adapter.peft_type.value, adapter.num_virtual_tokens]


def soft_prompt_tokens(model: "PreTrainedModel | peft.PeftModel") -> int:
    """Return the number of virtual tokens before every row; 0 without a soft prompt."""
    return sum(about_soft_prompt(model)[1:])


def add_soft_prompt(
    model: "PreTrainedModel | peft.PeftModel", rows: PackedRows
) -> tuple["PreTrainedModel", PackedRows, dict[str, object]]:
    """Return base model, rows and inputs by which packed rows are computed after the soft prompt; differentiable.

    Every token sees the whole soft prompt, and positions count from its end. Prefix tuning gives keys and values of
    each layer, which are not computed again; other kinds give vectors in place of embeddings, shape (rows, virtual
    tokens, hidden), which are columns of the rows.
    """
    soft = cast("peft.PeftModel", model)
    base = cast("PreTrainedModel", soft.get_base_model())
    before, ids = soft_prompt_tokens(model), rows.ids.to(base.device)
    sees = pad(rows.mask, (before, 0, before, 0))
    sees[..., :before] = torch.ones(sees.shape[-1], before, dtype=torch.bool).tril()
    positions = pad(cast("torch.Tensor", rows.positions) + before, (before, 0))
    positions[:, :before] = torch.arange(before)
    if about_soft_prompt(model)[0] in KEYS_AND_VALUES:
        given = {"input_ids": ids, "past_key_values": soft.get_prompt(len(ids)), "use_cache": True}
        return base, replace(rows, mask=sees[:, :, before:], positions=positions[:, before:], ends=[]), given
    embedded = base.get_input_embeddings()(ids)  # first, as in peft: under ZeRO-3 all ranks gather alike
    embedded = torch.cat([soft.get_prompt(len(ids)).to(embedded.dtype), embedded], dim=1)
    return base, replace(rows, mask=sees, positions=positions, ends=[]), {"inputs_embeds": embedded}
