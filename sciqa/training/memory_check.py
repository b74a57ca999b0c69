"""Estimate of the memory that a batch needs, checked before training."""

from sciqa.models.scorer import EncodedForScorer, Scorer


def check_minimum_memory(scorer: Scorer, longest: EncodedForScorer, micro_batch: int) -> int:
    """Return a lower bound of the bytes that a training step needs beyond the loaded weights.

    It counts gradients and both AdamW moments of the trained weights, in float32, and the input of every layer for the
    backward pass, at 2 bytes per value (2sbhL: Korthikanti et al. 2022, table 2, with full recomputation).
    """
    held = (getattr(each, "ds_tensor", each) for each in scorer.parameters() if each.requires_grad)  # of ZeRO-3
    trained = sum(each.numel() for each in held)
    config = scorer.model.config
    tokens = micro_batch * (scorer.padded_tokens([longest]) if scorer.batch_layout else longest.length)
    inputs = 2 * tokens * config.hidden_size * config.num_hidden_layers
    return 12 * trained + inputs
