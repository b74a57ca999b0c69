"""Test at load time whether a causal model scores packed rows as it scores each option's sequence alone.

Packed rows need a model whose attention obeys a mask of any shape. Recurrent and hybrid models carry a state from each
token to the next, some attention implementations read masks differently, and some models crash. The name of a model
does not tell, so each model is tested once per machine: it scores a small batch in the fastest layout, and each
option's sequence alone, as transformers computes it. If the two differ, the next layout is tried.
"""

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import numpy as np
import psutil
import torch
import transformers
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sciqa.core.cache import cache_root, cached_folder
from sciqa.core.errors import InputError
from sciqa.core.hashes import fingerprint
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.scorer import EncodedForScorer, Scorer
from sciqa.models.soft_prompt import about_soft_prompt
from sciqa.models.weights import has_sharded_weights

Result = TypeVar("Result")
#: Ways to lay out sequences, fastest first: shared tokens computed once; the prompt computed once and kept in the
#: model's cache; one row per option in padded batches; each row a batch of its own.
Layout = Literal["packed", "cached prompt", "rows", "single rows"]
#: Version of the test, part of the cache key; raise it when the test changes.
PROOF = 2
#: Lengths in tokens of the test prompts, of their options, and of the prefix of the last two prompts, which is long
#: enough for packing to share it.
PROMPTS, OPTIONS, SHARED = (5, 70, 77), ((1, 4, 2), (3, 1), (2, 2, 5, 1)), 66
#: Number of tokens appended to a sequence to check that its scores do not change.
BEHIND = 3
#: Functions of layers whose arguments must all have the same type.
ONE_TYPE = {functional.linear, functional.embedding, functional.conv1d, functional.layer_norm, functional.rms_norm}
ONE_TYPE |= {functional.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.addmm, torch.Tensor.matmul}
ONE_TYPE |= {torch.Tensor.__matmul__}
INSTEAD = {
    "cached prompt": "so its prompts are computed once and kept in its own cache, one question at a time",
    "rows": "so each option is computed with the whole prompt, which takes longer",
    "single rows": "so each option is computed with the whole prompt and without others beside it, which takes longer",
}


class PackingCheckedScorer(Scorer):
    """A scorer with what its proof needs besides."""

    @property
    def longest_exact(self) -> int:
        """Length of the longest sequence that is computed like shorter ones, in tokens."""
        raise NotImplementedError

    def call(self, **inputs: object) -> Any:  # noqa: ANN401 (each model has an output class of its own)
        """Call the model with inputs that need no further ones."""
        raise NotImplementedError


def packing_check_layout(scorer: PackingCheckedScorer) -> BatchLayout:
    """Return the fastest layout in which a model scores test questions as it scores each option's sequence alone.

    Scores are compared in float32, where they are equal except for rounding, also those of layers in 4 bits. If the
    weights are quantised in another way, or a float32 copy does not fit in memory, they are compared in the model's own
    type, within its rounding error; that bound holds for sharded weights too, which are converted one by one.

    Raises:
        InputError: the model is not causal, or its scores are not numbers or differ every time.
    """
    name = type(scorer.model).__name__
    if scorer.switching:
        raise InputError(
            f"{name}: looks ahead in long sequences; set attention_type to original_full in its config.json"
        )
    training = scorer.model.training
    scorer.model.eval()
    try:
        # There are no copies of a sharded model's weights: each is converted when it is used.
        in_float32 = _InFloat32() if has_sharded_weights(scorer) else nullcontext()
        with torch.no_grad(), _four_bits_in_float32(scorer.model), in_float32:
            probe, weights = _probe(scorer), packing_check_copies(scorer)
            with clear_packing_check_errors(scorer):
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
        scorer.batch_layout = None
        scorer.model.train(training)


