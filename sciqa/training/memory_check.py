"""Estimate of the memory that a batch needs, checked before training."""

from sciqa.models.scorer import EncodedForScorer, Scorer


def check_minimum_memory(scorer: Scorer, longest: EncodedForScorer, micro_batch: int) -> int:
    """Return a lower bound of the bytes that a training step needs beyond the loaded weights.

    It counts gradients and both AdamW moments of the trained weights, in float32, and the input of every layer for the
    backward pass, at 2 bytes per value (2sbhL: Korthikanti et al. 2022, table 2, with full recomputation).
    """
    trained = sum(parameter.numel() for parameter in scorer.parameters() if parameter.requires_grad)
    config = scorer.model.config
    tokens = micro_batch * scorer.padded_tokens([longest])
    inputs = 2 * tokens * config.hidden_size * config.num_hidden_layers
    return 12 * trained + inputs
