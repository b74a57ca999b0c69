"""Memory estimates from a model's configuration alone: bytes of weights and memory of a training step."""

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from sciqa.core.cluster import LOADING
from sciqa.core.errors import InputError
from sciqa.core.model_files import Family, model_config_files, model_folder_family
from sciqa.models.adapter import add_trainable_adapter
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.load import SCORERS, load_empty_model
from sciqa.models.prompt_format import Method, PromptFormat
from sciqa.models.scorer import EncodedForScorer
from sciqa.training.options import PERSISTENCE_THRESHOLD, REDUCE_BUCKET, TrainOptions

#: NF4 block sizes: weights per 8-bit constant, and constants per 32-bit constant (Dettmers et al. 2023, QLoRA).
BLOCK, OUTER_BLOCK = 64, 256
#: Bytes of a 4-bit layer's two code books (16 and 256 float32 values) and of the mean of its constants.
CODE_BOOKS = 4 * (16 + 256 + 1)
#: ZeRO-3 keeps a parameter gathered if at most this many elements come before its next use; DeepSpeed's default of
#: `stage3_max_reuse_distance`.
REUSE_DISTANCE = 1_000_000_000
#: Ratio of the memory that an allocator reserves to the peak size of its tensors. For Llama 2 7B with LoRA on a GPU,
#: PyTorch reserved 10.22 GiB for 9.16 GiB (Answer.AI, fsdp_qlora, benchmarks_03_2024.md).
RESERVED = 1.12
#: Copies of a weight that are in memory while a rank takes its share: as it is read, as it is trained, as it is sent.
READ_AT_ONCE = 3


@dataclass(frozen=True)
class MemoryParameter:
    """A parameter as a worker stores it.

    Attributes:
        elements: number of elements of its tensor; in a 4-bit layer each element holds four weights.
        width: bytes per element.
        trained: whether it is trained.
    """

    elements: int
    width: int
    trained: bool


@dataclass(frozen=True)
class MemorySketch:
    """A model as `finetune` would train it, without its weights.

    Attributes:
        model: model on PyTorch's meta device, with its adapter.
        family: family of the model.
        parameters: number of weights of the base model.
        quantised: number of weights of each layer that NF4 stores in 4 bits.
        stored: all parameters as the method stores them, including the adapter's.
        constants: bytes of NF4's quantisation constants; 0 where the base is not in 4 bits.
    """

    model: PreTrainedModel
    family: Family
    parameters: int
    quantised: list[int]
    stored: list[MemoryParameter]
    constants: int

    @property
    def trained(self) -> int:
        """Number of trained weights."""
        return sum(each.elements for each in self.stored if each.trained)

    def weight_bytes(self, kind: str) -> int:
        """Return the bytes of the base model's weights in `float32`, `bfloat16` or `nf4`.

        NF4 quantises only the linear layers to 4 bits; embeddings, norms and the head stay in 16.
        """
        if kind != "nf4":
            return self.parameters * {"float32": 4, "bfloat16": 2}[kind]
        return 2 * (self.parameters - sum(self.quantised)) + sum(sum(nf4_memory(each)) for each in self.quantised)


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker's memory in training, and of host memory (`host`) where ZeRO offloads its state."""

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """All bytes of the worker's own memory, including the allocator's overhead."""
        return reserved_memory(self.parameters + self.gradients + self.optimizer + self.buffers + self.activations)


def reserved_memory(tensors: int) -> int:
    """Return the bytes that an allocator reserves for `tensors` bytes of tensors."""
    return round(RESERVED * tensors)


def nf4_memory(weights: int) -> tuple[int, int]:
    """Return the bytes of a layer's weights in NF4 with double quantisation, and those of its constants.

    Dettmers et al. 2023, QLoRA, section 3: 4 bits per weight, an 8-bit constant per 64 weights, and a 32-bit constant
    per 256 of these constants.
    """
    blocks = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2), blocks + 4 * math.ceil(blocks / OUTER_BLOCK) + CODE_BOOKS


