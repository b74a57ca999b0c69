"""What readers with a language model have in common: the loaded model, and what is read with each question."""

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


def join_question_sources(
    questions: list[dict], found: list[tuple[dict, ...]], chooser: ShotChooser | None = None
) -> list[tuple[dict, str]]:
    """Return each question with its `passages` and `examples`, as templates take them, and its context.

    Args:
        questions: rows of the exam table.
        found: for each question, its rows in the tables that the reader takes; the first is that of contexts, if any.
        chooser: chooses the examples; None for none.
    """
    examples = chooser.choose(questions) if chooser else [[]] * len(questions)
    return [
        (
            question | {"passages": rows[0].get("passages") or [] if rows else [], "examples": each},
            rows[0]["context"] if rows else "",
        )
        for question, rows, each in zip(questions, found, examples, strict=True)
    ]
