"""Questions a second of the likelihood reader beside lm-evaluation-harness's `hf` model, in one process.

Both score the same prompts (a context of about 350 tokens and a question) and five options each with the packaged
SmolLM2-135M-Instruct, in the type that the hardware is quickest in and on the same threads. lm-evaluation-harness
runs every option as a sequence of its own, in batches of 8; this project computes what sequences begin with once: the
prompt for all options, and a context for all questions on it. Measured with a context for each question, and with one
for every eight; and with five fixed examples of about 150 tokens before every question (few-shot), a context for each,
and four options, for which lm-evaluation-harness is run in several batch sizes. Runs in turn, three rounds; needs
`pip install -e '.[dev]'` and demo.txt.
Usage: python benchmarks/scoring.py [QUESTIONS]
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
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_scorer
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import score_options

ROUNDS = 3
CONTEXT_TOKENS = 350
SHOTS, SHOT_TOKENS = 5, 150
#: Batch sizes of lm-evaluation-harness after examples.
BATCH_SIZES = (1, 4, 16)


def build(
    tokenizer: object, questions: int, shared: int, count: int = 5, shots: int = 0
) -> list[tuple[str, list[str]]]:
    """Return prompts of demo articles with `count` options: the starts of other articles.

    Args:
        tokenizer: tokenizer of the model.
        questions: number of questions.
        shared: number of questions on each context.
        count: number of options.
        shots: number of examples before every question.
    """
    articles = [article["text"] for article in read_articles("demo")]
    built, examples = [], ""
    for number in range(shots):
        text = " ".join(articles[9000 + 5 * number : 9005 + 5 * number])
        examples += tokenizer.decode(tokenizer(text)["input_ids"][: SHOT_TOKENS - 10])
        examples += f"\nAnswer: {articles[8000 + number][:30]}\n\n"
    for number in range(questions):
        first = number // shared * 7
        context = " ".join(articles[first : first + 7])
        context = tokenizer.decode(tokenizer(context)["input_ids"][:CONTEXT_TOKENS])
        options = [" " + articles[5000 + number * 5 + option][:90] for option in range(count)]
        built.append((f"{examples}Context: {context}\n\nQuestion: Which of these is said, {number}?\nAnswer:", options))
    return built


def measure(scorer: CausalScorer, harness: HFLM, questions: list[tuple[str, list[str]]]) -> None:
    """Print both speeds, their ratio, and how far scores and rankings agree."""
    requests = [
        Instance("loglikelihood", {}, (prompt, option), number)
        for number, (prompt, options) in enumerate(questions)
        for option in options
    ]
    seconds: dict[str, list[float]] = {"sciqa": [], "lm-evaluation-harness": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        encoded = [scorer.encode_text(*question) for question in questions]
        ours = np.array(score_options(scorer, encoded))
        seconds["sciqa"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            flat = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        theirs = np.array(flat).reshape(ours.shape)
        seconds["lm-evaluation-harness"].append(time.perf_counter() - started)
    for name, times in seconds.items():
        rates = sorted(len(questions) / value for value in times)
        print(f"  {name:<22} {statistics.median(rates):6.2f} questions/s (rounds {rates[0]:.2f} to {rates[-1]:.2f})")
    pairs = zip(seconds["lm-evaluation-harness"], seconds["sciqa"], strict=True)
    ratios = sorted(theirs / ours for theirs, ours in pairs)
    print(f"  ratio {statistics.median(ratios):.2f} (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")
    same = (np.argsort(-ours, kind="stable") == np.argsort(-theirs, kind="stable")).all(axis=1).mean()
    print(f"  largest difference of scores {np.abs(ours - theirs).max():.4f} (of about {np.abs(theirs).mean():.0f})")
    print(f"  same ranking for {same:.1%}", flush=True)


def main() -> None:
    """Measure in the quickest type with contexts for one and for eight questions, and compare scores in float32."""
    logging.disable(logging.WARNING)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    for precision, shared in (("auto", 1), ("auto", 8), ("float32", 8)):
        scorer = load_scorer("SmolLM2-135M-Instruct", style=PromptFormat(normalise="none"), precision=precision)
        with contextlib.redirect_stderr(io.StringIO()):
            harness = HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=8)
        questions = build(scorer.tokenizer, number, shared)
        say(scorer, questions, f"{shared} to a context")
        measure(scorer, harness, questions)
    for precision in ("auto", "float32"):
        scorer = load_scorer("SmolLM2-135M-Instruct", style=PromptFormat(normalise="none"), precision=precision)
        questions = build(scorer.tokenizer, number, 1, 4, SHOTS)
        for batch_size in BATCH_SIZES:
            with contextlib.redirect_stderr(io.StringIO()):
                harness = HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=batch_size)
            say(scorer, questions, f"{SHOTS} examples, batches of {batch_size} in lm-evaluation-harness")
            measure(scorer, harness, questions)


def say(scorer: CausalScorer, questions: list[tuple[str, list[str]]], how: str) -> None:
    """Print what is measured."""
    tokens = statistics.mean(len(scorer.encode_text(*question).prompt) for question in questions)
    about = f"{len(questions)} questions, {how}, prompts of {tokens:.0f} tokens, {len(questions[0][1])} options"
    print(f"{about}, {scorer.model.dtype}, {scorer.device}")


if __name__ == "__main__":
    main()
