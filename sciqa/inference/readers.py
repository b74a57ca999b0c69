"""Readers: from questions and their contexts to a score for every option."""

from typing import Protocol

import numpy as np

from sciqa.exam.questions import options_of
from sciqa.inference.likelihood import Encoded, Normalise, encode, log_likelihoods, normalise_scores
from sciqa.models.causal import Precision, load_causal
from sciqa.retrieval.embedder import load_embedder
from sciqa.retrieval.index import embedded_text

#: Cosines lie close together; this is the scale that sentence-transformers trains them with.
COSINE_SCALE = 20.0


class Reader(Protocol):
    """Scores options; probabilities are the softmax of the scores."""

    def score(self, questions: list[dict], contexts: list[dict]) -> list[np.ndarray]:
        """Return an array of shape (options,) per question.

        Args:
            questions: rows of the exam table.
            contexts: their rows of the contexts table; empty for a reader that needs none.
        """


class LikelihoodReader:
    """A causal language model; options are ranked by the log-likelihood of their text after the prompt.

    Args:
        model: name as `sciqa.hub.find_model` takes it.
        precision: type of the weights.
        normalise: what the log-likelihood of an option is divided by.
        tokens_per_batch: padded tokens that are computed at once.
        threads: CPU threads.
    """

    def __init__(
        self, model: str, precision: Precision, normalise: Normalise, tokens_per_batch: int, threads: int
    ) -> None:
        self.model, self.tokenizer = load_causal(model, precision, threads)
        self.normalise, self.tokens_per_batch = normalise, tokens_per_batch
        self.limit = getattr(self.model.config, "max_position_embeddings", None) or 1 << 20

    def score(self, questions: list[dict], contexts: list[dict]) -> list[np.ndarray]:
        """See `Reader.score`; without contexts the reader answers closed-book."""
        texts = [context["context"] for context in contexts] or [""] * len(questions)
        options = [[f" {option}" for option in options_of(question).values()] for question in questions]
        encoded = [self._encode(*parts) for parts in zip(questions, texts, options, strict=True)]
        scores = log_likelihoods(self.model, encoded, self.tokens_per_batch)
        return [normalise_scores(*parts, self.normalise) for parts in zip(scores, encoded, options, strict=True)]

    def _encode(self, question: dict, context: str, options: list[str]) -> Encoded:
        encoded = encode(self.tokenizer, prompt_text(question, context), options)
        while (over := len(encoded.prompt) + max(map(len, encoded.options)) - self.limit) > 0 and context:
            # Only the context is cut, from its end, where the less similar passages are.
            context = context[: min(len(context) - 1, int(len(context) * (1 - over / len(encoded.prompt))))]
            encoded = encode(self.tokenizer, prompt_text(question, context), options)
        return encoded


class RetrievalReader:
    """No language model: an option scores the cosine of question and option to the nearest found passage."""

    def __init__(self, embed: dict) -> None:
        self.embedder = load_embedder(**embed)

    def score(self, questions: list[dict], contexts: list[dict]) -> list[np.ndarray]:
        """See `Reader.score`."""
        asked = [f"{q['prompt']} {option}" for q in questions for option in options_of(q).values()]
        found = [embedded_text(p["title"], "", p["text"]) for context in contexts for p in context["passages"]]
        asked_vectors, found_vectors = iter(self.embedder.encode(asked)), iter(self.embedder.encode(found))
        scores = []
        for question, context in zip(questions, contexts, strict=True):
            options = np.stack([next(asked_vectors) for _ in options_of(question)])
            passages = np.stack([next(found_vectors) for _ in context["passages"]])
            scores.append(COSINE_SCALE * (options @ passages.T).max(axis=1))
        return scores


def prompt_text(question: dict, context: str) -> str:
    """Return what a causal model reads before an option."""
    given = f"Context: {context}\n\n" if context else ""
    return f"{given}{'Question' if question['is_question'] else 'Task'}: {question['prompt']}\nAnswer:"
