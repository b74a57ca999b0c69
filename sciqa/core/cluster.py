"""Ray for every step: connect to a cluster, and request resources so that pools of workers cannot starve."""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import ray
from ray._private.utils import read_ray_address
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sciqa.core import worker_loss
from sciqa.core.console import VERBOSE, is_console_verbose
from sciqa.core.device import Device, device_cpus
from sciqa.core.errors import InputError
from sciqa.core.options import ACCELERATORS, ClusterOptions, DeviceOptions, RayOptions, RunOptions
from sciqa.core.progress import progress_lines
from sciqa.core.shared_folders import FOLDERS, check_shared_folders

if TYPE_CHECKING:  # its import takes most of a second, which a small stage does without
    from ray.data import Dataset

# `Dataset.map` takes the limits of restarts, but no named parameters for them, and warns (seen with Ray 2.60).
warnings.filterwarnings("ignore", r"`ray_remote_args` is deprecated")

#: CPUs that each kind of work requests from Ray. A pool has one model worker per CPU, which leaves a tenth of every
#: CPU to the search actors and to the tasks before and after the pool. If the pool took whole CPUs, Ray Data would
#: wait for ever without an error. The fractions work for one CPU and for a thousand.
MODEL_CPUS = 0.9
SEARCH_CPUS = 0.05
TASK_CPUS = 0.05
#: Host memory that a model worker requests from Ray, as a multiple of the bytes of its weights.
LOADING = 1.25
#: Seconds without a starting node after which a cluster is reported to lack the resources of a stage.
LONGEST_WAIT = 20
#: Folders of steps that all nodes see, each time with the node of this process.
_seen: set[tuple[str | None, ...]] = set()


def connect_cluster(options: RayOptions) -> None:
    """Connect this process to Ray, once. Ray is started on this machine if none runs.

    Raises:
        InputError: no cluster at the address, no room in it for a task, or nodes that do not see a folder of the run.
    """
    if not ray.is_initialized():
        # At its default level, Ray's core warns about constructor arguments that Ray Data itself passes.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "warning" if is_console_verbose() else "fatal")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # By default, Ray ends a process that was idle for a second, before the next stage could take it.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "10000")
        # By default, Ray repeats a task without end that is killed because its node runs out of memory.
        os.environ.setdefault("RAY_task_oom_retries", str(worker_loss.MOST))
        address = "local" if options.num_cpus else options.address or os.environ.get("RAY_ADDRESS")
        if address and ":" in address:
            _check_reachable(address)
        address = address or last_started_cluster()
        on_sigterm = signal.getsignal(signal.SIGTERM)
        with contextlib.nullcontext() if is_console_verbose() else _no_core_messages():
            _start(options, address)
        if threading.current_thread() is threading.main_thread():  # that of Ray prints the stack and aborts
            signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
        wait_for_cluster_room({"CPU": 1})
    _check_folders(options)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    if not is_console_verbose():
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised here too
    worker_loss.watch_workers()


def _start(options: RayOptions, address: str) -> None:
    try:
        ray.init(
            address=address,
            num_cpus=options.num_cpus,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.WARNING if is_console_verbose() else logging.ERROR,
            log_to_driver=is_console_verbose(),
            runtime_env=_worker_environment(),
        )
    except (ConnectionError, ValueError) as error:
        if address == "local" or (isinstance(error, ValueError) and ":" in address):  # of other reasons
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"--address {address}: no Ray cluster answers there ({reason})") from error


def _check_folders(options: RayOptions) -> None:
    """Raise `InputError` unless all nodes see the folders of a step; checked once, where they do."""
    here = ray.get_runtime_context().get_node_id()
    folders = (here, *(getattr(options, name, None) for name in FOLDERS))
    if folders not in _seen:
        check_shared_folders(options, [node for node in _nodes() if node["NodeID"] != here])
        _seen.add(folders)


def _worker_environment() -> dict | None:
    """Return a runtime environment that makes workers verbose too; None if not needed or set by the submitted job."""
    if not is_console_verbose() or VERBOSE in os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""):
        return None
    return {"env_vars": {VERBOSE: "1"}}


def last_started_cluster() -> str:
    """Return the address of the cluster that `ray start` last started here, or `local` if it is gone.

    Ray keeps the address of a killed cluster, and would try to reach it for many minutes.
    """
    address = read_ray_address()
    with contextlib.suppress(InputError):
        if address:
            _check_reachable(address)
            return address
    return "local"


def _check_reachable(address: str) -> None:
    """Raise `InputError` at once if nothing listens; Ray itself would retry for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address {address}: no Ray cluster answers there ({error})") from error


@contextlib.contextmanager
def _no_core_messages() -> Iterator[None]:
    """Suppress what Ray's core prints while it starts, such as its log level; errors are still raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def wait_for_cluster_room(needs: dict[str, float], workers: int = 1) -> None:
    """Wait until the nodes of the cluster are large enough for some workers, whose `needs` are by Ray's names.

    Raises:
        InputError: they are not large enough, and none is being started.
    """
    if cluster_workers_that_fit(needs) >= workers:
        return
    group = placement_group([needs] * workers)  # shows the demand to an autoscaler
    asked, many = ", ".join(f"{name} {amount:g}" for name, amount in needs.items()), workers > 1
    wanted = f"room for {workers} workers with {asked} each" if many else f"a node with {asked}"
    try:
        waited = time.monotonic()
        with progress_lines("cluster", f"waiting for {wanted}"):
            while (fit := cluster_workers_that_fit(needs)) < workers:
                if _node_on_its_way():
                    waited = time.monotonic()
                if time.monotonic() - waited > LONGEST_WAIT:
                    largest = "; ".join(sorted({_described(each) for each in _resources()}))
                    short = f"a worker needs a node with {asked}, there are nodes with {largest}"
                    if many:
                        short = f"{workers} workers need {asked} each, there is room for {fit} on nodes with {largest}"
                    raise InputError(
                        f"the cluster has too few resources: {short}, and no other is being started; add one, or a "
                        "node type that has it, or pass --accelerator cpu, a smaller --model or another --num-workers "
                        "(of `serve` --min-replicas)"
                    )
                time.sleep(0.5)
    finally:
        remove_placement_group(group)


