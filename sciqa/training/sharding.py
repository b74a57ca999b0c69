"""DeepSpeed: its configuration from the options, and the parameters on each rank."""

import contextlib
import ctypes
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

import deepspeed
import safetensors
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from sciqa.core.errors import InputError
from sciqa.models.load import load_batch_layout
from sciqa.models.scorer import Scorer
from sciqa.models.weights import is_weight_sharded
from sciqa.training.options import MODEL_FIGURES, PERSISTENCE_THRESHOLD, REDUCE_BUCKET, FinetuneOptions

Checked = TypeVar("Checked")
#: Gives freed memory back to the system, where C's library has a function for it.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
#: Most bytes of a file of weights that one rank gathers and writes at once.
PART_BYTES = 1 << 29

if get_accelerator().device_name() == "cpu":  # by DS_ACCELERATOR, which the driver sets for its workers
    # On a CPU DeepSpeed would compile a kernel for all-reduces in inference, which training never calls. Without a C++
    # compiler that fails.
    deepspeed.ops.__compatible_ops__ = {}


def deepspeed_config(options: FinetuneOptions, world_size: int, dtype: torch.dtype) -> dict:
    """Return the DeepSpeed configuration; batch sizes and clipping come from the options alone.

    Trained weights are float32 and computation is in `dtype` under autocast, for every ZeRO stage and also for a single
    process.
    """
    zero: dict[str, object] = {"stage": options.zero, "reduce_bucket_size": REDUCE_BUCKET}
    if options.zero == 3:
        zero |= {"stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD}
        zero |= {"stage3_gather_16bit_weights_on_model_save": True}  # of any type; else TRL saves only shards
    if options.offload:
        zero |= {"offload_optimizer": {"device": "cpu"}}
        zero |= {"offload_param": {"device": "cpu"}} if options.zero == 3 else {}
    return {
        "train_batch_size": options.batch_size,
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": options.batch_size // (options.micro_batch * world_size),
        "gradient_clipping": options.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": dtype != torch.float32, "dtype": str(dtype).removeprefix("torch.")},
        "steps_per_print": 1 << 30,
    }


@contextlib.contextmanager
def shard_while_loading(config: dict | None) -> Iterator[None]:
    """Within this context, each weight that transformers loads is sharded before it reads the next one.

    So no rank ever holds more than its share and the weight that it reads. All ranks must load the same model at once;
    weights that the files lack stay whole until DeepSpeed starts.

    Args:
        config: configuration of DeepSpeed; without ZeRO-3, or on one rank, this context changes nothing.
    """
    if not config or config["zero_optimization"]["stage"] < 3 or dist.get_world_size() == 1:
        yield
        return
    deepspeed.init_distributed()  # on the workers' group of processes
    (first,) = sharded = nn.ParameterList([torch.zeros(1)])
    deepspeed.zero.Init(module=sharded, config_dict_or_path=config)

    def shard(module: nn.Module, name: str, weight: nn.Parameter) -> nn.Parameter | None:
        former: Any = getattr(module, name, None)
        if is_weight_sharded(weight):  # tied; transformers cannot compare weights that are sharded
            return former if is_weight_sharded(former) and not _equal_shares(former, weight) else None
        if weight.is_meta or not getattr(weight, "_is_hf_initialized", False):  # not read from a file
            return None
        weight.data = weight.data.contiguous()
        first.convert_to_zero_parameters([weight])
        TRIM(0)  # else memory that reading and quantising took stays with the process
        return None

    def read(path: str, framework: str, device: str = "cpu", **_: object) -> object:
        return safetensors.safe_open(path, framework, device, backend="pread")  # mapped, the files would stay in memory

    hook = register_module_parameter_registration_hook(shard)  # type: ignore[arg-type]  # as documented
    try:
        one_by_one = mock.patch.dict(os.environ, {"HF_DEACTIVATE_ASYNC_LOAD": "1"})
        with one_by_one, mock.patch("transformers.modeling_utils.safe_open", read):
            yield
    finally:
        hook.remove()


def _equal_shares(one: nn.Parameter, other: nn.Parameter) -> bool:
    """Whether two sharded weights are the same, on all ranks."""
    if one is other:
        return True
    shares = [each.ds_tensor for each in (one, other)]  # type: ignore[attr-defined]
    held = max(0, one.ds_numel - dist.get_rank() * shares[0].numel())  # type: ignore[attr-defined]  # padding follows
    equal = one.ds_shape == other.ds_shape and torch.equal(*(share[:held] for share in shares))  # type: ignore[attr-defined]
    everywhere = torch.tensor(int(equal), device=one.device)
    dist.all_reduce(everywhere, dist.ReduceOp.MIN)
    return bool(everywhere)


def find_sharded_layout(scorer: Scorer, name: str) -> None:
    """Find the batch layout of a model that DeepSpeed has started, of which each rank holds a share.

    All ranks must call it; `name` is that of the base model.

    Raises:
        InputError: as `Scorer.prove`, or batches differ in their number of model calls.
    """
    _find_external_weights(scorer, True)
    load_batch_layout(scorer, name, sharding_exchange)
    _find_external_weights(scorer, False)
    if scorer.calls_vary:
        raise InputError(
            f"--zero 3: {name} is called more often for one batch than for another, so workers would wait for each "
            "other for ever; use --zero 2"
        )


def _find_external_weights(scorer: Scorer, active: bool) -> None:
    """Let DeepSpeed gather weights that are read outside their own layer, as its engine does in a forward pass."""
    for module in scorer.modules():
        module._parameters._in_forward = active  # type: ignore[attr-defined]  # of DeepSpeed's own dictionary


def sharding_exchange(mine: object) -> list:
    """Return what all ranks pass to this at the same time."""
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def sharding_checked(check: Callable[[], Checked]) -> Checked:
    """Call a function on every rank and return its result on this one, or raise on all ranks if it fails on any.

    All ranks must call this. The function itself must not wait for other ranks.

    Raises:
        InputError: the function raised it on some rank. All ranks raise it, since the others would wait in vain.
    """
    found: Checked | InputError
    try:
        found = check()
    except InputError as error:
        found = error
    for raised in sharding_exchange(found if isinstance(found, InputError) else None):
        if raised is not None:
            raise raised
    return cast("Checked", found)


def sharded_parameter_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of parameters that this rank holds between steps, and those of the whole model."""
    held = whole = 0
    for parameter in model.parameters():
        whole += _whole_bytes(parameter)
        if getattr(parameter, "ds_persist", True):
            held += _whole_bytes(parameter)
        else:
            held += parameter.ds_tensor.numel() * parameter.element_size()  # type: ignore[attr-defined]
    return held, whole


def sharded_model_figures(model: nn.Module, optimizer: str) -> dict:
    """Return what a model takes on this rank, with the names of `MODEL_FIGURES`.

    The peak of memory is that of this process so far, in bytes: on a GPU of its tensors there, else of all that is
    resident, libraries too.
    """
    held, whole = sharded_parameter_bytes(model)
    trained = sum(getattr(each, "ds_numel", each.numel()) for each in model.parameters() if each.requires_grad)
    on_gpu = next(model.parameters()).device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return dict(zip(MODEL_FIGURES, (held, whole, trained, peak, optimizer), strict=True))


def gather_sharded(model: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Return the trained weights, an adapter's fixed ones and stored buffers by name on rank 0, and {} on other ranks.

    Every rank must call it, because ZeRO-3 gathers shards from all. A weight that several layers share is one tensor
    under several names.
    """
    state: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)  # peft's, in the names of its weights
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad and not (prefix and prefix in name):
            continue
        if first.setdefault(id(parameter), name) == name:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                if rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        elif rank == 0:
            state[name] = state[first[id(parameter)]]
    if rank == 0:
        stored = model.state_dict().keys()
        state |= {name: buffer.cpu() for name, buffer in model.named_buffers(remove_duplicate=False) if name in stored}
    return state


