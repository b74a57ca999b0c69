"""DeepSpeed: its configuration from the options, and the parameters on each rank."""

import resource

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from sciqa.training.options import MODEL_FIGURES, PERSISTENCE_THRESHOLD, REDUCE_BUCKET, FinetuneOptions

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


def sharded_parameter_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the bytes of parameters that this rank holds between steps, and those of the whole model."""
    held = whole = 0
    for parameter in model.parameters():
        size = parameter.element_size()
        if hasattr(parameter, "ds_numel"):
            whole += parameter.ds_numel * size
            held += (parameter.ds_numel if parameter.ds_persist else parameter.ds_tensor.numel()) * size  # type: ignore[attr-defined]
        else:
            whole += parameter.numel() * size
            held += parameter.numel() * size
    return held, whole


def sharded_model_figures(model: nn.Module, optimizer: str) -> dict:
    """Return what a model takes on this rank, with the names of `MODEL_FIGURES`.

    The peak of memory is that of this process so far, in bytes: on a GPU of its tensors there, else of all that is
    resident, libraries too.
    """
    held, whole = sharded_parameter_bytes(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    on_gpu = next(model.parameters()).device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)
    return dict(zip(MODEL_FIGURES, (held, whole, count, peak, optimizer), strict=True))


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


def keep_4bit_sharding(model: nn.Module) -> None:
    """Stop bitsandbytes from re-packing 4-bit weights in evaluation mode.

    On CPUs with AVX512-BF16, a bitsandbytes layer that runs in evaluation mode re-packs its weight in place. ZeRO-3
    loses the packed bytes with the gathered copy, and the next step reads the old ones as if they were packed.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (no attribute of every module)