def build_memory_sketch(name: str, method: Method, fields: dict) -> MemorySketch:
    """Return a model without weights, prepared as for training, with the fields of peft's configuration.

    The name is one that `sciqa.core.model_files.find_model` takes, or a folder with a config.json and no weights.

    Raises:
        InputError: the model does not exist, or peft rejects the fields.
    """
    folder, gguf_file = model_config_files(name)
    family = model_folder_family(name, folder, gguf_file)
    base = load_empty_model(folder, gguf_file, family, torch.bfloat16)
    parameters = sum(each.numel() for each in base.parameters())
    kept = Bnb4BitHfQuantizer.get_modules_to_not_convert(base, None, list(base._keep_in_fp32_modules or ()))
    quantised = {
        id(module.weight): module.weight.numel()
        for path, module in base.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(path, kept)
    }
    model = add_trainable_adapter(base, family, method, fields)
    in_4_bits = quantised if method == "qlora" else {}
    stored = [
        MemoryParameter(
            math.ceil(nf4_memory(each.numel())[0] / each.itemsize) if id(each) in in_4_bits else each.numel(),
            each.itemsize,
            each.requires_grad,
        )
        for each in model.parameters()
    ]
    constants = sum(nf4_memory(each)[1] for each in in_4_bits.values())
    return MemorySketch(model, family, parameters, list(quantised.values()), stored, constants)


def rank_memory(stored: list[MemoryParameter], workers: int) -> int:
    """Return the bytes of parameters per ZeRO-3 rank between steps: small parameters whole, a share of the others."""
    return sum(
        each.width * (each.elements if each.elements <= PERSISTENCE_THRESHOLD else math.ceil(each.elements / workers))
        for each in stored
    )


def loading_memory(model: MemorySketch, options: TrainOptions, workers: int) -> int:
    """Return the peak bytes of a worker's host memory while it loads the model.

    A ZeRO-3 rank holds its share of the weights and at most `READ_AT_ONCE` times the largest one, from which its part
    is taken; in NF4 that is read in 16 bits. On a GPU the shares are there, and less is needed.
    """
    if options.zero < 3 or workers == 1:
        return int(LOADING * model.weight_bytes("bfloat16"))
    largest = max(each.elements * each.width for each in model.stored)
    if options.method == "qlora":
        largest = max(largest, 2 * max(model.quantised, default=0))
    return rank_memory(model.stored, workers) + model.constants + READ_AT_ONCE * largest


def training_memory(model: MemorySketch, options: TrainOptions, workers: int, activations: int) -> Memory:
    """Return the peak memory of a worker in a training step, without the CUDA context.

    The count follows Rajbhandari et al. 2020, ZeRO, section 5, with this program's types: trained weights, their
    gradients and both AdamW moments are float32; frozen weights keep the type in which they are loaded. In ZeRO-2,
    DeepSpeed keeps a second copy of a rank's share of the trained weights, whatever their type. In ZeRO-3, gathered
    parameters stay in memory until their backward pass if at most `REUSE_DISTANCE` elements come between the two uses;
    in a small model this holds for all. The bytes of activations are those of `peak_activation_memory`.
    """
    trained = 4 * model.trained
    share = math.ceil(trained / workers)
    frozen = sum(each.elements * each.width for each in model.stored if not each.trained) + model.constants
    if options.zero == 0:  # the optimizer's temporary results are as large as the trained weights
        return Memory(frozen + trained, trained, 2 * trained, 0, max(activations, trained))
    activations = max(activations, share)
    if options.zero == 2:
        buckets = 4 * REDUCE_BUCKET * (2 if options.method == "full" else 1)
        if options.offload:
            return Memory(frozen + trained, 0, 0, buckets, activations, host=4 * share)
        return Memory(frozen + trained, share, 3 * share, buckets, activations)
    held = rank_memory(model.stored, workers) + model.constants
    large = [each for each in model.stored if each.elements > PERSISTENCE_THRESHOLD]
    elements = sum(each.elements for each in large)
    gathered = sum(each.elements * each.width for each in large) * min(1.0, REUSE_DISTANCE / 2 / max(1, elements))
    buckets = REDUCE_BUCKET * (6 if options.method == "full" else 2) + math.ceil(gathered)
    if options.offload:
        small = sum(each.elements * each.width for each in model.stored if each not in large)
        return Memory(small, 0, 0, buckets, activations, host=held - small + 4 * share)
    return Memory(held, share, 2 * share, buckets, activations)


