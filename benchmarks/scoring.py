"""Questions a second of the likelihood reader beside lm-evaluation-harness's `hf` model, in one process.

Both score the same prompts (a context of about 350 tokens and a question) and five options each with the packaged
SmolLM2-135M-Instruct, in the type that the hardware is quickest in and on the same threads. lm-evaluation-harness
runs every option as a sequence of its own, in batches of 8; this project computes the prompt once. Runs in turn,
three rounds; needs `pip install -e '.[dev]'` and demo.txt. Usage: python benchmarks/scoring.py [QUESTIONS]
"""

import contextlib
import io
import logging
import statistics
import sys
import time

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from sciqa.corpus.articles import read_articles
from sciqa.models.format import Format
from sciqa.models.load import load_scorer
from sciqa.models.scorer import score_options

ROUNDS = 3
CONTEXT_TOKENS = 350


def build(tokenizer: object, questions: int) -> list[tuple[str, list[str]]]:
    """Return prompts of demo articles with five options each: the start of the next articles' texts."""
    articles = [article["text"] for article in read_articles("demo")]
    built = []
    for number in range(questions):
        context = " ".join(articles[number * 7 : number * 7 + 7])
        context = tokenizer.decode(tokenizer(context)["input_ids"][:CONTEXT_TOKENS])
        options = [" " + articles[5000 + number * 5 + option][:90] for option in range(5)]
        built.append((f"Context: {context}\n\nQuestion: Which of these is said?\nAnswer:", options))
    return built


def main() -> None:
    """Print both speeds, their ratio and the largest difference between the scores."""
    logging.disable(logging.WARNING)
    scorer = load_scorer("SmolLM2-135M-Instruct", style=Format(normalise="none"))
    model, tokenizer = scorer.model, scorer.tokenizer
    questions = build(tokenizer, int(sys.argv[1]) if len(sys.argv) > 1 else 16)
    with contextlib.redirect_stderr(io.StringIO()):
        harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    requests = [
        Instance("loglikelihood", {}, (prompt, option), number)
        for number, (prompt, options) in enumerate(questions)
        for option in options
    ]
    seconds: dict[str, list[float]] = {"sciqa": [], "lm-evaluation-harness": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        encoded = [scorer.encode_text(*question) for question in questions]
        ours = np.concatenate(score_options(scorer, encoded))
        seconds["sciqa"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            theirs = np.array([score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)])
        seconds["lm-evaluation-harness"].append(time.perf_counter() - started)
    tokens = statistics.mean(len(question.prompt) for question in encoded)
    print(f"{len(questions)} questions, prompts of {tokens:.0f} tokens, 5 options, {model.dtype}, {model.device}")
    for name, times in seconds.items():
        rates = sorted(len(questions) / value for value in times)
        print(f"{name:<22} {statistics.median(rates):6.2f} questions/s (rounds {rates[0]:.2f} to {rates[-1]:.2f})")
    pairs = zip(seconds["lm-evaluation-harness"], seconds["sciqa"], strict=True)
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    print(f"ratio {statistics.median(ratios):.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"largest difference of scores {np.abs(ours - theirs).max():.3f} (of about {np.abs(theirs).mean():.0f})")


if __name__ == "__main__":
    main()
