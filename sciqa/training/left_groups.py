"""Placement groups that stopped trials leave: they are removed, so that the next trial has their room.

Ray Train's controller reserves its workers by a placement group, which outlives it until the driver ends if it is
killed, as it is when Ray Tune stops its trial. Ray Train has a cleaner for this, which asks Ray's state API (seen with
Ray 2.60): part of the dashboard, which a local Ray does not start. So the next trial would wait for ever.
"""

import contextlib
import threading
from collections.abc import Iterator

import grpc
import ray
from ray import PlacementGroupID
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.core.generated.gcs_service_pb2 import GetAllPlacementGroupRequest
from ray.core.generated.gcs_service_pb2_grpc import PlacementGroupInfoGcsServiceStub
from ray.util.placement_group import PlacementGroup, remove_placement_group


@contextlib.contextmanager
def left_groups_removed() -> Iterator[None]:
    """Remove meanwhile, once a second, the placement groups of this job whose actors have died."""
    context = ray.get_runtime_context()
    job = bytes.fromhex(context.get_job_id())
    asked = PlacementGroupInfoGcsServiceStub(init_grpc_channel(context.gcs_address))
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            with contextlib.suppress(grpc.RpcError):
                reply = asked.GetAllPlacementGroup(GetAllPlacementGroupRequest(), timeout=5)
                for group in reply.placement_group_table_data:
                    if group.creator_job_id == job and is_left_group(group):
                        remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_left_group(group: PlacementGroupTableData) -> bool:
    """Whether a placement group holds resources for an actor that has died; those of drivers and tasks have none."""
    of_actor = group.creator_actor_id.strip(b"\xff") != b""
    return of_actor and group.creator_actor_dead and group.state != PlacementGroupTableData.REMOVED