def stored_packing_check(
    scorer: Scorer, revision: str, exchange: Callable[[BatchLayout | None], list] | None = None
) -> BatchLayout:
    """Return the result of `Scorer.prove`, from this machine's cache if the same model was tested before.

    Args:
        scorer: the model.
        revision: identifies its files.
        exchange: returns what all ranks pass to it, in the same order everywhere, if each holds a share of the model;
            then all test it together, unless all know the result of the whole model.
    """
    about = [
        *(PROOF, revision, type(scorer.model).__name__, _dtype(scorer), getattr(scorer.model, "is_quantized", False)),
        *["4 bits in float32"] * bool(_four_bit_layers(scorer.model)),
        *about_soft_prompt(scorer.model),
        *(_device_name(scorer), scorer.model.config._attn_implementation, torch.__version__, transformers.__version__),
    ]
    name = f"proof-{fingerprint(about)}"
    if exchange:  # what computes the shares in float32 may be less exact than copies, so its result is not kept
        known = exchange(_read_layout(cache_root() / name))
        return known[0] if all(known) else exchange(scorer.prove())[0]

    def build(folder: Path) -> None:
        (folder / "verdict.json").write_text(json.dumps(asdict(scorer.prove())), encoding="utf-8")

    return cast("BatchLayout", _read_layout(cached_folder(name, build)))


def _read_layout(folder: Path) -> BatchLayout | None:
    if not folder.exists():
        return None
    return BatchLayout(**json.loads((folder / "verdict.json").read_text(encoding="utf-8")))


def _quickest(
    scorer: Scorer, probe: list[EncodedForScorer], weights: dict | None, exact: np.ndarray, allowed: np.ndarray
) -> BatchLayout:
    said = ""
    for layout in get_args(Layout):
        scorer.batch_layout = BatchLayout(layout)
        try:
            scores = run_packing_check(scorer, weights, lambda: scorer(probe))
            difference = np.abs(np.concatenate([score.double().cpu().numpy() for score in scores]) - exact)
        except Exception as error:  # any error means that the model does not support this layout
            said = said or f"{type(error).__name__} in packed rows"
            continue
        if (difference <= allowed).all():
            note = f"{type(scorer.model).__name__}: {said}, {INSTEAD[layout]}" if said else None
            return BatchLayout(layout, note)
        said = said or f"packed rows score otherwise than plain ones (by up to {np.nanmax(difference):.2g})"
    raise InputError(
        f"{type(scorer.model).__name__}: scores the same sequence differently each time; use another model"
    )


@contextmanager
def clear_packing_check_errors(scorer: Scorer) -> Iterator[None]:
    """Turn any error of a model that computes single rows, as transformers does, into an `InputError`."""
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


def run_packing_check(scorer: Scorer, weights: dict | None, function: Callable[[], Result]) -> Result:
    """Call a function while other weights, if any, replace the scorer's own."""
    if not weights:
        return function()
    return torch.func.functional_call(_Call(scorer, function), weights, tie_weights=False)  # each name is given


class _Call(torch.nn.Module):
    """Module that wraps a function of a scorer, as `functional_call` requires."""

    def __init__(self, scorer: Scorer, function: Callable[[], object]) -> None:
        super().__init__()
        self.scorer, self.function = scorer, function

    def forward(self) -> object:
        return self.function()


