"""Packages that only some steps need, by the extra of this project that installs them: `pip install 'sciqa[EXTRA]'`."""

import importlib.util
from typing import Literal

from sciqa.core.errors import InputError

Extra = Literal[
    "train",
    "align",
    "openvino",
    "wikipedia",
    "html",
    "pdf",
    "static",
    "openai",
    "vllm",
    "mlflow",
    "serve",
    "rouge",
    "json",
]
#: The modules that each extra installs; they are imported only after `require_extra`.
EXTRAS: dict[Extra, tuple[str, ...]] = {
    "train": ("peft", "deepspeed", "bitsandbytes", "tensorboardX"),
    "align": ("trl", "datasets"),
    "openvino": ("openvino",),
    "wikipedia": ("mwparserfromhell",),
    "html": ("selectolax",),
    "pdf": ("pypdf",),
    "static": ("gensim", "model2vec"),
    "openai": ("openai",),
    "rouge": ("rouge_score",),
    "json": ("llguidance",),
    "vllm": ("vllm",),
    "mlflow": ("mlflow",),
    "serve": ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"),
}


def missing_of_extra(extra: Extra) -> list[str]:
    """Return the modules of an extra that are not installed, without importing any."""
    return [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]


def require_extra(extra: Extra, what: str) -> None:
    """Raise `InputError` unless all modules of an extra are installed; steps call this before any work.

    The message begins with `what`, the option or file that needs the extra.
    """
    if absent := missing_of_extra(extra):
        raise InputError(f"{what}: {', '.join(absent)} not installed; run `pip install 'sciqa[{extra}]'`")
