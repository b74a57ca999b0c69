"""Counts of floating-point operations (FLOPs) for a question or a text, without running the model."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sciqa.core.model_files import Family
from sciqa.models.scorer import EncodedForScorer
from sciqa.planning.memory import CROSS, MemorySketch


def question_flops(
    model: MemorySketch, question: EncodedForScorer, *, training: bool, checkpointing: bool = False
) -> int:
    """Return the FLOPs of one question.

    A matrix multiplication takes 2 FLOPs per weight and token (Kaplan et al. 2020, Scaling Laws, table 1). Attention
    takes 4 per pair of tokens, layer and dimension (Hoffmann et al. 2022, appendix F). The backward pass multiplies
    once for the gradients of inputs and once for those of weights, so the total is Kaplan's 6 per weight and token.
    Frozen weights need no gradients (Dettmers et al. 2023, section 3), so with LoRA the total is a little more than 4.
    Checkpointing adds another forward pass.
    """
    linear = trained = 0
    tokens_of = _tokens(model, question)
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            count = 2 * module.weight.numel() * tokens_of(name)
            linear += count
            trained += count if module.weight.requires_grad else 0
    attention = _attention_flops(model.model.config, model.family, question)
    forward = linear + attention
    if not training:
        return forward
    return forward * (2 if checkpointing else 1) + linear + trained + 2 * attention


def text_flops(model: PreTrainedModel, tokens: int) -> int:
    """Return the FLOPs of an encoder, such as an embedder, for one text."""
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    return 2 * linear * tokens + _pairs_flops(model.config, model.config.num_hidden_layers, tokens * tokens)


def _tokens(model: MemorySketch, question: EncodedForScorer) -> Any:  # noqa: ANN401
    """Return a function from the name of a linear layer to the number of tokens that pass through it."""
    output = model.model.get_output_embeddings()
    head = next((name for name, module in model.model.named_modules() if module is output), None)
    options = sum(map(len, question.options))
    predicted = options + (1 if model.family == "causal" else 0)
    prompt = len(question.prompt)

    def tokens_of(name: str) -> int:
        if head and name.startswith(head):
            return predicted
        if model.family != "seq2seq":
            return prompt + options
        if CROSS.search(name):
            return prompt * len(question.options)
        return options if "decoder." in name else prompt

    return tokens_of


def _attention_flops(config: Any, family: Family, question: EncodedForScorer) -> int:  # noqa: ANN401
    layers, prompt = config.num_hidden_layers, len(question.prompt)
    lengths = [len(option) for option in question.options]
    if family == "causal":
        return _pairs_flops(config, layers, question.length**2)
    own = sum(length * length for length in lengths)
    if family == "multiple-choice":
        return _pairs_flops(config, layers, own)
    cross = prompt * sum(lengths)
    return _pairs_flops(config, layers, prompt**2) + _pairs_flops(config, config.num_decoder_layers, own + cross)


def _pairs_flops(config: Any, layers: int, pairs: int) -> int:  # noqa: ANN401
    heads = config.num_attention_heads
    dimension = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 4 * layers * heads * dimension * pairs
