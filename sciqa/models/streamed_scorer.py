"""Score with causal language models larger than memory: read one layer at a time and run all questions through it.

A pass runs every question through a layer before it reads the next one, so each weight is read once, however many
questions there are. Memory holds two layers (one computes while the other is read) and the hidden states of the
questions. The model is that of transformers, built without weights: for each layer and batch, its forward pass runs
with the weights of that layer, and the other layers return their input. So masks, positions and rotary embeddings are
the model's own, and the scores are those of the whole model.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from sciqa.core.device import Device
from sciqa.core.errors import InputError
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.causal import CausalScorer, causal_scored_tokens, normalise_causal_scores
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer
from sciqa.models.streamed_weights import (
    Piece,
    StreamedTensor,
    StreamedWeightsSettings,
    find_streamed_tensors,
    stream_weights_ahead,
    streamed_weight_offsets,
)
from sciqa.models.weights import CONSTANTS, list_weight_names

#: Names of the weights outside the layers, and the prefix of weights in layers.
EMBEDDING, NORM, HEAD, LAYERS = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers."
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
#: Bytes of the blocks in which embedding and head are read; blocks of the embedding without a used token are skipped.
EMBEDDING_BLOCK, HEAD_BLOCK = 1 << 20, 32 << 20
#: Number of logits computed at once.
LOGITS = 1 << 23
#: Seconds between two progress messages.
SILENCE = 5

Weights = dict[str, torch.Tensor]
Step = tuple[Piece, Callable[[Weights], None]]


class StreamedScorer(CausalScorer):
    """Scores as `CausalScorer` does, with the weights of one layer at a time.

    The folder has a model whose type is in `sciqa.models.streamed_weights.STREAMED`. The device computes, in `dtype`;
    hidden states are in host memory.

    Raises:
        InputError: the files lack weights of the model, hold unknown ones, or hold some of another shape or type.
    """

    def __init__(
        self,
        folder: str,
        tokenizer: PreTrainedTokenizerBase,
        style: PromptFormat,
        dtype: torch.dtype,
        streaming: StreamedWeightsSettings,
        device: Device,
    ) -> None:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        super().__init__(model, tokenizer, style)
        self.dtype, self.streaming, self.said = dtype, streaming, 0.0
        self.computes_on = torch.device(device)
        self.batch_layout = BatchLayout("packed")  # supported by all streamed models (tests/test_streaming.py)
        self.decoder, self.norm = model.model, model.model.norm
        self.decoder.norm = nn.Identity()
        self.decoder.rotary_emb = type(self.decoder.rotary_emb)(config=config).to(self.device)
        for layer in self.decoder.layers:
            layer.forward = _pass_on
        self._find_weights(folder)
        largest = max(
            HEAD_BLOCK, self.table.row_bytes, self.head.row_bytes, *(streamed_weight_offsets(p)[1] for p in self.layers)
        )
        pinned = self.device.type == "cuda"
        self.read_into = [torch.empty(largest, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]

    @property
    def takes_prefix(self) -> bool:
        """See `CausalScorer.takes_prefix`; layers keep no keys and values."""
        return False

    def _find_weights(self, folder: str) -> None:
        tensors = find_streamed_tensors(folder)
        shapes = {name: tuple(weight.shape) for name, weight in self.model.state_dict().items()}
        shapes[NORM] = tuple(self.norm.weight.shape)
        tied = self.model.config.tie_word_embeddings and HEAD not in tensors
        names = (EMBEDDING, NORM, EMBEDDING if tied else HEAD)
        whole = {name: tensors[name] for name in names if name in tensors}  # no 4-bit weights
        self.table, self.final, self.head = (_stored(folder, whole, name, shapes[name])[name] for name in names)
        self.layers: list[Piece] = [{} for _ in self.decoder.layers]
        for name, shape in shapes.items():
            if name.startswith(LAYERS):
                found = _stored(folder, tensors, name, shape)
                number = int(name.removeprefix(LAYERS).split(".")[0])
                self.layers[number] |= {key.removeprefix("model."): tensor for key, tensor in found.items()}
        used = {*names, *(f"model.{key}" for piece in self.layers for key in piece)}
        if unknown := {key for key in tensors.keys() - used if not CONSTANTS.search(key)}:
            raise InputError(
                f"{folder}: in its safetensors files weights that a {type(self.model).__name__} with this config.json "
                f"has not: {list_weight_names(unknown)}; fetch or save it again, with the config.json that belongs to "
                "its weights"
            )

    @property
    def device(self) -> torch.device:
        """See `Scorer.device`."""
        return self.computes_on

    def forward(self, batch: Sequence[EncodedForScorer]) -> list[torch.Tensor]:
        """See `Scorer.forward`; a pass over all weights, not differentiable."""
        return self.score_batches([batch])[0]

    @torch.inference_mode()
    def score_batches(self, batches: Sequence[Sequence[EncodedForScorer]]) -> list[list[torch.Tensor]]:
        """See `Scorer.score_batches`; one pass over all weights.

        Raises:
            InputError: no room on disk for hidden states, or a weight file has become shorter.
        """
        tokens = sum(map(self.padded_tokens, batches))
        with _room(tokens, self.model.config.hidden_size, self.dtype, self.streaming.memory) as states:
            work = _Pass(self, batches, states)
            steps = list(work.steps())
            reading = stream_weights_ahead([piece for piece, _ in steps], [b.numpy().data for b in self.read_into])
            for (piece, use), number in zip(steps, reading, strict=True):
                use(self._weights(piece, self.read_into[number]))
            return work.scores()

    def _weights(self, piece: Piece, buffer: torch.Tensor) -> Weights:
        """Return the weights in a buffer, in the type and on the device of computation.

        They are views of the buffer if both are the same already. 4-bit weights are de-quantised.
        """
        weights: Weights = {}
        packed: dict[str, Weights] = {}
        for (name, stored), start in zip(piece.items(), streamed_weight_offsets(piece)[0], strict=True):
            tensor = buffer[start : start + stored.nbytes].view(TYPES[stored.kind]).view(stored.shape).to(self.device)
            owner, _, part = name.partition(".weight.")
            (packed.setdefault(f"{owner}.weight", {}) if part else weights)[part or name] = tensor
        for name, state in packed.items():
            weights[name] = _unpacked(weights[name], state)
        return {name: tensor.to(self.dtype) for name, tensor in weights.items()}

    def say(self, layer: int, work: "_Pass") -> None:
        """Report the progress of a pass, at most every `SILENCE` seconds."""
        if not self.streaming.say or time.monotonic() - self.said < SILENCE:
            return
        self.said = time.monotonic()
        megabytes = work.states.nbytes / 1e6
        place = "memory" if work.states.nbytes <= self.streaming.memory else "a file"
        questions = sum(map(len, work.batches))
        self.streaming.say(
            f"layer {layer + 1} of {len(self.layers)}, {questions} questions, {megabytes:.0f} MB of states in {place}"
        )


class _Pass:
    """State of one pass of question batches through a model.

    The hidden states of all batches, padding included, have the shape (tokens, hidden size).
    """

    def __init__(
        self, scorer: StreamedScorer, batches: Sequence[Sequence[EncodedForScorer]], states: torch.Tensor
    ) -> None:
        self.scorer, self.batches, self.states = scorer, batches, states
        laid = [(number, each) for number, batch in enumerate(batches) for each in scorer.rows(batch)]
        self.parts = [
            part.view(*each.ids.shape, -1)
            for part, (_, each) in zip(states.split([each.ids.numel() for _, each in laid]), laid, strict=True)
        ]
        self.ids = torch.cat([each.ids.flatten() for _, each in laid])
        self.places = [(number, each.places) for number, each in laid]
        tokens = [
            t
            for number, places in self.places
            for p in places
            for t in causal_scored_tokens(batches[number][p.question], p.option)
        ]
        self.targets = torch.tensor(tokens, device=scorer.device)
        self.chosen = torch.zeros(len(self.targets), device=scorer.device)
        self.total = torch.full_like(self.chosen, -torch.inf)

    def steps(self) -> Iterator[Step]:
        """Yield, in order, the weights to read and the function that then computes with them."""
        scorer = self.scorer
        ids, order = self.ids.sort()
        for start, stop in _blocks(scorer.table, EMBEDDING_BLOCK):
            first, last = torch.searchsorted(ids, torch.tensor([start, stop])).tolist()
            if first < last:
                rows = scorer.table.rows(int(ids[first]), int(ids[last - 1]) + 1)
                yield {"rows": rows}, partial(self._embed, order[first:last], int(ids[first]))
        for number, piece in enumerate(scorer.layers):
            yield piece, partial(self._compute, number)
        yield {"weight": scorer.final}, self._gather
        for start, stop in _blocks(scorer.head, HEAD_BLOCK):
            yield {"rows": scorer.head.rows(start, stop)}, partial(self._compare, start)

    def _embed(self, places: torch.Tensor, first: int, weights: Weights) -> None:
        """Write embeddings that have been read into the states of their tokens."""
        self.states[places] = weights["rows"].to(self.states.device)[self.ids[places] - first]

    def _compute(self, number: int, weights: Weights) -> None:
        """Run every batch through a layer."""
        scorer = self.scorer
        scorer.say(number, self)
        layer = scorer.decoder.layers[number]
        del layer.forward
        # Laid out again for each layer: the masks of all batches would need more memory than the hidden states.
        rows = (each for batch in self.batches for each in scorer.rows(batch))
        for each, states in zip(rows, self.parts, strict=True):
            given = {
                "inputs_embeds": states.to(scorer.device),
                "attention_mask": scorer.mask(each, scorer.dtype),
                "position_ids": None if each.positions is None else each.positions.to(scorer.device),
                "use_cache": False,
            }
            states.copy_(functional_call(scorer.decoder, weights, kwargs=given, tie_weights=False).last_hidden_state)
        layer.forward = _pass_on

    def _gather(self, weights: Weights) -> None:
        """Collect and normalise the hidden states that predict the options' tokens."""
        pairs = zip(self.parts, self.places, strict=True)
        rows = [part[place.row, place.columns] for part, (_, places) in pairs for place in places]
        self.last = functional_call(self.scorer.norm, weights, (torch.cat(rows).to(self.scorer.device),))

    def _compare(self, start: int, weights: Weights) -> None:
        """Compute the logits of a block of the vocabulary, and update the sums from which likelihoods are computed."""
        rows = weights["rows"]
        step = max(1, LOGITS // len(rows))
        for at in range(0, len(self.targets), step):
            some = slice(at, at + step)
            logits = nn.functional.linear(self.last[some], rows).float()
            self.total[some] = torch.logaddexp(self.total[some], logits.logsumexp(-1))
            token = self.targets[some] - start
            here = ((token >= 0) & (token < len(rows))).nonzero()[:, 0]
            self.chosen[at + here] = logits[here, token[here]]

    def scores(self) -> list[list[torch.Tensor]]:
        """Return the scores of every batch, after all steps."""
        counts = [len(place.columns) for _, places in self.places for place in places]
        each = iter((self.chosen - self.total).split(counts))
        sums: list[dict] = [{} for _ in self.batches]
        for number, laid in self.places:
            sums[number] |= {(place.question, place.option): next(each).sum() for place in laid}
        return [
            [normalise_causal_scores(found, number, question) for number, question in enumerate(batch)]
            for found, batch in zip(sums, self.batches, strict=True)
        ]


def _pass_on(hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
    """Return the input unchanged, as forward pass of all layers except the current one."""
    return hidden_states


def _stored(folder: str, tensors: Piece, name: str, shape: tuple[int, ...]) -> Piece:
    """Return the location of a weight and, if it is in 4 bits, of its quantisation state."""
    found = {key: tensor for key, tensor in tensors.items() if key == name or key.startswith(f"{name}.")}
    if name not in found:
        raise InputError(f"{folder}: no {name} in its safetensors files; --stream needs every weight under that name")
    if len(found) == 1 and found[name].shape != shape:
        raise InputError(f"{folder}: {name} has the shape {found[name].shape}, by its config.json {shape} is expected")
    if kinds := {tensor.kind for tensor in found.values()} - TYPES.keys():
        raise InputError(
            f"{folder}: {name} is stored as {', '.join(kinds)}; --stream reads {', '.join(TYPES)} and 4 bits as "
            "bitsandbytes stores them"
        )
    return found


def _blocks(tensor: StreamedTensor, size: int) -> Iterator[tuple[int, int]]:
    """Yield blocks as (first row, end row), of at most `size` bytes but at least one row."""
    step = max(1, size // tensor.row_bytes)
    for start in range(0, tensor.shape[0], step):
        yield start, min(start + step, tensor.shape[0])


def _unpacked(packed: torch.Tensor, state: Weights) -> torch.Tensor:
    """De-quantise a weight that bitsandbytes stored in 4 bits (Dettmers et al. 2023, QLoRA)."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    return dequantize_4bit(packed.view(torch.uint8).reshape(-1, 1), QuantState.from_dict(state, packed.device))


@contextmanager
def _room(tokens: int, size: int, dtype: torch.dtype, memory: int) -> Iterator[torch.Tensor]:
    """Allocate hidden states, shape (tokens, size): in memory or, above `memory` bytes, in a memory-mapped file."""
    if tokens * size * dtype.itemsize <= memory:
        yield torch.empty(tokens, size, dtype=dtype)
        return
    with tempfile.NamedTemporaryFile(prefix="sciqa-states-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, tokens * size * dtype.itemsize)
            else:  # macOS
                file.truncate(tokens * size * dtype.itemsize)
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: no room for {tokens * size * dtype.itemsize / 1e9:.1f} GB of hidden states "
                f"({error}); set TMPDIR, pass a larger --stream-memory, or fewer --stream-questions"
            ) from error
        yield torch.from_file(file.name, shared=True, size=tokens * size, dtype=dtype).view(tokens, size)
