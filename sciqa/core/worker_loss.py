"""Lost workers: report each in one line, and say in one line why a run ended that lost too many.

Ray restarts a lost worker and gives it the same part again, `MOST` times; it does not tell the driver if a node ran out
of memory. Ray's state API does, but it is part of the dashboard, which a local Ray does not start. So this module sends
Ray's head the requests that the API would send.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Iterator

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.common_pb2 import WorkerExitType
from ray.core.generated.gcs_pb2 import GcsNodeInfo, WorkerTableData
from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest, GetAllWorkerInfoRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub, WorkerInfoGcsServiceStub
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from sciqa.core.console import console, is_console_verbose
from sciqa.core.errors import LostWorkersError

#: Number of times that Ray restarts a worker, and repeats a part whose worker is lost; then the run ends.
MOST = 10
#: Errors by which Ray tells of a lost worker; that of a node without memory is no `RayActorError`.
LOSSES = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError)
#: Number of unanswered requests to Ray's head in a row after which the user is warned.
LONGEST_UNANSWERED = 3
#: Advice after lost workers, by stage.
REMEDIES = {
    "finetune": "a smaller --micro-batch, --gradient-checkpointing, or a --method or --model that takes less",
    "predict": "fewer --num-workers, a smaller --tokens-per-batch, or a --model that takes less",
}
REMEDY = "fewer --num-workers, or nodes with more memory"
#: Values of `DeathReason` in `ray.nodes()` for a lost node, not one shut down on purpose: unexpected, preempted.
LOST_NODE = (2, 3)
#: Timeout of a request to Ray's head, in seconds.
PATIENCE = 5


class _Watch:
    """Watcher that checks once a second which workers of this job, and which nodes, have died."""

    def __init__(self) -> None:
        self.session = _session()
        address, self.job = self.session
        channel = init_grpc_channel(address)
        self.worker_info, self.node_info = WorkerInfoGcsServiceStub(channel), NodeInfoGcsServiceStub(channel)
        self.stages: list[str] = []
        self.unanswered = 0
        self.stage, self.last = "sciqa", ""
        self.lock, self.done = threading.RLock(), threading.Event()
        self.known, self.left = set(), set()
        with contextlib.suppress(grpc.RpcError):
            self.known = {worker.worker_address.worker_id for worker in self._dead()}
            self.left = {node.node_id for node in self._dead_nodes()}
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.done.wait(1) and ray.is_initialized():
            self.check()

    def check(self) -> None:
        """Report what has died since the last check."""
        with self.lock:
            try:
                workers, nodes = list(self._dead()), self._dead_nodes()
            except grpc.RpcError:
                self._no_answer()
                return
            self.unanswered = 0
            for worker in workers:
                if worker.worker_address.worker_id not in self.known:
                    self.known.add(worker.worker_address.worker_id)
                    self._tell(worker)
            for node in nodes:
                if node.node_id not in self.left:
                    self.left.add(node.node_id)
                    self._tell_node(node)

    def _dead(self) -> Iterator[WorkerTableData]:
        """Yield workers of this job that died, but not by Ray's decision or by an exception (raised here too)."""
        for worker in self.worker_info.GetAllWorkerInfo(GetAllWorkerInfoRequest(), timeout=PATIENCE).worker_table_data:
            died = worker.exit_type in (WorkerExitType.SYSTEM_ERROR, WorkerExitType.NODE_OUT_OF_MEMORY)
            if not worker.is_alive and died and worker.job_id == self.job:
                yield worker

    def _dead_nodes(self) -> list[GcsNodeInfo]:
        asked = GetAllNodeInfoRequest(state_filter=GcsNodeInfo.DEAD)
        return list(self.node_info.GetAllNodeInfo(asked, timeout=PATIENCE).node_info_list)

    def _no_answer(self) -> None:
        """Warn that Ray's head does not answer: after a minute without answers, Ray ends this process silently."""
        self.unanswered += 1
        if self.unanswered == LONGEST_UNANSWERED:
            self._say(
                f"Ray's head at {self.session[0]} does not answer; if it does not within a minute, the run ends, "
                "and the same command goes on where it was"
            )

    def _tell_node(self, node: GcsNodeInfo) -> None:
        if node.death_info.reason in LOST_NODE:
            reason = " ".join(node.death_info.reason_message.split()) or "no reason given"
            self._say(f"the node {node.node_manager_address} is lost ({reason}); its work is done again")

    def _tell(self, worker: WorkerTableData) -> None:
        self.last = f"on {worker.worker_address.ip_address} (process {worker.pid}) {_how(worker)}"
        self._say(f"a worker {self.last}; what it had begun is done again")
        if is_console_verbose():
            console.print(worker.exit_detail, markup=False, highlight=False, soft_wrap=True)

    def _say(self, line: str) -> None:
        stage = self.stages[-1] if self.stages else "sciqa"
        console.print(f"{stage}: {line}", markup=False, highlight=False, soft_wrap=True)

    def error(self, said: str) -> LostWorkersError:
        """Return the error of a run that ended because of lost workers."""
        last = f"; the last one {self.last}" if self.last else ""
        remedy = REMEDIES.get(self.stage, REMEDY)
        return LostWorkersError(f"{self.stage}: {said}{last}; try {remedy}. What is finished is kept")

    def stop(self) -> None:
        """End the thread before Ray shuts down."""
        self.done.set()
        self.thread.join(timeout=5)


def _how(worker: WorkerTableData) -> str:
    """Return in words how a worker died."""
    said = " ".join(worker.exit_detail.split())
    if worker.exit_type == WorkerExitType.NODE_OUT_OF_MEMORY:
        used = said.partition(" was ")[2].partition(" (")[0]
        return f"was killed, since its node ran out of memory ({used or said})"
    code = said.partition("exit code ")[2].split(".")[0]
    if code:
        return f"ended with exit code {code}"
    return "was killed by a signal, which a system out of memory sends too, or crashed"


_watch: _Watch | None = None


def watch_workers() -> None:
    """Start to watch the workers of this process's job, once per connection to Ray."""
    global _watch
    if _watch is None or not _watch.thread.is_alive() or _watch.session != _session():
        if _watch:
            _watch.stop()
        _watch = _Watch()
        atexit.register(_watch.stop)


def _session() -> tuple[str, bytes]:
    """Return the address of the cluster and the id of this process's job there."""
    context = ray.get_runtime_context()
    return context.gcs_address, bytes.fromhex(context.get_job_id())


@contextlib.contextmanager
def report_worker_losses(stage: str) -> Iterator[None]:
    """Report workers that die meanwhile under the name of a stage."""
    if (watched := _watch) is None:
        yield
        return
    watched.stage, watched.last = stage, ""
    watched.stages.append(stage)
    try:
        yield
    finally:
        watched.check()
        with watched.lock:
            watched.stages.remove(stage)


def worker_loss_error(error: BaseException | None) -> LostWorkersError | None:
    """Return the error of a run that ended because of a lost worker or node; None for any other error."""
    while error is not None:
        if isinstance(error, LostWorkersError):
            return error
        of_training = getattr(error, "worker_failures", {}).values()
        # A failed health check of Ray Train carries the worker's error, unless the worker was only slow to answer.
        found = [getattr(each, "health_check_failure", each) for each in of_training]
        if _watch and any(map(_is_loss, [error, *found])):
            for _ in range(20):  # Ray's head may learn of the loss later than this process
                _watch.check()
                if _watch.last:
                    break
                time.sleep(0.1)
            return _watch.error("a worker was lost again and again")
        error = error.__cause__ or error.__context__
    return None


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, LOSSES) and not getattr(error, "actor_init_failed", False)
