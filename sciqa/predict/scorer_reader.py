"""What readers with a language model have in common: the loaded model, and the choice of examples."""

from typing import Any

from sciqa.models.load import load_scorer
from sciqa.predict.shots import ShotChooser


class ScorerReader:
    """Base of readers that load a language model.

    Args:
        tokens_per_batch: tokens per batch, padding included.
        shots: arguments of `ShotChooser`; None for no examples.
        model: further arguments of `sciqa.models.load.load_scorer`.
    """

    def __init__(self, tokens_per_batch: int, shots: dict | None = None, **model: Any) -> None:  # noqa: ANN401
        self.scorer, self.tokens_per_batch = load_scorer(**model), tokens_per_batch
        self.chooser = ShotChooser(**shots) if shots else None
        self.notes = [self.scorer.note] if self.scorer.note else []
