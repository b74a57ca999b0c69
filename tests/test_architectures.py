"""Every architecture that transformers knows: scores are those of plain rows, or the model is refused.

`python tests/test_architectures.py` writes what the tests found into docs/architectures.md.
"""

import copy
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from architectures import CLASSES, CannotBuild, build, every, plain_scores, questions, texts, tokenizer

from sciqa.core.errors import InputError
from sciqa.models.causal import CausalScorer
from sciqa.models.load import SCORERS
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer, Scorer, score_options

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
#: Tokens of a batch: some hold one question, some several.
BUDGET = 900
#: One of each kind of computation; the others take minutes.
QUICK = [
    ("causal", "llama", ""),
    ("causal", "gemma2", "wide window"),
    ("causal", "gpt_oss", ""),
    ("causal", "phi3", "long positions"),
    ("causal", "lfm2", ""),
    ("causal", "mamba", ""),
    ("causal", "bloom", ""),
    ("causal", "bert", ""),
    ("causal", "llama4_text", ""),
    ("causal", "gemma4_assistant", ""),
    ("seq2seq", "t5", ""),
    ("seq2seq", "fsmt", ""),
    ("seq2seq", "switch_transformers", ""),
    ("seq2seq", "bigbird_pegasus", ""),
    ("seq2seq", "voxtral", ""),
    ("multiple-choice", "roberta", ""),
    ("multiple-choice", "xlnet", ""),
    ("multiple-choice", "fnet", ""),
]
SAID = {
    "packed": "packed rows",
    "cached prompt": "prompt cached",
    "rows": "plain rows",
    "single rows": "single rows",
    "padded": "padded rows",
    "equal lengths": "rows of equal length",
}


@dataclass(frozen=True)
class Outcome:
    """What became of a model: how it is computed, or why not."""

    verdict: str
    reason: str = ""


@pytest.mark.parametrize(
    ("kind", "model_type", "variant"),
    [pytest.param(*each, marks=() if each in QUICK else pytest.mark.slow, id=":".join(each)) for each in every()],
)
def test_scores_are_those_of_plain_rows_or_the_model_is_refused(kind, model_type, variant):
    outcome = examine(kind, model_type, variant)
    assert row(kind, model_type, variant, outcome) in PAGE.read_text(encoding="utf-8")


def examine(kind: str, model_type: str, variant: str) -> Outcome:
    """Score questions by every implementation of attention, and assert that the scores are those of plain rows."""
    found = {}
    for attention in (None, "eager"):
        try:
            model = build(kind, model_type, variant, attention)
        except CannotBuild as error:
            return Outcome("not built", str(error))
        used = model.config._attn_implementation
        if used not in found:
            found[used] = judge(kind, model)
    first, *others = found.values()
    if all(other == first for other in others):
        return first
    return Outcome("; ".join(f"{name}: {each.verdict}" for name, each in found.items()), first.reason)


def judge(kind: str, model: transformers.PreTrainedModel) -> Outcome:
    """Return how a model is computed, or why it is refused."""
    words = tokenizer(model)
    try:
        scorer = SCORERS[kind](copy.deepcopy(model), words, PromptFormat(normalise="none"))
        batch = ask(scorer)
        scores = score_options(scorer, batch, BUDGET)
    except InputError as error:
        return Outcome("refused", str(error))
    expected = [plain_scores(model, kind, question) for question in batch]
    for computed in (scores, together(scorer, batch)):
        for alone, each in zip(expected, computed, strict=True):
            np.testing.assert_allclose(each, alone, atol=1e-4, rtol=0)
    assert np.std(np.concatenate(expected)) > 1e-2  # else they would agree in whatever way they were computed
    beyond = ", beyond its window plain rows" if getattr(scorer, "exact_within", scorer.limit) < scorer.limit else ""
    return Outcome(SAID[scorer.layout] + beyond * (scorer.layout == "packed"), scorer.note or "")


def ask(scorer: Scorer) -> list[EncodedForScorer]:
    """Return questions of unlike lengths in tokens, some of them with a shared beginning."""
    if isinstance(scorer, CausalScorer):
        return questions(8)
    return [scorer.encode(*each) for each in texts(8)]


def together(scorer: Scorer, batch: list[EncodedForScorer]) -> Iterator[np.ndarray]:
    """Yield the scores of questions that are all in one batch, as training computes them."""
    with torch.enable_grad():
        return [scores.detach().numpy() for scores in scorer(batch)]


def test_every_architecture_is_in_the_table():
    written = PAGE.read_text(encoding="utf-8")
    assert [each for each in every() if f"| {name(*each[1:])} |" not in written.partition(f"## {each[0]}")[2]] == []
    assert f"transformers {transformers.__version__}" in written


def row(kind: str, model_type: str, variant: str, outcome: Outcome) -> str:
    """Return a model's row of the table."""
    reason = re.sub(r"^\w+: | \(by up to [^)]*\)", "", " ".join(outcome.reason.split()).replace("|", "/"))
    return f"| {name(model_type, variant)} | {CLASSES[kind][1][model_type]} | {outcome.verdict} | {reason[:240]} |"


def name(model_type: str, variant: str) -> str:
    return f"{model_type}, {variant}" if variant else model_type


ABOUT = """# Architectures

How each class that transformers {version} has for these models is computed, by the proof that the program makes when it
loads one. Every class was built small and with random weights, and its scores were compared with those of each option's
sequence by itself, in float32, to 1e-4; `tests/test_architectures.py` does it again, and wrote this page. What is
refused ends with exit code 2 before anything is computed. A model with other settings than these is proved when it is
loaded as well.
"""
LEGEND = {
    "causal": "*Packed rows* compute what options and questions share once; a *cached prompt* is computed once for its "
    "options; *plain rows* hold the prompt with each option, and *single rows* are not computed beside others.",
    "seq2seq": "The encoder reads a prompt once. *Padded rows* are computed together whatever their length.",
    "multiple-choice": "*Padded rows* are computed together whatever their length.",
}


def write_page() -> None:
    """Examine every architecture, and write the table."""
    parts, kinds = [ABOUT.format(version=transformers.__version__)], []
    for each in every():
        if each[0] not in kinds:
            kinds.append(each[0])
            parts.append(
                f"\n## {each[0]}\n\n{LEGEND[each[0]]}\n\n| model | class | computed as | why |\n|---|---|---|---|\n"
            )
        try:
            outcome = examine(*each)
        except Exception as error:
            outcome = Outcome("WRONG", f"{type(error).__name__}: {error}")
        parts.append(row(*each, outcome) + "\n")
        print(parts[-1], end="", file=sys.stderr, flush=True)
    PAGE.write_text("".join(parts), encoding="utf-8")


if __name__ == "__main__":
    write_page()
