"""Batch rows of different lengths: padded if the model ignores padding, otherwise by equal length or one by one.

In some encoders padding changes the scores in spite of the mask, through convolutions, Fourier transforms, or pooled,
hashed or relative attention; also in some decoders. The name of a model does not tell, so each model is tested before
its first batch: it scores some rows padded, and each row alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch

from sciqa.core.errors import InputError
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.packing_check import clear_packing_check_errors, packing_check_copies, run_packing_check
from sciqa.models.scorer import EncodedForScorer, Scorer

#: Ways to batch rows, fastest first.
Layout = Literal["padded", "equal lengths", "single rows"]
INSTEAD = {
    "equal lengths": "so only rows of equal length are computed together",
    "single rows": "so each row is computed by itself, which takes longer",
}
#: Questions of the test: number of words in the context, the prompt and each option.
PROBE = ((0, 3, (1, 4)), (9, 5, (2, 1, 7)), (60, 8, (3, 1)))


class PaddedScorer(Scorer):
    """A scorer that pads rows if a test shows that padding changes no score."""

    def prove(self) -> BatchLayout:
        """See `Scorer.prove`.

        Scores are compared in float32, where they are equal except for rounding. If the weights are quantised, or a
        float32 copy does not fit in memory, they are compared in the model's own type, within its rounding error.
        """
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return _quickest(self, _probe(self), packing_check_copies(self))
        finally:
            self.batch_layout = None
            self.model.train(training)

    @property
    def calls_vary(self) -> bool:
        """See `Scorer.calls_vary`."""
        return self.layout != "padded"

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group rows, given by their lengths, into batches; return the row indices of each batch."""
        found: dict[int, list[int]] = {}
        for number, length in enumerate(lengths):
            key = {"padded": 0, "equal lengths": length, "single rows": number}[self.layout]
            found.setdefault(key, []).append(number)
        return list(found.values())

    def check_causal(self, question: EncodedForScorer) -> None:
        """Raise `InputError` if a decoder's predictions depend on later tokens; encoders need no check."""


def padded(rows: Sequence[list[int]], fill: int, width: int, side: str = "right") -> torch.Tensor:
    """Return rows as a tensor of shape (rows, width), padded with `fill` on one side."""
    each = [[fill] * (width - len(row)) for row in rows]
    pairs = zip(rows, each, strict=True)
    return torch.tensor([row + empty if side == "right" else empty + row for row, empty in pairs])


def _quickest(scorer: PaddedScorer, probe: list[EncodedForScorer], weights: dict | None) -> BatchLayout:
    name, exact = type(scorer.model).__name__, _alone(scorer, probe, weights)
    relative, absolute = (2e-5, 1e-4) if weights is not None else (0.02, 0.05)
    # Some models attend differently to long rows. Padding could make a short row long, so it is not tried for them.
    said = "attends otherwise to long rows than to short ones" if scorer.switching else ""
    for layout in get_args(Layout)[bool(said) :]:
        try:
            scores = _scores(scorer, probe, weights, layout)
        except Exception as error:  # any error means that the model does not support this layout
            said = said or f"{type(error).__name__} in padded rows"
            continue
        if np.allclose(scores, exact, relative, absolute):
            return BatchLayout(layout, f"{name}: {said}, {INSTEAD[layout]}" if said else None)
        said = said or f"padding changes its scores (by up to {np.abs(scores - exact).max():.2g})"
    raise InputError(f"{name}: scores the same rows otherwise every time; use another model")


def _alone(scorer: PaddedScorer, probe: list[EncodedForScorer], weights: dict | None) -> np.ndarray:
    """Return the scores of rows computed alone, the reference for all layouts."""
    name = type(scorer.model).__name__
    with clear_packing_check_errors(scorer):
        exact = _scores(scorer, probe, weights, "single rows")
        run_packing_check(scorer, weights, lambda: scorer.check_causal(probe[1]))
    if not np.isfinite(exact).all():
        raise InputError(f"{name}: its scores are not numbers; pass --precision float32, or weights that are whole")
    if np.ptp(exact) < 1e-6:  # MRA's attention gives only zeros without its CUDA kernel
        raise InputError(f"{name}: scores all texts alike; use another model, or weights that are whole")
    return exact


def _scores(
    scorer: PaddedScorer, questions: list[EncodedForScorer], weights: dict | None, layout: Layout
) -> np.ndarray:
    """Return the scores of all options in a layout, question by question."""
    scorer.batch_layout = BatchLayout(layout)
    return torch.cat(run_packing_check(scorer, weights, lambda: scorer(questions))).double().cpu().numpy()


def _probe(scorer: PaddedScorer) -> list[EncodedForScorer]:
    """Return test questions of different lengths, with random tokens except the tokenizer's special ones."""
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
        drawn, *others = [[token if token in special else int(rng.choice(usual)) for token in row] for row in rows]
        found.append(replace(encoded, prompt=drawn, options=others))
    return found
