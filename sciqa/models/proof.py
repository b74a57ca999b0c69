"""The proof at load: that a causal model scores packed rows as it scores each option's sequence alone.

A packed row needs a model whose attention keeps to a mask of any shape. Recurrent and hybrid models carry a state from
each token to the next, some implementations of attention read a mask in another way, and some models crash. Which do
cannot be told from a name, so the model itself is asked, once on each machine: a small batch is scored in the quickest
layout, and each option's sequence alone, as transformers computes it. Where the two differ, the next layout is tried.
"""

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import psutil
import torch
import transformers

from sciqa.core.cache import cached_folder
from sciqa.core.errors import InputError
from sciqa.core.tables import fingerprint
from sciqa.models.scorer import Encoded, Scorer
from sciqa.models.verdict import Verdict

#: How sequences are laid out, the quickest first: what they share computed once; the prompt computed once and kept in
#: the model's cache; a row for each option in padded batches; each row a batch of its own.
Layout = Literal["packed", "cached prompt", "rows", "single rows"]
#: Changes with what is proved, or how.
PROOF = 2
#: Tokens of the prompts of a probe, and of their options. The last two prompts begin with as many equal tokens as
#: packing shares.
PROMPTS, OPTIONS, SHARED = (5, 70, 77), ((1, 4, 2), (3, 1), (2, 2, 5, 1)), 66
#: Tokens that are put behind a sequence to see that its scores do not change.
BEHIND = 3
INSTEAD = {
    "cached prompt": "so its prompts are computed once and kept in its own cache, one question at a time",
    "rows": "so each option is computed with the whole prompt, which takes longer",
    "single rows": "so each option is computed with the whole prompt and without others beside it, which takes longer",
}


def prove(scorer: Scorer) -> Verdict:
    """Return the quickest layout in which a model scores a probe as it scores each option's sequence alone.

    Scores are compared in float32, in which the two are equal but for rounding; where there is no room for a copy of
    the weights, or they are quantised, in the model's own type, within what rounding makes.

    Raises:
        InputError: the model is not causal, or gives scores that are not numbers.
    """
    name = type(scorer.model).__name__
    if scorer.switching:
        raise InputError(
            f"{name}: looks ahead in long sequences; set attention_type to original_full in its config.json"
        )
    training = scorer.model.training
    scorer.model.eval()
    try:
        with torch.no_grad():
            probe, weights = _probe(scorer), float32_copies(scorer)
            with clear_errors(scorer):
                exact, rounding = _alone(scorer, probe, weights)
            if not np.isfinite(exact).all():
                raise InputError(
                    f"{name}: its scores are not numbers in {_dtype(scorer)}; pass --precision float32 or bfloat16, "
                    "or weights that are whole"
                )
            allowed = 1e-4 + 2e-5 * np.abs(exact) if weights is not None else 0.05 + 4 * rounding
            if weights is not None and (rounding > allowed).any():
                raise InputError(
                    f"{name}: what it predicts depends on the tokens that follow, so it is no causal language model; "
                    "pass a causal model, or fine-tune this one as a multiple-choice reader"
                )
            return _quickest(scorer, probe, weights, exact, allowed)
    finally:
        scorer.verdict = None
        scorer.model.train(training)


def stored_proof(scorer: Scorer, revision: str) -> Verdict:
    """Return what `Scorer.prove` finds, from this machine's cache where the same model was proved here before.

    Args:
        scorer: the model.
        revision: tells its files from all others.
    """
    about = [
        *(PROOF, revision, type(scorer.model).__name__, _dtype(scorer), getattr(scorer.model, "is_quantized", False)),
        *(_device_name(scorer), scorer.model.config._attn_implementation, torch.__version__, transformers.__version__),
    ]

    def build(folder: Path) -> None:
        (folder / "verdict.json").write_text(json.dumps(asdict(scorer.prove())), encoding="utf-8")

    folder = cached_folder(f"proof-{fingerprint(about)}", build)
    return Verdict(**json.loads((folder / "verdict.json").read_text(encoding="utf-8")))


def _quickest(
    scorer: Scorer, probe: list[Encoded], weights: dict | None, exact: np.ndarray, allowed: np.ndarray
) -> Verdict:
    said = ""
    for layout in get_args(Layout):
        scorer.verdict = Verdict(layout)
        try:
            scores = run_with(scorer, weights, lambda: scorer(probe))
            difference = np.abs(np.concatenate([score.double().cpu().numpy() for score in scores]) - exact)
        except Exception as error:  # whatever a model raises, it does not take this layout
            said = said or f"{type(error).__name__} in packed rows"
            continue
        if (difference <= allowed).all():
            note = f"{type(scorer.model).__name__}: {said}, {INSTEAD[layout]}" if said else None
            return Verdict(layout, note)
        said = said or f"packed rows score otherwise than plain ones (by up to {np.nanmax(difference):.2g})"
    raise InputError(
        f"{type(scorer.model).__name__}: scores the same sequence differently each time; use another model"
    )


