"""The command line: `sciqa STEP --option value`; every file of `jobs/` uses it too."""

import atexit
import dataclasses
import difflib
import gc
import importlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from sciqa import __version__
from sciqa.cli_results import print_cli_results
from sciqa.core.console import VERBOSE, console, is_console_verbose, quiet_console
from sciqa.core.errors import InputError, find_input_error
from sciqa.core.imports import quick_imports

if TYPE_CHECKING:
    import yaml


class Step(NamedTuple):
    """A step of the command line; its module is imported when the step is run.

    Attributes:
        about: one line of help.
        module: name of the module with the function and the options.
        function: name of the function that runs the step.
        options: name of the dataclass of its options.
        resumes: whether the same command resumes a run that was stopped.
    """

    about: str
    module: str
    function: str
    options: str
    resumes: bool = True

    def load(self) -> tuple[Callable, type]:
        """Return the function and the class of its options."""
        module = importlib.import_module(self.module)
        return getattr(module, self.function), getattr(module, self.options)


STEPS = {
    "exam": Step(
        "answer an exam: corpus, index, retrieve, predict and report",
        *("sciqa.run", "run_exam", "RunExamOptions"),
    ),
    "corpus": Step("turn articles into the passages table", "sciqa.corpus.passages", "build_passages", "CorpusOptions"),
    "embedder": Step(
        "make a static embedder: distilled from another, or word vectors trained on the passages",
        *("sciqa.retrieval.static_training", "make_embedder", "EmbedderOptions", False),
    ),
    "index": Step("embed and index the passages, shard by shard", "sciqa.retrieval", "build_index", "IndexOptions"),
    "retrieve": Step(
        "find the passages of every question, or measure how well",
        *("sciqa.retrieval", "evaluate_or_retrieve", "EvaluateOptions"),
    ),
    "predict": Step("rank the options of every question", "sciqa.predict", "predict", "PredictOptions"),
    "prompt": Step("print what the model reads", "sciqa.predict.show_prompts", "show_prompts", "PromptOptions", False),
    "ask": Step(
        "answer one question: rank its options, or reply in words with citations",
        *("sciqa.ask", "ask", "AskOptions", False),
    ),
    "serve": Step("answer questions over HTTP, with a page to ask on", "sciqa.serve", "serve", "ServeOptions", False),
    "finetune": Step(
        "train an adapter, or a whole model, on questions with answers",
        *("sciqa.run_training", "run_finetune", "RunFinetuneOptions"),
    ),
    "sweep": Step("train with many options, side by side", "sciqa.run_training", "run_sweep", "RunSweepOptions"),
    "sweep-predict": Step(
        "rank `validation` with many options", "sciqa.run_training", "run_sweep_predict", "RunSweepPredictOptions"
    ),
    "merge": Step("add an adapter's weights into its base model", "sciqa.models.merge", "merge", "MergeOptions", False),
    "plan": Step(
        "say what a run will take, and what has room for it, before anything is started",
        *("sciqa.planning.plan", "plan", "PlanOptions", False),
    ),
    "audit": Step(
        "find questions that also stand in training questions or the corpus",
        *("sciqa.audit.audit", "audit", "AuditOptions"),
    ),
    "generate": Step("write questions by a model from passages", "sciqa.generate", "generate", "GenerateOptions"),
    "evaluate": Step("score free answers to instructions", "sciqa.generate", "evaluate_text", "EvaluateTextOptions"),
    "report": Step("render a run as one HTML page", "sciqa.report", "report", "ReportOptions", False),
    "compare": Step("compare readers", "sciqa.report.compare_readers", "compare_readers", "CompareOptions", False),
}
#: Help on the flags that every step takes besides its options.
COMMON = (
    "--config FILE.yaml sets options that flags then override; --verbose (or SCIQA_VERBOSE=1) lets through what Ray, "
    "its workers and libraries print, from warnings on."
)
SHELLS = ("bash", "zsh", "tcsh")
#: List options that may be given without a value: no ranking of that kind.
MAY_BE_EMPTY = {"dense", "words"}
#: Options whose value may be an empty text: no prefix, no licence.
MAY_BE_BLANK = {"--query-prefix", "--passage-prefix", "--licence"}
#: Printed before the imports, which take a second or more.
FIRST_WORDS = "reading options and input"
#: Signals other than SIGINT that stopped this process; Ray Train raises a `KeyboardInterrupt` without their number.
_signals: list[int] = []


