"""Rows of unlike length: padded into one batch where a model ignores padding, else batches of rows of equal length.

Convolutions, Fourier transforms, and pooled, hashed or relative attention let padding into the scores of some encoders
in spite of the mask; so do some decoders. Which ones cannot be told from a name, so the model itself is asked, before
its first batch: some rows are scored padded, and each by itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch

from sciqa.core.errors import InputError
from sciqa.models.proof import clear_errors, float32_copies, run_with
from sciqa.models.scorer import Encoded, Scorer
from sciqa.models.verdict import Verdict

#: How rows are computed together, the quickest first.
Layout = Literal["padded", "equal lengths", "single rows"]
INSTEAD = {
    "equal lengths": "so only rows of equal length are computed together",
    "single rows": "so each row is computed by itself, which takes longer",
}
#: The questions of the proof: words of the context, of the prompt and of each option.
PROBE = ((0, 3, (1, 4)), (9, 5, (2, 1, 7)), (60, 8, (3, 1)))


class PaddedScorer(Scorer):
    """A scorer whose rows are padded where the proof finds that this changes no score."""

    def prove(self) -> Verdict:
        """See `Scorer.prove`."""
        return prove(self)

    @property
    def calls_vary(self) -> bool:
        """See `Scorer.calls_vary`."""
        return self.layout != "padded"

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the numbers of the rows, of these lengths, that are computed together."""
        found: dict[int, list[int]] = {}
        for number, length in enumerate(lengths):
            key = {"padded": 0, "equal lengths": length, "single rows": number}[self.layout]
            found.setdefault(key, []).append(number)
        return list(found.values())

    def check_causal(self, question: Encoded) -> None:
        """Raise `InputError` where the score of a token depends on the tokens behind it, though it should not."""


def padded(rows: Sequence[list[int]], fill: int, width: int, side: str = "right") -> torch.Tensor:
    """Return rows of a width as a tensor of shape (rows, tokens), filled up on one side."""
    each = [[fill] * (width - len(row)) for row in rows]
    pairs = zip(rows, each, strict=True)
    return torch.tensor([row + empty if side == "right" else empty + row for row, empty in pairs])


def prove(scorer: PaddedScorer) -> Verdict:
    """Return the quickest layout in which a model scores a probe as it scores each row of it by itself.

    Scores are compared in float32, in which the two are equal but for rounding; where there is no room for a copy of
    the weights, or they are quantised, in the model's own type, within what rounding makes.

    Raises:
        InputError: the model cannot score options, scores them with what are no numbers, or otherwise every time.
    """
    training = scorer.model.training
    scorer.model.eval()
    try:
        with torch.no_grad():
            return _quickest(scorer, _probe(scorer), float32_copies(scorer))
    finally:
        scorer.verdict = None
        scorer.model.train(training)


def _quickest(scorer: PaddedScorer, probe: list[Encoded], weights: dict | None) -> Verdict:
    name, exact = type(scorer.model).__name__, _alone(scorer, probe, weights)
    relative, absolute = (2e-5, 1e-4) if weights is not None else (0.02, 0.05)
    # Whether a row is a long one, to which some models attend otherwise, must not depend on the others.
    said = "attends otherwise to long rows than to short ones" if scorer.switching else ""
    for layout in get_args(Layout)[bool(said) :]:
        try:
            scores = _scores(scorer, probe, weights, layout)
        except Exception as error:  # whatever a model raises, it does not take this layout
            said = said or f"{type(error).__name__} in padded rows"
            continue
        if np.allclose(scores, exact, relative, absolute):
            return Verdict(layout, f"{name}: {said}, {INSTEAD[layout]}" if said else None)
        said = said or f"padding changes its scores (by up to {np.abs(scores - exact).max():.2g})"
    raise InputError(f"{name}: scores the same rows otherwise every time; use another model")


def _alone(scorer: PaddedScorer, probe: list[Encoded], weights: dict | None) -> np.ndarray:
    """Return the score of each row by itself, by which the others are judged."""
    name = type(scorer.model).__name__
    with clear_errors(scorer):
        exact = _scores(scorer, probe, weights, "single rows")
        run_with(scorer, weights, lambda: scorer.check_causal(probe[1]))
    if not np.isfinite(exact).all():
        raise InputError(f"{name}: its scores are not numbers; pass --precision float32, or weights that are whole")
    if np.ptp(exact) < 1e-6:  # MRA's attention is nothing but zeros where its CUDA kernel is missing
        raise InputError(f"{name}: scores all texts alike; use another model, or weights that are whole")
    return exact


def _scores(scorer: PaddedScorer, questions: list[Encoded], weights: dict | None, layout: Layout) -> np.ndarray:
    """Return the scores of all options, one question after the other."""
    scorer.verdict = Verdict(layout)
    return torch.cat(run_with(scorer, weights, lambda: scorer(questions))).double().cpu().numpy()


def _probe(scorer: PaddedScorer) -> list[Encoded]:
    """Return questions of unlike lengths, whose tokens are random ones but for those that the tokenizer puts in."""
    rng = np.random.default_rng(0)
    special = set(scorer.tokenizer.all_special_ids) - {scorer.tokenizer.unk_token_id}
    known = min(len(scorer.tokenizer), getattr(scorer.model.config.get_text_config(), "vocab_size", None) or 1 << 30)
    usual = [token for token in range(min(known, 20_000)) if token not in special]
    found = []
    for context, prompt, options in PROBE:
        texts = [" ".join(["water"] * count) for count in (context, prompt, *options)]
        question = {"id": "probe", "is_question": True, "prompt": texts[1]} | dict(zip("ABC", texts[2:], strict=False))
        encoded = scorer.encode(question, texts[0])
        rows = [encoded.prompt, *encoded.options]
        prompt, *options = [[token if token in special else int(rng.choice(usual)) for token in row] for row in rows]
        found.append(replace(encoded, prompt=prompt, options=options))
    return found
