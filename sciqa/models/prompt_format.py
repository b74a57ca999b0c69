"""Question format of a model, and the values of related options; without PyTorch, so that `--help` is fast."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core.adapter_files import read_adapter_record
from sciqa.core.errors import InputError
from sciqa.core.model_files import ABOUT_TRAINED, Family

Method = Literal["lora", "qlora", "prompt-tuning", "full"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Prompt = Literal["plain", "chat"]
TrainedCompletion = Literal["text", "letter", "yes"]
Completion = Literal[TrainedCompletion, "reasoned"]
Normalise = Literal["none", "tokens", "characters"]
Engine = Literal["torch", "vllm", "openai"]


@dataclass(frozen=True, kw_only=True)
class PromptFormat:
    """How questions are formatted for a model; stored with each adapter, which works only with its own format.

    Attributes:
        prompt: `chat` is the tokenizer's chat template around the question, `plain` the question alone.
        completion: what is scored after the prompt: the option's text, its letter (the prompt then lists all options),
            or a yes to the question whether that option is right; `reasoned`: its letter, after a text that the model
            writes.
        normalise: the length that divides an option's log-likelihood, if any.
        max_length: most tokens of prompt and option together; the context is cut to fit. None is the model's limit.
        template: text of the template of the prompt; None is the built-in form.
        template_name: name of its file, for messages.
    """

    prompt: Prompt = "plain"
    completion: Completion = "text"
    normalise: Normalise = "tokens"
    max_length: int | None = None
    template: str | None = None
    template_name: str = ""


def check_prompt_format(prompt: str, model: str, family: Family) -> None:
    """Raise `InputError` if `--prompt chat` is given for a model that is not causal, and so has no chat template."""
    if prompt == "chat" and family != "causal":
        raise InputError(f"--prompt chat: for causal models only, and {model} is {family}; leave it out")


def read_prompt_format(folder: str) -> PromptFormat | None:
    """Return the question format that an adapter or fine-tuned model was trained with, if known."""
    style = read_adapter_record(folder).get("style")
    try:
        return PromptFormat(**style) if style else None
    except TypeError as error:
        raise InputError(f"{folder}: {ABOUT_TRAINED} is of another version of this program ({error})") from error
