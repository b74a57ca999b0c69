"""Counts of floating-point operations (FLOPs) for a question or a text, without weights."""

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from sciqa.models.scorer import EncodedForScorer
from sciqa.planning.memory import MemorySketch, run_on_fake_tensors


def question_flops(
    model: MemorySketch, question: EncodedForScorer, *, training: bool, checkpointing: bool = False
) -> int:
    """Return the FLOPs of the matrix multiplications of one question, as PyTorch counts them on fake tensors.

    The forward pass takes 2 per weight and token, and the backward pass 2 for the gradients of inputs and 2 for those
    of weights (Kaplan et al. 2020, Scaling Laws, section 2.1). Frozen weights need none (Dettmers et al. 2023, QLoRA,
    section 3), so with LoRA the sum is a little more than 4. Checkpointing adds another forward pass.

    Raises:
        InputError: the shapes of the model's tensors depend on computed values.
    """
    experts = {torch.ops.aten._grouped_mm: _expert_flops} if hasattr(torch.ops.aten, "_grouped_mm") else {}
    with (
        run_on_fake_tensors(model, [question], training, checkpointing) as (_, run),
        sdpa_kernel(SDPBackend.MATH),  # PyTorch does not count its fused attention on a CPU
        FlopCounterMode(display=False, custom_mapping=experts) as counter,
    ):
        run()
    return counter.get_total_flops()


def _expert_flops(one: torch.Size, other: torch.Size, *_: Any, **__: Any) -> int:  # noqa: ANN401
    """Return the FLOPs of a product of rows with the weights of each row's expert, for which PyTorch has no formula."""
    products = one[0] if len(one) == len(other) == 3 else 1
    return 2 * products * one[-2] * one[-1] * other[-1]


def text_flops(model: PreTrainedModel, tokens: int) -> int:
    """Return the FLOPs of an encoder, such as an embedder, for one text.

    A matrix multiplication takes 2 per weight and token (Kaplan et al. 2020, Scaling Laws, table 1). Attention takes 4
    per pair of tokens, layer and dimension (Hoffmann et al. 2022, appendix F).
    """
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config, heads = model.config, model.config.num_attention_heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * linear * tokens + 4 * config.num_hidden_layers * heads * dimension * tokens**2