def save_sharded_model(model: PreTrainedModel, folder: Path, part_bytes: int = PART_BYTES) -> None:
    """Write a sharded model in the format of transformers, from rank 0, which holds one part of it at a time.

    All ranks must call it. A part has at most `part_bytes`, unless a layer is larger.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    stored = model.state_dict().keys()
    state = {name: each.cpu() for name, each in model.named_buffers(remove_duplicate=False) if name in stored}
    parts, files = _parts_of_model(weights, part_bytes), dict[str, str]()
    for number, part in enumerate(parts, 1):
        for names in part:
            weight = weights[names[0]]
            with deepspeed.zero.GatheredParameters([weight], enabled=is_weight_sharded(weight)):
                if dist.get_rank() == 0:
                    state |= dict.fromkeys(names, weight.detach().cpu().clone())
        if dist.get_rank() == 0:
            file = f"model-{number:05}-of-{len(parts):05}.safetensors" if parts[1:] else SAFE_WEIGHTS_NAME
            aside = folder / "part"
            model.save_pretrained(aside, state_dict=state, max_shard_size=1 << 50)
            (aside / SAFE_WEIGHTS_NAME).rename(folder / file)
            with safetensors.safe_open(folder / file, "pt") as written:
                files |= dict.fromkeys(written.keys(), file)
            for path in aside.iterdir():
                path.replace(folder / path.name)
            aside.rmdir()
        state = {}
    if files and parts[1:]:
        index = {"metadata": {"total_size": sum(map(_whole_bytes, set(weights.values())))}, "weight_map": files}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


def _parts_of_model(weights: dict[str, nn.Parameter], part_bytes: int) -> list[list[list[str]]]:
    """Return the parts of a model, each the names of its weights; one that layers share is in one part, with all names.

    Layers stay whole, for files may hold some of their weights in one.
    """
    named: dict[int, list[str]] = {}
    for name, weight in weights.items():
        named.setdefault(id(weight), []).append(name)
    layers: dict[str, list[list[str]]] = {}
    for names in named.values():
        layers.setdefault(re.match(r"(.*?\.\d+\.|.*\.|)", names[0])[0], []).append(names)  # type: ignore[index]
    parts: list[list[list[str]]] = [[]]
    size = 0
    for layer in layers.values():
        more = sum(_whole_bytes(weights[names[0]]) for names in layer)
        if parts[-1] and size + more > part_bytes:
            parts, size = [*parts, []], 0
        parts[-1] += layer
        size += more
    return parts


def _whole_bytes(weight: torch.Tensor) -> int:
    return getattr(weight, "ds_numel", weight.numel()) * weight.element_size()


def keep_4bit_sharding(model: nn.Module) -> None:
    """Stop bitsandbytes from re-packing 4-bit weights in evaluation mode.

    On CPUs with AVX512-BF16, a bitsandbytes layer that runs in evaluation mode re-packs its weight in place. ZeRO-3
    loses the packed bytes with the gathered copy, and the next step reads the old ones as if they were packed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (no attribute of every module)
