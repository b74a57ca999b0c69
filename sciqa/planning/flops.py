"""Counts of floating-point operations (FLOPs) for a question or a text, without weights."""

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

    Frozen weights need no gradients (Dettmers et al. 2023, section 3), so training takes about 4 per weight and token
    with LoRA, and 6 without (Kaplan et al. 2020, Scaling Laws, table 1). Checkpointing adds another forward pass.

    Raises:
        InputError: the shapes of the model's tensors depend on computed values.
    """
    with (
        run_on_fake_tensors(model, [question], training, checkpointing) as (_, run),
        sdpa_kernel(SDPBackend.MATH),  # PyTorch does not count its fused attention on a CPU
        FlopCounterMode(display=False) as counter,
    ):
        run()
    return counter.get_total_flops()


def text_flops(model: PreTrainedModel, tokens: int) -> int:
    """Return the FLOPs of an encoder, such as an embedder, for one text.

    A matrix multiplication takes 2 per weight and token (Kaplan et al. 2020, Scaling Laws, table 1). Attention takes 4
    per pair of tokens, layer and dimension (Hoffmann et al. 2022, appendix F).
    """
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config, heads = model.config, model.config.num_attention_heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * linear * tokens + 4 * config.num_hidden_layers * heads * dimension * tokens**2
