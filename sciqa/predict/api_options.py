"""Options of servers in OpenAI's form, which have the model with `--engine openai`."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from sciqa.core.errors import InputError
from sciqa.core.options import Options
from sciqa.predict.chain_options import ChainOptions


@dataclass(kw_only=True)
class ApiServerOptions(Options):
    """A server that has the model."""

    base_url: str = ""
    """With --engine openai: address of the server, up to its version, as in http://localhost:8000/v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable with the server's key, set on every node; needed only if the server asks."""
    concurrency: int = 8
    """Requests that are under way at the same time, those of all workers together."""
    timeout: float = 120.0
    """Seconds without a response after which a request is sent again."""
    price: tuple[float, float] | None = None
    """Price of a million tokens read (first) and written (second), for the cost in the summary and the metrics."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        self.at_least(1, "concurrency")
        if self.timeout <= 0:
            raise InputError(f"--timeout: {self.timeout} given, more than 0 seconds expected")
        if self.price and min(self.price) < 0:
            raise InputError(f"--price: {self.price[0]:g} {self.price[1]:g} given, at least 0 expected")
        if self.base_url:
            check_api_url_option(self.base_url)
            self.base_url = self.base_url.rstrip("/")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):  # not repeated: it may be the key itself
            raise InputError("--api-key-env: the name of an environment variable expected, not the key")

    def check_address(self, engine: str) -> None:
        """Raise `InputError` unless a server is named if, and only if, it runs the model."""
        if engine != "openai" and self.base_url:
            raise InputError(f"--base-url: not with --engine {engine}; pass --engine openai, or leave it out")
        if engine == "openai" and not self.base_url:
            raise InputError(
                "--base-url: with --engine openai the address of the server expected, as in http://localhost:8000/v1"
            )


@dataclass(kw_only=True)
class ApiOptions(ApiServerOptions, ChainOptions):
    """A server that has the reader model, and how it ranks options."""

    logprobs: bool = True
    """Rank by the log-probabilities of the letters if the server gives them; --no-logprobs: always by votes."""

    def check_engine(self, engine: str, completion: str, normalise: str) -> None:
        """Raise `InputError` unless the options of the model go with a server, or no server is named."""
        self.check_address(engine)
        if engine != "openai":
            return
        if completion not in ("auto", "letter", "reasoned"):
            raise InputError(
                f"--completion {completion}: not with --engine openai, whose servers score no given text; "
                "leave it out, and letters are ranked, or pass --completion reasoned"
            )
        if normalise != "auto":
            raise InputError("--normalise: not with --engine openai, which ranks single letters; leave it out")


def check_api_url_option(url: str) -> None:
    """Raise `InputError` unless `--base-url` is an address that can be shown and recorded: one without secrets."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        named, parts = None, urlsplit("")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "--base-url: an address without user, password, query or fragment expected; "
            "pass a key by the environment variable of --api-key-env"
        )
    if not named or not url.isprintable() or " " in url:  # such as the end of a line from Windows
        raise InputError("--base-url: an address expected, as in http://localhost:8000/v1")
