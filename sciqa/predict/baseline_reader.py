"""The reader of the shallow baselines (word overlap, longest option, majority letter), which needs no model."""

from sciqa.exam.baselines import baseline_scores
from sciqa.predict.scored_answers import ScoredAnswer


class BaselineReader:
    """Reader that ranks by a baseline of `sciqa.exam.baselines`.

    Args:
        name: name of the baseline.
        counts: how often each letter is right in the exam, for `majority`.
    """

    def __init__(self, name: str, counts: dict[str, int]) -> None:
        self.name, self.scores = name, baseline_scores(name, counts)

    def score(self, questions: list[dict], found: list[tuple[dict, ...]]) -> list[ScoredAnswer]:
        """See `sciqa.predict.readers.Reader.score`; all options are tied where the gold article was not found."""
        texts = [self._text(question, rows) for question, rows in zip(questions, found, strict=True)]
        return [ScoredAnswer(self.scores(*pair)) for pair in zip(questions, texts, strict=True)]

    def _text(self, question: dict, rows: tuple[dict, ...]) -> str:
        if self.name != "overlap-gold":
            return rows[0]["context"] if rows else ""
        gold = [passage for passage in rows[0]["passages"] if passage["title"] == question["title"]]
        return "\n".join(passage["text"] for passage in gold)
