"""Options of the `serve` step."""

import dataclasses
from dataclasses import dataclass

from sciqa.ask.options import AskAnswerOptions, AskOptions
from sciqa.core.errors import InputError
from sciqa.core.options import RayOptions


@dataclass(kw_only=True)
class ServeOptions(AskAnswerOptions, RayOptions):
    """Options of the `serve` step: those of `ask`, which hold for every request, and those of the server."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than a loopback address requires a token in SCIQA_SERVE_TOKEN."""
    port: int = 8000
    """Port to listen on."""
    min_replicas: int = 1
    """Fewest copies of the models; more are started as requests wait."""
    max_replicas: int = 1
    """Most copies of the models."""
    target_requests: float = 2.0
    """Requests per replica, waiting ones included, above which another replica is started."""
    scale_up_seconds: float = 10.0
    """Seconds for which there must be more requests than that."""
    scale_down_seconds: float = 300.0
    """Seconds for which there must be fewer requests than that before a replica ends."""
    max_queued_requests: int = 32
    """Requests that may wait for a replica; the next one is refused with status 503."""
    max_request_bytes: int = 65536
    """Largest body of a request; a larger one is refused with status 413."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.at_least(1, "min_replicas", "max_replicas", "max_queued_requests", "max_request_bytes", "port")
        self.at_least(0, "scale_up_seconds", "scale_down_seconds")
        if self.max_replicas < self.min_replicas:
            raise InputError(
                f"--max-replicas: {self.max_replicas} given, at least --min-replicas ({self.min_replicas}) expected"
            )
        if self.target_requests <= 0:
            raise InputError(f"--target-requests: {self.target_requests} given, more than 0 expected")
        if self.port > 65535:
            raise InputError(f"--port: {self.port} given, at most 65535 expected")

    def for_question(self, question: str, options: tuple[str, ...] = (), **settings: object) -> AskOptions:
        """Return the options of `ask` for one question; without options to rank, it is answered in words.

        `settings` are fields of `AskAnswerOptions` that the request overrides, such as `temperature`.

        Raises:
            InputError: the question or a setting is invalid.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(AskAnswerOptions)}
        return AskOptions(question=question, options=options, **given | settings)

    def answer_settings(
        self, max_new_tokens: int | None, temperature: float | None, top_p: float | None, seed: int | None
    ) -> dict:
        """Return the settings of `for_question` for what a request says of its answer; None leaves the server's.

        Raises:
            InputError: more tokens than the server allows.
        """
        if max_new_tokens is not None and max_new_tokens > self.max_new_tokens:
            raise InputError(
                f"{max_new_tokens} tokens of an answer asked for, this server writes at most {self.max_new_tokens} "
                "(--max-new-tokens)"
            )
        given = {"max_new_tokens": max_new_tokens, "seed": seed}
        if temperature == 0:
            return _given(given) | {"do_sample": False, "temperature": None, "sample_top_k": None, "top_p": None}
        drawn = _given({"temperature": temperature, "top_p": top_p})
        return _given(given) | (drawn | {"do_sample": True} if drawn else {})


def _given(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if value is not None}
