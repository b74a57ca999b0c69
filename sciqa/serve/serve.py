"""The `serve` step: start the application on Ray Serve, and end it with the command."""

import contextlib
import hashlib
import ipaddress
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sciqa.ask.answerer import answerer_identity, check_answerer
from sciqa.core import cluster
from sciqa.core.console import console, is_console_verbose
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.model_files import model_file_bytes
from sciqa.core.progress import progress_lines
from sciqa.core.summary import Summary
from sciqa.serve.options import ServeOptions

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

#: Environment variable with the token that requests must bring.
TOKEN = "SCIQA_SERVE_TOKEN"
#: Shortest token that is accepted, in characters.
TOKEN_LENGTH = 16
#: Most requests that the web application itself works on, and as many more wait; beyond these, Ray Serve answers 503.
WEB_REQUESTS = 1000


def serve(options: ServeOptions) -> Summary:
    """Answer requests until the process is told to stop (SIGTERM, or Ctrl-C).

    Raises:
        InputError: the index or the reader is missing, the port is taken, or a token is needed and there is none.
    """
    started = time.monotonic()
    stopped = threading.Event()
    url = start_serve(options)
    if threading.current_thread() is threading.main_thread():  # Ray sets a handler of its own when it connects
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    try:
        console.print(f"serve: listening on {url}", markup=False, highlight=False)
        stopped.wait()
    finally:
        stop_serve()
    return Summary("serve", "", "stopped", time.monotonic() - started)


def start_serve(options: ServeOptions) -> str:
    """Start the application and return its address once it answers; `stop_serve` ends it.

    Raises:
        InputError: see `serve`.
    """
    require_extra("serve", "sciqa serve")
    token = serve_token(options.host)
    manifest = check_answerer(options, options.for_question("Which?", ("One", "Two")).as_row())
    _check_port(options.host, options.port)
    with progress_lines("serve", f"{manifest['rows']:,} passages, loading {options.model}"):
        with _token_kept_back():
            cluster.connect_cluster(options)
        if not cluster.is_cluster_head():
            raise InputError(
                "`sciqa serve` listens on the head node of its cluster, and this is another node; start it there, or "
                "with --num-cpus for a Ray of its own"
            )
        from ray import serve as ray_serve

        if ray_serve.status().proxies:
            raise InputError(
                "Ray Serve already runs on this cluster, with an address of its own; end it (`serve shutdown`), or "
                "start a Ray for this server alone with --num-cpus"
            )
        log = {"enable_access_log": is_console_verbose()}
        http = {"host": options.host, "port": options.port}
        if not is_console_verbose():
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            ray_serve.start(proxy_location="HeadOnly", http_options=http, logging_config=log)
            ray_serve.run(
                serve_application(options, manifest, token), name="sciqa", route_prefix="/", logging_config=log
            )
        except BaseException:
            stop_serve()
            raise
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{options.port}"


def stop_serve() -> None:
    """End the application and the Ray Serve that `start_serve` has started."""
    from ray import serve as ray_serve

    ray_serve.shutdown()


def serve_application(options: ServeOptions, manifest: dict, token: str | None) -> "Application":
    """Return the application for Ray Serve: one web application, and replicas of the models behind it.

    Of the token that requests must bring, only the sha256 leaves this process; None asks for none.
    """
    from ray import serve as ray_serve

    from sciqa.serve.replica import Replica
    from sciqa.serve.served_models import MODELS, WEB

    identity = answerer_identity(options, manifest)
    threads = cluster.cluster_threads_per_worker(options.max_replicas)
    weights = model_file_bytes(options.model) + model_file_bytes(options.embedder)
    needs = cluster.cluster_worker_needs(options, options.max_replicas, weights, options.min_replicas)
    fits = cluster.cluster_workers_that_fit(needs | cluster.cluster_accelerator_needs(options))
    if fits < options.max_replicas:
        said = f"serve: room for {fits} of --max-replicas {options.max_replicas} now; CPU threads of each: {threads}"
        console.print(said, markup=False, highlight=False)
    models = ray_serve.deployment(
        name=MODELS,
        max_ongoing_requests=max(2, round(2 * options.target_requests)),
        max_queued_requests=options.max_queued_requests,
        autoscaling_config=serve_scaling(options),
        ray_actor_options=_actor_options(options, needs),
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=30,
    )(Replica).bind(options, manifest, identity, cluster.cluster_device(options), threads)
    digest = hashlib.sha256(token.encode()).hexdigest() if token else None

    def build() -> "FastAPI":
        from sciqa.serve.app import create_app
        from sciqa.serve.served_models import ServedModels

        return create_app(ServedModels(), options, digest)

    return ray_serve.deployment(
        name=WEB,
        max_ongoing_requests=WEB_REQUESTS,
        max_queued_requests=WEB_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    )(ray_serve.ingress(build)()).bind(models)


def serve_scaling(options: ServeOptions) -> dict[str, Any]:
    """Return the autoscaling of the models' replicas, by the names of Ray Serve's `AutoscalingConfig`."""
    return {
        "min_replicas": options.min_replicas,
        "max_replicas": options.max_replicas,
        "target_ongoing_requests": options.target_requests,
        "upscale_delay_s": options.scale_up_seconds,
        "downscale_delay_s": options.scale_down_seconds,
    }


def _actor_options(options: ServeOptions, needs: dict[str, float]) -> dict[str, Any]:
    """Return the resources of a replica, by the names of Ray's actor options."""
    wanted = {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "memory": needs.get("memory")}
    kind = cluster.named_cluster_accelerator(options)
    return {name: value for name, value in wanted.items() if value is not None} | (
        {"accelerator_type": kind} if kind else {}
    )


def _check_port(host: str, port: int) -> None:
    """Raise `InputError` if this machine has no such address, or its port is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: cannot be listened on ({error}); pass another") from error


def _is_loopback(host: str) -> bool:
    """Return whether an address is reached from its own machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _token_kept_back() -> Iterator[None]:
    """Take the token out of the environment, so that no process of a Ray that starts meanwhile has it."""
    token = os.environ.pop(TOKEN, None)
    try:
        yield
    finally:
        if token is not None:
            os.environ[TOKEN] = token


def serve_token(host: str) -> str | None:
    """Return the token of the environment, or None if requests need none.

    Raises:
        InputError: there is none, and the server would be reached from other machines, or it is too short.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and not _is_loopback(host):
        raise InputError(
            f"--host {host}: reached from other machines, so requests need a token; set {TOKEN} "
            f"(at least {TOKEN_LENGTH} characters, such as `openssl rand -hex 32` prints), or listen on 127.0.0.1"
        )
    if token and (len(token) < TOKEN_LENGTH or not token.isascii()):
        raise InputError(f"{TOKEN}: a token of at least {TOKEN_LENGTH} characters, all of ASCII, expected")
    return token or None
