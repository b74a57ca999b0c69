"""Evidence: fit the weights of `sciqa.retrieval.evidence` to the annotated sentences, and measure them.

    python benchmarks/evidence.py

Prints how often the sentence that is found for the right option is an annotated one, beside single features and chance,
for each split of the packaged exam, given the gold article; then the fitted weights.
"""

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import logsumexp

from sciqa.corpus.articles import read_articles
from sciqa.corpus.chunking import split_sentences
from sciqa.exam import read_exam
from sciqa.retrieval.evidence import WEIGHTS, evidence_shared_words
from sciqa.retrieval.load_embedder import load_embedder

NAMES = ("cosine to option", "cosine to prompt", "words of option", "words of prompt")


def read_split(split: str, articles: dict[str, str], embedder: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each question the features of its article's sentences, and which of them are annotated."""
    found = []
    for row in read_exam(split).to_pylist():
        sentences = [text.strip() for text in split_sentences(articles[row["title"]])]
        option = row[row["answer"]]
        vectors = embedder.encode([option, row["prompt"], *sentences])
        gold = row["evidence"].split(" … ")
        right = np.array([any(text in each or each in text for each in gold) for text in sentences])
        if right.any():
            words = evidence_shared_words(row["prompt"], option, sentences)
            found.append((np.hstack([vectors[2:] @ vectors[:2].T, words]), right))
    return found


def accuracy(split: list[tuple[np.ndarray, np.ndarray]], weights: np.ndarray) -> float:
    """Return the share of questions whose best sentence is annotated."""
    return float(np.mean([right[np.argmax(each @ weights)] for each, right in split]))


def loss(weights: np.ndarray, split: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mean negative log-likelihood of the annotated sentences, with a small penalty on the weights."""
    parts = [logsumexp(each @ weights) - logsumexp((each @ weights)[right]) for each, right in split]
    return float(np.mean(parts) + 1e-3 * (weights**2).sum())


def main() -> None:
    """Fit on `train` and print a table of all splits."""
    articles = {article["title"]: article["text"] for article in read_articles("demo")}
    embedder = load_embedder("all-MiniLM-L6-v2", 2)
    splits = {name: read_split(name, articles, embedder) for name in ("train", "validation", "test")}
    fitted = minimize(loss, np.zeros(len(NAMES)), args=(splits["train"],)).x
    table = Table(title="Right option: share of questions whose evidence is an annotated sentence")
    for column in ("weights", *splits):
        table.add_column(column, justify="left" if column == "weights" else "right")
    rows = {"fitted now": fitted, "of the program": WEIGHTS}
    rows |= {name: np.eye(len(NAMES))[at] for at, name in enumerate(NAMES)}
    for name, weights in rows.items():
        table.add_row(name, *(f"{accuracy(split, weights):.3f}" for split in splits.values()))
    table.add_row("by chance", *(f"{np.mean([right.mean() for _, right in s]):.3f}" for s in splits.values()))
    console = Console(width=120)
    console.print(table)
    console.print("fitted weights:", dict(zip(NAMES, fitted.round(2).tolist(), strict=True)))


if __name__ == "__main__":
    main()