def peak_activation_memory(
    model: MemorySketch,
    batch: list[EncodedForScorer],
    *,
    training: bool = True,
    checkpointing: bool = False,
    nf4: bool = False,
) -> int:
    """Return the peak bytes of a step's tensors besides parameters, gradients and optimizer state.

    The real forward and backward passes run on fake tensors, which have a shape and no content, and the bytes of live
    tensors are counted. The result includes all terms that Korthikanti et al. 2022, Reducing Activation Recomputation
    in Large Transformer Models, add up by hand for one architecture, and also logits, losses and activation gradients.

    Args:
        model: model with its adapter; it is not changed.
        batch: questions that a worker computes at once.
        training: whether to run a backward pass, with the gradients of an earlier one in memory.
        checkpointing: whether the backward pass recomputes the activations of each layer.
        nf4: whether the base is in 4 bits; its largest layer is then also in memory in 16 bits while it computes.

    Raises:
        InputError: the shapes of the model's tensors depend on computed values.
    """
    # Give each prompt its own token: questions with a common beginning would share a row, which is rare in an exam.
    batch = [replace(question, prompt=[number] * len(question.prompt)) for number, question in enumerate(batch)]
    with run_on_fake_tensors(model, batch, training, checkpointing) as (held, run), _Living(held) as living:
        run()
    return living.peak + (2 * max(model.quantised, default=0) if nf4 else 0)


@contextmanager
def run_on_fake_tensors(
    model: MemorySketch, batch: list[EncodedForScorer], training: bool, checkpointing: bool
) -> Iterator[tuple[list[torch.Tensor], Callable[[], object]]]:
    """Yield the fake parameters, buffers and gradients of a model, and a function that runs a step with them.

    The arguments and errors are those of `peak_activation_memory`.
    """
    # A minimal tokenizer that can pad rows of token 0, since the model may have none.
    padding = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[SEP]": 0, "[PAD]": 1}, unk_token="[PAD]")),
        **{"sep_token": "[SEP]", "pad_token": "[PAD]", "model_input_names": ["input_ids", "attention_mask"]},
    )
    scorer = SCORERS[model.family](model.model, padding, PromptFormat()).train(training)
    # The proof of the layout needs weights.
    scorer.batch_layout = BatchLayout("packed" if model.family == "causal" else "padded")
    step = _Step(scorer, training)
    if checkpointing:
        model.model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        model.model.enable_input_require_grads()
    try:
        with fake_tensor.FakeTensorMode():
            tensors = {
                name: torch.empty(each.shape, dtype=each.dtype).requires_grad_(each.requires_grad)
                for name, each in itertools.chain(step.named_parameters(), step.named_buffers())
            }
            held = list(tensors.values())
            for each in tensors.values():
                if each.requires_grad:
                    each.grad = torch.empty_like(each)
                    held.append(each.grad)
            yield held, partial(torch.func.functional_call, step, tensors, (batch,))
    except (
        fake_tensor.DynamicOutputShapeException,
        fake_tensor.DataDependentOutputException,
        fake_tensor.UnsupportedFakeTensorException,
    ) as error:
        raise InputError(f"--model: its activations cannot be planned, for their shapes vary ({error})") from error
    finally:
        if checkpointing:
            model.model.gradient_checkpointing_disable()
            model.model.disable_input_require_grads()


class _Step(nn.Module):
    """A forward pass under autocast and, in training, its backward pass."""

    def __init__(self, scorer: nn.Module, training: bool) -> None:
        super().__init__()
        self.scorer, self.with_backward = scorer, training

    def forward(self, batch: list[EncodedForScorer]) -> None:
        """Run the step and accumulate its gradients into those of the parameters."""
        with torch.set_grad_enabled(self.with_backward):
            with torch.autocast("cpu", torch.bfloat16):
                scores = self.scorer(batch)
            if self.with_backward:
                torch.stack([each.logsumexp(0) for each in scores]).mean().backward()


class _Living(TorchDispatchMode):
    """Counter of the bytes of live tensors but those held before, each storage once; `peak` is the highest count."""

    def __init__(self, held: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        storages = [each.untyped_storage() for each in held]
        self.known = {storage._cdata: weakref.ref(storage) for storage in storages}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation and count the tensors that it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in self.known:
                self._count(each.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), storage._cdata

        def gone(_: weakref.ref) -> None:
            self.now -= size
            del self.known[key]

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
