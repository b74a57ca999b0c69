"""How questions are put to a model, and the names of the choices; it needs no PyTorch, so that help shows at once."""

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "qlora", "prompt-tuning", "full"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Prompt = Literal["plain", "chat"]
Completion = Literal["text", "letter", "yes"]
Normalise = Literal["none", "tokens", "characters"]
Engine = Literal["torch", "vllm"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How questions are put to a model; it travels with an adapter, which is of use only with its own.

    Attributes:
        prompt: `chat` is the tokenizer's chat template around the question, `plain` the question alone.
        completion: what is scored after the prompt: the option's text, its letter (the prompt then lists all options),
            or a yes to the proposal of that option.
        normalise: what an option's log-likelihood is divided by.
        max_length: tokens of prompt and option together; the context is cut to fit. None is the model's own limit.
    """

    prompt: Prompt = "plain"
    completion: Completion = "text"
    normalise: Normalise = "tokens"
    max_length: int | None = None