@contextmanager
def clear_errors(scorer: Scorer) -> Iterator[None]:
    """Make an `InputError` of whatever a model raises that computes rows by themselves, as transformers does."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise InputError(
            f"{type(scorer.model).__name__}: cannot score options ({reason}); complete its configuration, or use "
            "another model"
        ) from error


def run_with(scorer: Scorer, weights: dict | None, function: Callable[[], object]) -> object:
    """Call a function with other weights in the scorer's place, where there are any."""
    if not weights:
        return function()
    return torch.func.functional_call(_Call(scorer, function), weights)


class _Call(torch.nn.Module):
    """A function of a scorer as a module that holds it, which `functional_call` wants."""

    def __init__(self, scorer: Scorer, function: Callable[[], object]) -> None:
        super().__init__()
        self.scorer, self.function = scorer, function

    def forward(self) -> object:
        return self.function()


def _probe(scorer: Scorer) -> list[Encoded]:
    """Return three questions of random tokens within what the model reads, two of them with a shared beginning."""
    config, rng = scorer.model.config.get_text_config(), np.random.default_rng(0)
    marks = set()
    for mark in ("pad", "bos", "eos", "decoder_start"):
        tokens = getattr(config, f"{mark}_token_id", None)
        marks |= set(tokens if isinstance(tokens, list | tuple) else [tokens])
    usual = [token for token in range(min(8, config.vocab_size // 2), config.vocab_size) if token not in marks]
    longest = (
        min(scorer.limit, scorer.exact_within, scorer.rope.length or scorer.limit) - max(map(max, OPTIONS)) - BEHIND
    )

    def draw(length: int) -> list[int]:
        return rng.choice(usual, length).tolist()

    shared = draw(min(SHARED, max(1, longest - 1)))
    prompts = [draw(min(length, max(1, longest))) for length in PROMPTS]
    prompts[1:] = [shared + prompt[len(shared) :] for prompt in prompts[1:]]
    options = [[draw(length) for length in lengths] for lengths in OPTIONS]
    return [Encoded(*pair, [1.0] * len(pair[1])) for pair in zip(prompts, options, strict=True)]


def float32_copies(scorer: Scorer) -> dict[str, torch.Tensor] | None:
    """Return copies of weights and buffers in float32, where the model is plain and there is room for them."""
    named = {f"scorer.{name}": tensor for name, tensor in [*scorer.named_parameters(), *scorer.named_buffers()]}
    if getattr(scorer.model, "is_quantized", False):
        return None
    if all(tensor.dtype in (torch.float32, torch.float64) for tensor in named.values() if tensor.is_floating_point()):
        return {}
    free = (
        torch.cuda.mem_get_info(scorer.device)[0] if scorer.device.type == "cuda" else psutil.virtual_memory().available
    )
    if 4 * sum(tensor.numel() for tensor in named.values()) > free / 2:
        return None
    return {name: tensor.float() for name, tensor in named.items() if tensor.is_floating_point()}


def _alone(scorer: Scorer, probe: list[Encoded], weights: dict | None) -> tuple[np.ndarray, np.ndarray]:
    """Return each option's log-likelihood by its sequence alone, and by how much tokens behind it would change that.

    Both of shape (options of all questions,); what they change is seen in the first option of each question. In exact
    numbers a causal model's would not change.
    """
    behind = probe[1].prompt[:BEHIND]
    alone, changes = [], []
    for question in probe:
        scores = [_sequence_score(scorer, weights, question, option, []) for option in question.options]
        followed = _sequence_score(scorer, weights, question, question.options[0], behind)
        alone += scores
        changes += [abs(followed - scores[0])] * len(scores)
    return np.array(alone), np.array(changes)


def _sequence_score(
    scorer: Scorer, weights: dict | None, question: Encoded, option: list[int], behind: list[int]
) -> float:
    """Return an option's log-likelihood by one sequence, which other tokens may follow."""
    inputs = torch.tensor([question.prompt + option + behind], device=scorer.device)
    logits = run_with(scorer, weights, lambda: scorer.call(input_ids=inputs)).logits[0].float()
    first = len(question.prompt) - 1
    return logits[first : first + len(option)].log_softmax(-1)[range(len(option)), option].sum().item()


def _dtype(scorer: Scorer) -> str:
    return str(next(scorer.model.parameters()).dtype).removeprefix("torch.")


def _device_name(scorer: Scorer) -> str:
    if scorer.device.type == "cuda":
        return torch.cuda.get_device_name(scorer.device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
