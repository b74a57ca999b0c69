"""What the `predict` step needs for `--completion reasoned`: checks of options, arguments of the reader, and inputs."""

from typing import TYPE_CHECKING

from sciqa.core.errors import InputError
from sciqa.core.model_files import Family, model_file_family, read_model_file
from sciqa.models.letters import LETTERS_FORMAT
from sciqa.predict.chain_options import chain_option_inputs

if TYPE_CHECKING:
    from sciqa.predict.options import PredictOptions


def check_reasoned_work(options: "PredictOptions") -> None:
    """Raise `InputError` if other options do not go with `--completion reasoned`."""
    clashes = {
        "--engine vllm": (options.engine == "vllm", "which scores here; start vLLM's server and pass --engine openai"),
        "--stream": (options.stream, "which would read all weights anew for every token"),
        "--rotations": (options.rotations > 1, "which averages over prompts; pass --samples"),
        "--normalise": (options.normalise != "auto", "since letters are ranked by votes"),
        "--temperature": (
            options.temperature is not None and options.samples_of_question(True) == 1,
            "for a single chain, which is the likeliest; pass --samples too",
        ),
    }
    for name, (given, why) in clashes.items():
        if given:
            raise InputError(f"{name}: not with --completion reasoned, {why}")
    if options.in_api:
        return
    check_reasoned_work_model(options.model, model_file_family(options.model))
    limit = read_model_file(options.model, "config.json").get("max_position_embeddings")
    if limit and limit <= (tokens := options.tokens_of_answer(True)):
        raise InputError(
            f"--max-tokens: {tokens} given, and {options.model} has place for {limit}, prompt included; pass fewer"
        )


def check_reasoned_work_model(model: str, family: Family) -> None:
    """Raise `InputError` unless a model of this family can write its reasons."""
    if family != "causal":
        raise InputError(
            f"--completion reasoned: causal models write their reasons, and {model} is {family}; leave it out"
        )


def reasoned_work_arguments(options: "PredictOptions", arguments: dict) -> dict:
    """Return the arguments of `sciqa.predict.reasoned.ReasonedReader`, made from those of a `ModelReader`."""
    settings = {
        "samples": options.samples_of_question(True),
        "max_tokens": options.tokens_of_answer(True),
        "temperature": options.temperature,
        "seed": options.seed,
    }
    return {name: value for name, value in arguments.items() if name != "rotations"} | {"settings": settings}


def reasoned_work_inputs(options: "PredictOptions") -> dict:
    """Return what chains follow from, for the inputs of a table; nothing for another completion."""
    if not options.is_reasoned:
        return {}
    return {"letters": LETTERS_FORMAT} | chain_option_inputs(options, True)