def main(arguments: list[str] | None = None) -> None:
    """Run one step. Exit codes: 0 done; 2 bad input and 1 lost workers, each with one message; 130 or 143 stopped."""
    if arguments is None:
        arguments = sys.argv[1:]
        atexit.register(gc.freeze)  # else Python looks a last time at all that has been imported, for a second
    name = arguments[0] if arguments else ""
    if name not in STEPS:
        _answer_without_step(arguments)
    started = time.monotonic()
    step = STEPS[name]
    signal.signal(signal.SIGTERM, _interrupt)
    if not {"-h", "--help"} & set(arguments):
        console.print(f"{name}: {FIRST_WORDS}", highlight=False)
    try:
        with quick_imports():
            function, kind = step.load()
            options = parse_cli_options(kind, name, step.about, arguments[1:])
        quiet_console("ray", "bitsandbytes", "transformers", "DeepSpeed")
        made = function(options)
    except KeyboardInterrupt:
        _stop(name, step)
    except Exception as error:
        if bad_input := find_input_error(error):
            _end(name, bad_input, 2)
        from sciqa.core import worker_loss

        if is_console_verbose() or not (by_loss := worker_loss.worker_loss_error(error)):
            raise
        _end(name, by_loss, 1)
    print_cli_results(made if isinstance(made, list) else [made], time.monotonic() - started)