def _probe(scorer: PackingCheckedScorer) -> list[EncodedForScorer]:
    """Return three questions of random tokens that fit the model; two of them share a prefix."""
    config, rng = scorer.model.config.get_text_config(), np.random.default_rng(0)
    marks = set()
    for mark in ("pad", "bos", "eos", "decoder_start"):
        tokens = getattr(config, f"{mark}_token_id", None)
        marks |= set(tokens if isinstance(tokens, list | tuple) else [tokens])
    usual = [token for token in range(min(8, config.vocab_size // 2), config.vocab_size) if token not in marks]
    longest = scorer.longest_exact - max(map(max, OPTIONS)) - BEHIND

    def draw(length: int) -> list[int]:
        return rng.choice(usual, length).tolist()

    shared = draw(min(SHARED, max(1, longest - 1)))
    prompts = [draw(min(length, max(1, longest))) for length in PROMPTS]
    prompts[1:] = [shared + prompt[len(shared) :] for prompt in prompts[1:]]
    options = [[draw(length) for length in lengths] for lengths in OPTIONS]
    return [EncodedForScorer(*pair, [1.0] * len(pair[1])) for pair in zip(prompts, options, strict=True)]


def packing_check_copies(scorer: Scorer) -> dict[str, torch.Tensor] | None:
    """Return float32 copies of weights and buffers, but for those in 4 bits, which their layers convert.

    The result is {} if no copy is needed, and None if weights are sharded, quantised in another way, or too large for
    memory.
    """
    layers = _four_bit_layers(scorer.model)
    if has_sharded_weights(scorer) or (getattr(scorer.model, "is_quantized", False) and not layers):
        return None
    in_4_bits = {id(layer.weight) for layer in layers}
    # Each module once, since peft names the embedding twice; a tensor that several modules share has a name in each.
    held = [
        (".".join(filter(None, ("scorer", path, name))), tensor)
        for path, module in scorer.named_modules()
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if id(tensor) not in in_4_bits and tensor.is_floating_point()
    ]
    tensors = {id(tensor): tensor for _, tensor in held}
    if all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors.values()):
        return {}
    free = (
        torch.cuda.mem_get_info(scorer.device)[0] if scorer.device.type == "cuda" else psutil.virtual_memory().available
    )
    if 4 * sum(tensor.numel() for tensor in tensors.values()) > free / 2:
        return None
    copies = {number: tensor.float() for number, tensor in tensors.items()}
    return {name: copies[id(tensor)] for name, tensor in held}


def _four_bit_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers that hold their weights in 4 bits (bitsandbytes); none if one is packed for a CPU's kernel."""
    layers = [module for module in model.modules() if hasattr(getattr(module, "weight", None), "quant_state")]
    packed = (getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)  # type: ignore[union-attr]
    return [] if any(packed) else layers


@contextmanager
def _four_bits_in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Let layers in 4 bits compute in float32, and not be packed for the CPU's kernel, which is for bfloat16."""
    layers = _four_bit_layers(model)
    changed = {"compute_dtype": torch.float32, "compute_type_is_set": True, "support_avx512bf16_for_cpu": False}
    before = [{name: getattr(layer, name) for name in changed if hasattr(layer, name)} for layer in layers]
    try:
        for layer, own in zip(layers, before, strict=True):
            vars(layer).update({name: changed[name] for name in own})
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            vars(layer).update(own)


class _InFloat32(TorchFunctionMode):
    """Convert the arguments of functions that take no mixed types to float32; others promote them by themselves."""

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        """Call a function of PyTorch."""
        kwargs = kwargs or {}
        if func in ONE_TYPE:
            args = tuple(map(_as_float32, args))
            kwargs = {name: _as_float32(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _as_float32(value: object) -> object:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _alone(
    scorer: PackingCheckedScorer, probe: list[EncodedForScorer], weights: dict | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return each option's log-likelihood in its own sequence, and the change when other tokens follow.

    Both have shape (options of all questions,). The change is measured on the first option of each question; a causal
    model shows none in exact arithmetic.
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
    scorer: PackingCheckedScorer, weights: dict | None, question: EncodedForScorer, option: list[int], behind: list[int]
) -> float:
    """Return an option's log-likelihood in one sequence that ends with the tokens `behind`."""
    inputs = torch.tensor([question.prompt + option + behind], device=scorer.device)
    logits = run_packing_check(scorer, weights, lambda: scorer.call(input_ids=inputs)).logits[0].float()
    first = len(logits) - inputs.shape[1] + len(question.prompt) - 1  # after a soft prompt
    return logits[first : first + len(option)].log_softmax(-1)[range(len(option)), option].sum().item()


def _dtype(scorer: Scorer) -> str:
    return str(next(scorer.model.parameters()).dtype).removeprefix("torch.")


def _device_name(scorer: Scorer) -> str:
    if scorer.device.type == "cuda":
        return torch.cuda.get_device_name(scorer.device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
