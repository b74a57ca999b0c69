"""What the web application asks for answers: the replicas of the models, over Ray Serve."""

import contextlib
from collections.abc import AsyncIterator
from typing import Protocol, cast

from ray import serve
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentResponseGenerator

from sciqa.core.worker_loss import LOSSES

#: Names of the application on Ray Serve and of its deployments.
APPLICATION, MODELS, WEB = "sciqa", "models", "web"
#: Errors by which Ray tells of a lost replica.
REPLICA_LOSSES = (*LOSSES, DeploymentUnavailableError)


class BusyServedModelsError(Exception):
    """As many requests wait as may wait."""


class LostServedModelsError(Exception):
    """The replica that worked on a request has ended."""


class ModelsInterface(Protocol):
    """Interface of the models: that of `sciqa.serve.replica.Replica`, and how many replicas are ready."""

    async def rank(self, question: str, options: list[str], evidence: bool) -> dict:
        """See `Replica.rank`; raises `BusyServedModelsError` or `LostServedModelsError`."""

    def write(self, question: str, earlier: list[dict], settings: dict) -> AsyncIterator[dict]:
        """See `Replica.write`; raises `BusyServedModelsError` or `LostServedModelsError`."""

    def replicas(self) -> int:
        """Return the number of replicas that are ready; may block for a moment."""


class ServedModels:
    """The replicas of the deployment `models` of this application."""

    def __init__(self) -> None:
        self.handle = serve.get_deployment_handle(MODELS, app_name=APPLICATION)

    async def rank(self, question: str, options: list[str], evidence: bool) -> dict:
        """See `ModelsInterface.rank`."""
        try:
            return await self.handle.rank.remote(question, options, evidence)
        except BackPressureError as error:
            raise BusyServedModelsError from error
        except REPLICA_LOSSES as error:
            raise LostServedModelsError from error

    async def write(self, question: str, earlier: list[dict], settings: dict) -> AsyncIterator[dict]:
        """See `ModelsInterface.write`."""
        handle = self.handle.options(stream=True)
        response = cast("DeploymentResponseGenerator", handle.write.remote(question, earlier, settings))
        try:
            async for event in response:
                yield event
        except BackPressureError as error:
            raise BusyServedModelsError from error
        except REPLICA_LOSSES as error:
            raise LostServedModelsError from error
        finally:
            # Of a request that no replica has taken, Ray raises the error again.
            with contextlib.suppress(BackPressureError, *REPLICA_LOSSES):
                response.cancel()  # without effect on an answer that is whole

    def replicas(self) -> int:
        """See `ModelsInterface.replicas`."""
        application = serve.status().applications.get(APPLICATION)
        deployment = application and application.deployments.get(MODELS)
        states = deployment.replica_states.items() if deployment else ()
        return sum(count for state, count in states if state == "RUNNING")