def _answer_without_step(arguments: list[str]) -> None:
    """Handle a command line that names no step (help, version, completion, errors), and exit."""
    first = arguments[0] if arguments else ""
    if first == "--version":
        print(f"sciqa {__version__}")
    elif first == "--completion":
        _print_completion(arguments[1:])
    elif first and not first.startswith("-"):
        near = difflib.get_close_matches(first, STEPS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the steps are {', '.join(STEPS)}"
        _end("", InputError(f"no step {first!r}; {hint}"), 2)
    else:
        wants_help = first in ("-h", "--help")
        to = sys.stdout if wants_help else sys.stderr
        print("usage: sciqa STEP [--config FILE.yaml] [OPTIONS]\n", file=to)
        for name, step in STEPS.items():
            print(f"  {name:<13} {step.about}", file=to)
        print("\n`sciqa STEP --help` lists the options of a step, `sciqa --version` prints the version and", file=to)
        print(f"`sciqa --completion {'|'.join(SHELLS)}` a script that completes commands in that shell.", file=to)
        sys.exit(0 if wants_help else 2)
    sys.exit(0)


def _print_completion(shells: list[str]) -> None:
    """Print a shell script that completes steps and options."""
    import tyro

    if len(shells) != 1 or shells[0] not in SHELLS:
        _end("", InputError(f"--completion: one of {', '.join(SHELLS)} expected"), 2)
    kinds: dict[str, Callable] = {name: step.load()[1] for name, step in STEPS.items()}
    tyro.extras.subcommand_cli_from_dict(kinds, prog="sciqa", args=["--tyro-print-completion", shells[0]])


def _interrupt(number: int, _: object) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def _stop(name: str, step: Step) -> None:
    """Exit after a signal has stopped a step, SIGINT (Ctrl-C) or SIGTERM."""
    for each in (signal.SIGINT, signal.SIGTERM):  # a second one would print a traceback while Ray shuts down
        signal.signal(each, signal.SIG_IGN)
    print(f"\nsciqa {name}: stopped" + "; the same command goes on from here" * step.resumes, file=sys.stderr)
    sys.exit(128 + (_signals or [signal.SIGINT])[-1])


def _end(step: str, error: Exception, code: int) -> None:
    print(f"{f'sciqa {step}'.strip()}: error: {error}", file=sys.stderr)
    sys.exit(code)


def parse_cli_options(kind: type, step: str, about: str, arguments: list[str]) -> object:
    """Return a step's options from flags, which override those of a YAML file (`--config FILE` or `--config=FILE`).

    `--verbose`, which every step takes, becomes an environment variable, so that workers have it too.

    Raises:
        InputError: the file is missing, is not a mapping, or names an option that the step does not have; or an option
            is given an empty value, or none where it takes a list.
    """
    import tyro

    path, arguments = _take_config(arguments)
    if path is not None:
        given = read_cli_config(path, kind)
        _check_values(kind, given, f"{path}: ")
        first = next((at for at, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
        # Options of the file go after the question of `ask`: before it, a list option would absorb it.
        arguments = arguments[:first] + given + arguments[first:]
    if "--verbose" in arguments:
        os.environ[VERBOSE] = "1"
        arguments = [argument for argument in arguments if argument != "--verbose"]
    _check_values(kind, arguments)
    return tyro.cli(
        kind,
        prog=f"sciqa {step}",
        description=about[0].upper() + about[1:] + ". " + COMMON,
        args=arguments,
    )


def _check_values(kind: type, arguments: list[str], where: str = "") -> None:
    """Raise `InputError` for a list option without a value, and for an empty value, as of a variable that is not set.

    Their steps would take them for options that are not given. The message begins with `where` they are given.
    """
    lists = {field.name for field in dataclasses.fields(kind) if "tuple[" in str(field.type)} - MAY_BE_EMPTY
    flags = {f"--{name.replace('_', '-')}" for name in lists}
    flag = ""
    for argument, following in itertools.pairwise([*arguments, "--"]):
        value = argument
        if argument.startswith("--"):
            flag, equals, value = argument.replace("_", "-").partition("=")
            value = value if equals else flag
        if argument.replace("_", "-") in flags and following.startswith("--"):
            raise InputError(f"{where}{argument}: no value given, at least one expected; leave it out for its default")
        if flag and flag not in MAY_BE_BLANK and not value.strip():
            raise InputError(f"{where}{flag}: an empty value given; leave it out for its default")


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the file that `--config` names, or None, and the other arguments."""
    for at, argument in enumerate(arguments):
        if argument == "--config":
            if at + 1 == len(arguments):
                raise InputError("--config: the path of a YAML file expected after it")
            return arguments[at + 1], arguments[:at] + arguments[at + 2 :]
        if argument.startswith("--config="):
            return argument.removeprefix("--config="), arguments[:at] + arguments[at + 1 :]
    return None, arguments


def read_cli_config(path: str, kind: type) -> list[str]:
    """Return the options of a YAML file as flags, texts and numbers as they are written there.

    Names may have hyphens or underscores. Booleans of options that are flags are read as such; null is not given.
    """
    import yaml

    from sciqa.core import storage

    kinds = {field.name: field.type for field in dataclasses.fields(kind)} | {"verbose": bool}
    flags: list[str] = []
    lines: dict[str, int] = {}
    try:
        loader = yaml.SafeLoader(storage.read_bytes(path))
        for key, node in _config_pairs(path, loader.get_single_node()):
            name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
            if name not in kinds:
                raise InputError(f"{path}: no option {key.value!r}; there are {', '.join(sorted(kinds))}")
            if name in lines:
                raise InputError(f"{path}, line {line}: {key.value!r} stands in line {lines[name]} too; leave out one")
            lines[name] = line
            value, flag = _config_value(loader, node, kinds[name] is bool), name.replace("_", "-")
            if isinstance(value, list):
                flags += [f"--{flag}", *value]
            elif value is not None:
                flags += [f"--{flag}"] if value else [f"--no-{flag}"] * (name != "verbose")
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a date as the key of a mapping
        raise InputError(f"{path}: not YAML of options ({error})") from error
    return flags


def _config_pairs(path: str, root: "yaml.Node | None") -> list[tuple]:
    """Return the nodes of a YAML file's options and values; none of a file without a value."""
    if root is None or root.tag.endswith(":null"):
        return []
    if root.id != "mapping":
        raise InputError(f"{path}: `option: value` lines expected")
    return root.value


def _config_value(loader: "yaml.SafeLoader", node: "yaml.Node", is_flag: bool) -> bool | list[str] | None:
    """Return an option's value from its node in a YAML file: None for null, else texts, mappings as JSON.

    JSON has no dates, which are texts there.
    """
    if node.tag.endswith(":null") or (is_flag and node.tag.endswith(":bool")):
        return loader.construct_object(node)
    return [
        each.value if each.id == "scalar" else json.dumps(loader.construct_object(each, deep=True), default=str)
        for each in (node.value if node.id == "sequence" else [node])
    ]