def _nodes() -> list[dict]:
    return [node for node in ray.nodes() if node["Alive"]]


def _resources() -> list[dict[str, float]]:
    return [node["Resources"] for node in _nodes()]


def _described(resources: dict[str, float]) -> str:
    kinds = [name for name in resources if name in ("GPU", "memory") or name.startswith("accelerator_type:")]
    return ", ".join(f"{name} {resources.get(name, 0):g}" for name in ["CPU", *sorted(kinds)])


def _node_on_its_way() -> bool:
    """Whether an autoscaler (version 1 or 2) is starting a node."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2():
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        return bool(status.pending_launches or status.pending_nodes)
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}").get("autoscaler_report") or {}
    return bool(report.get("pending_launches") or report.get("pending_nodes"))


def cluster_queue() -> Queue:
    """Return a queue on this node, where it lives as long as the driver; the loss of another node would end the run."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def num_cluster_workers(options: ClusterOptions, parts: int, *, whole_nodes: bool = False) -> int:
    """Return the number of model workers to start with, at most the number of parts.

    `auto` means one per GPU of the requested type; without GPUs, one per CPU, or one per node if `whole_nodes`.
    """
    if not ray.is_initialized():
        return 1
    if options.worker_range:
        available = options.worker_range[-1]
    elif cluster_uses_gpu(options):
        kind = cluster_accelerator_needs(options)
        available = int(sum(each.get("GPU", 0) for each in _resources() if kind.keys() <= each.keys()))
    elif whole_nodes:
        available = sum(each.get("CPU", 0) >= 1 for each in _resources())
    else:
        available = cluster_cpus()
    return max(1, min(available, parts))


def cluster_workers_that_fit(needs: dict[str, float]) -> int:
    """Return how many workers with such needs the cluster's current nodes have room for, whatever runs there now."""
    # Ray counts in steps of 0.0001: ten workers of 0.9 fit nine CPUs, though 9 // 0.9 is 9.
    rooms = [[int(each.get(name, 0) / amount + 1e-6) for name, amount in needs.items()] for each in _resources()]
    return sum(map(min, rooms))


def is_cluster_head() -> bool:
    """Return whether this process is on the head node of its cluster."""
    here = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == here and "node:__internal_head__" in node["Resources"] for node in _nodes())


def cluster_cpus() -> int:
    """Return the current number of CPUs of the cluster, at least 1."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_cluster_actors(memory: int) -> int:
    """Return how many actors of a number of bytes to start: at most one per CPU, in half of every node's memory."""
    room = sum(int(each.get("memory", 0) // (2 * memory)) for each in _resources())
    return max(1, min(cluster_cpus(), room))


def cluster_threads_per_worker(workers: int) -> int:
    """Return the CPU threads per worker: together, workers fill the CPUs, and none needs more than a node has."""
    if not ray.is_initialized():
        return device_cpus()
    largest = max(each.get("CPU", 0) for each in _resources())
    return max(1, min(cluster_cpus() // workers, int(largest)))


def cluster_uses_gpu(options: DeviceOptions) -> bool:
    """Whether model workers get a GPU each."""
    if options.accelerator == "auto":
        return ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= 1
    return options.accelerator != "cpu"


def cluster_device(options: DeviceOptions) -> Device:
    """Return the device of model workers. They are told it, since one without a GPU still sees those of its host."""
    return "cuda" if cluster_uses_gpu(options) else "cpu"


def cluster_worker_needs(options: DeviceOptions, workers: int, weights: int, least: int = 1) -> dict[str, float]:
    """Return the resources that each of some model workers requests, by Ray's names; wait for nodes that have them.

    `weights` are the bytes of the weights that each worker loads, and `least` is how many workers need room.
    """
    needs: dict[str, float] = (
        {"GPU": 1} if cluster_uses_gpu(options) else {"CPU": MODEL_CPUS * cluster_threads_per_worker(workers)}
    )
    if weights:
        needs["memory"] = int(LOADING * weights)
    wait_for_cluster_room(needs | cluster_accelerator_needs(options), least)
    return needs


def check_cluster_accelerator(options: RunOptions) -> None:
    """Wait for a node with the requested accelerator, so that a run without one fails early.

    Raises:
        InputError: there is no such node, and none is being started.
    """
    if options.accelerator not in ("auto", "cpu"):
        connect_cluster(options)
        wait_for_cluster_room({"GPU": 1} | cluster_accelerator_needs(options))


def cluster_accelerator_needs(options: DeviceOptions) -> dict[str, float]:
    """Return what workers request, by Ray's names, to get the type of GPU that is requested by name."""
    kind = named_cluster_accelerator(options)
    return {f"accelerator_type:{kind}": 0.001} if kind else {}


def named_cluster_accelerator(options: DeviceOptions) -> str | None:
    """Return the type of GPU that is requested by name, or None."""
    return None if options.accelerator in ACCELERATORS else options.accelerator


def cluster_dataset(parts: list) -> "Dataset":
    """Return a dataset with one block per part, so that each part is scheduled, and lost, on its own."""
    return ray.data.from_items([{"part": part} for part in parts], override_num_blocks=max(1, len(parts)))
