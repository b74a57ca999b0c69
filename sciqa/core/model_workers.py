"""Stages with a model share worker processes, whose imports take longer than a small stage's work."""

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import ray

from sciqa.core import worker_loss
from sciqa.core.cluster import cluster_dataset, cluster_worker_needs, named_cluster_accelerator
from sciqa.core.local_stage import local_stage_rows
from sciqa.core.options import ClusterOptions

if TYPE_CHECKING:
    from ray.data import Dataset

#: Most bytes that a worker may request for its model to share processes: a process keeps its last model for the next
#: stage to replace, or until Ray ends it because it is idle.
LARGEST = 1_000_000_000
#: Worker of the stage that this process last worked for, by the stage's id.
_workers: dict[str, Callable[[dict], dict]] = {}


def model_worker_pool(options: ClusterOptions, workers: int, parts: int, weights: int) -> dict:
    """Return the arguments of `Dataset.map` for a stage's pool of model workers, each an actor.

    With `--num-workers auto` Ray Data adds workers, up to one per part, as nodes join the cluster, and asks the
    cluster's autoscaler for nodes. `workers` is what `num_cluster_workers` returns, and `weights` the bytes of the
    weights that each worker loads.
    """
    needs = cluster_worker_needs(options, workers, weights)
    most = parts if options.num_workers == "auto" else workers
    return {
        "compute": ray.data.ActorPoolStrategy(min_size=workers, max_size=most),
        "num_cpus": needs.get("CPU", 0),  # by default, Ray Data takes a whole CPU, which feeding a pool may need
        "num_gpus": needs.get("GPU"),
        "memory": needs.get("memory"),
        "accelerator_type": named_cluster_accelerator(options),
        "max_restarts": worker_loss.MOST,
        "max_task_retries": worker_loss.MOST,
    }


def run_model_workers(
    options: ClusterOptions, worker: Callable[..., Callable[[dict], dict]], arguments: dict, parts: list, pool: dict
) -> "Dataset | Iterator[dict]":
    """Return a row for each part, computed by model workers, or in this process where Ray is not connected.

    `worker` is the workers' class, whose instances map a row, and `pool` has the arguments of `model_worker_pool`.
    """
    if not ray.is_initialized():
        return local_stage_rows(worker, arguments, parts)
    made = model_worker_pool(options, **pool)
    return cluster_dataset(parts).map(**model_worker_arguments(worker, arguments, made))


def model_worker_arguments(worker: Callable[..., Callable[[dict], dict]], arguments: dict, pool: dict) -> dict:
    """Return the arguments of `Dataset.map` for a stage whose workers hold a model.

    On a GPU, and with a large model, workers are actors whose processes end with the stage. Other stages run as tasks,
    for which Ray takes processes of earlier stages where it can; each process makes the worker once a stage.
    `worker` is the workers' class, whose instances map a row, and `pool` the result of `model_worker_pool`.
    """
    if pool["num_gpus"] or (pool["memory"] or 0) > LARGEST:
        return {"fn": worker, "fn_constructor_kwargs": arguments, **pool}
    stage = uuid.uuid4().hex

    def run(row: dict, **arguments: object) -> dict:
        return _worker_of_stage(stage, worker, arguments)(row)

    run.__name__ = worker.__name__  # Ray shows it
    return {
        "fn": run,
        "fn_kwargs": arguments,
        "compute": ray.data.TaskPoolStrategy(pool["compute"].max_size),
        "num_cpus": pool["num_cpus"],
        "memory": pool["memory"],
        "max_retries": worker_loss.MOST,
    }


def _worker_of_stage(stage: str, worker: Callable[..., Callable[[dict], dict]], arguments: dict) -> Callable:
    if stage not in _workers:
        _workers.clear()  # frees the model of the stage before
        _workers[stage] = worker(**arguments)
    return _workers[stage]
