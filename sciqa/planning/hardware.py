"""Known accelerators, node types of a Ray cluster file, and checks whether a stage fits them."""

import math
from dataclasses import dataclass

import yaml

from sciqa.core import storage
from sciqa.core.errors import InputError


@dataclass(frozen=True)
class Accelerator:
    """A GPU with the figures of its data sheet.

    Attributes:
        teraflops: dense bfloat16 (float16 on a T4) operations per second with float32 accumulation, in 10^12.
        gigabytes: memory in 10^9 bytes.
    """

    teraflops: float
    gigabytes: float


#: Accelerators by their names in Ray; H100 and H200 are the SXM modules.
ACCELERATORS = {
    "T4": Accelerator(65, 16),
    "L4": Accelerator(121, 24),
    "A10G": Accelerator(70, 24),
    "L40S": Accelerator(362, 48),
    "A100-40G": Accelerator(312, 40),
    "A100-80G": Accelerator(312, 80),
    "H100": Accelerator(989, 80),
    "H200": Accelerator(989, 141),
}
#: GPU of each AWS instance family.
AWS_FAMILIES = {
    **{"g4dn": "T4", "g5": "A10G", "g6": "L4", "g6e": "L40S", "p4d": "A100-40G", "p4de": "A100-80G"},
    **{"p5": "H100", "p5e": "H200", "p5en": "H200"},
}
#: Share of a GPU's memory that a plan may fill; the CUDA context and libraries take the rest.
ROOM = 0.9
#: Ratio of a CPU process's memory to the planned memory. Training SmolLM2-135M takes 2.34 GB instead of 1.65, since
#: glibc keeps freed memory.
PROCESS = 1.42


@dataclass(frozen=True)
class NodeType:
    """A node type of a cluster.

    Attributes:
        name: name of the type.
        cpus: CPUs that a node offers to Ray.
        gpus: GPUs per node.
        kind: kind of GPU, a key of `ACCELERATORS`.
        memory: bytes of host memory that a node offers to Ray, or None where the file does not say.
        most: maximum number of nodes of this type.
    """

    name: str
    cpus: float
    gpus: int
    kind: str | None
    memory: int | None
    most: int


@dataclass(frozen=True)
class HardwareNeed:
    """Resource requirements of a stage.

    Attributes:
        stage: name of the step.
        workers: minimum number of workers.
        memory: bytes of host memory that each worker requests from Ray.
        device: bytes of GPU memory per worker, or of host memory in a cluster without GPUs; 0 for CPU stages.
        offloaded: bytes among `memory` that are offloaded from the device; without GPUs, they are needed
            beside those of `device`, in the same host memory.
    """

    stage: str
    workers: int
    memory: int
    device: int = 0
    offloaded: int = 0


def read_node_types(path: str) -> list[NodeType]:
    """Return the node types of a Ray cluster file.

    Raises:
        InputError: the file is missing or invalid, or a node type does not declare its resources.
    """
    try:
        about = yaml.safe_load(storage.read_bytes(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error})") from error
    types = about.get("available_node_types") if isinstance(about, dict) else None
    if not isinstance(types, dict) or not types:
        raise InputError(f"{path}: no available_node_types; a Ray cluster file expected")
    most = _max_workers(path, about, 2)
    return [_node_type(path, name, kind, most, name == about.get("head_node_type")) for name, kind in types.items()]


def _max_workers(place: str, about: dict, default: int) -> int:
    most = about.get("max_workers", default)
    if not isinstance(most, int) or isinstance(most, bool) or most < 0:
        raise InputError(f"{place}: max_workers {most!r} found, a whole number of at least 0 expected")
    return most


def _node_type(path: str, name: str, about: dict | None, most: int, is_head: bool) -> NodeType:
    """Return a node type of which there are at most as many as itself and the whole cluster allow, beside a head."""
    place, about = f"{path}, node type {name!r}", {} if about is None else about
    resources = (about.get("resources") or {}) if isinstance(about, dict) else None
    if not isinstance(resources, dict):
        raise InputError(f"{place}: a mapping with `resources`, as {{CPU: 16, GPU: 1}}, expected")
    for key in ("CPU", "GPU", "memory"):
        _check_amount(place, key, resources.get(key, 0))
    if "CPU" not in resources:
        raise InputError(f"{place}: no CPU in its resources; say what it has: {{CPU: 16, GPU: 1}}")
    gpus = int(resources.get("GPU", 0))
    kind = _gpu_kind(place, about, resources) if gpus else None
    nodes = is_head + min(most, _max_workers(place, about, 0 if is_head else most))
    return NodeType(name, resources["CPU"], gpus, kind, resources.get("memory"), nodes)


def _check_amount(place: str, key: str, amount: object) -> None:
    """Raise `InputError` unless a resource is a finite number of at least 0, of GPUs a whole one."""
    given = amount if isinstance(amount, int | float) and not isinstance(amount, bool) else -1
    if not 0 <= given < math.inf or (key == "GPU" and given % 1):
        kind = "whole number" if key == "GPU" else "number"
        raise InputError(f"{place}: {key} {amount!r} found, a {kind} of at least 0 expected")


def _gpu_kind(place: str, about: dict, resources: dict) -> str:
    """Return the kind of GPU from the AWS instance type, else from Ray's name, which may omit an A100's memory."""
    config = about.get("node_config")
    family = str(config.get("InstanceType", "") if isinstance(config, dict) else "").partition(".")[0]
    named = next((key.partition(":")[2] for key in map(str, resources) if key.startswith("accelerator_type:")), "")
    same = (kind for kind in ACCELERATORS if named in (kind, kind.partition("-")[0]))
    kind = AWS_FAMILIES.get(family) or next(same, None)
    if kind is None:
        raise InputError(
            f"{place}: its kind of GPU is not known; give it the resource "
            f'"accelerator_type:KIND": 1, with one of {", ".join(ACCELERATORS)}'
        )
    return kind


def hardware_fits(kind: str, size: int) -> bool:
    """Return whether `size` bytes fit in an accelerator's memory."""
    return size <= ROOM * ACCELERATORS[kind].gigabytes * 1e9


def missing_hardware(node: NodeType, need: HardwareNeed, has_gpus: bool) -> str | None:
    """Return a text on what a node type lacks for a stage, or None where the stage can run on it.

    If the cluster has GPUs, models run on them.
    """
    if node.cpus < 1:
        return "has no CPU for work"
    if not need.device or not has_gpus:
        process = PROCESS * (need.device + need.offloaded)
        slots, size = (1 if need.device else int(node.cpus)), max(need.memory, int(process))
    elif not node.gpus or node.kind is None:
        return "has no GPU"
    elif not hardware_fits(node.kind, need.device):
        memory = ROOM * ACCELERATORS[node.kind].gigabytes
        return f"has {memory:.1f} GB for a worker on its {node.kind}, {need.device / 1e9:.1f} GB needed"
    else:
        slots, size = node.gpus, need.memory
    if size and node.memory is not None:
        slots = min(slots, int(node.memory // size))
    if slots < 1:
        return f"has {(node.memory or 0) / 1e9:.1f} GB of memory, {size / 1e9:.1f} GB needed by a worker"
    if slots * node.most < need.workers:
        return f"takes {slots * node.most} workers in all, {need.workers} needed"
    return None
