"""The command line: `sciqa STEP --option value`, and the same for every file of `jobs/`."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable

import tyro
import yaml
from rich.console import Console
from rich.table import Table

from sciqa import lost, storage
from sciqa.cluster import Summary
from sciqa.console import VERBOSE, quiet, verbose
from sciqa.corpus import CorpusOptions, build_passages
from sciqa.errors import InputError, find_input_error
from sciqa.exam import ReportOptions, report
from sciqa.exam.report import differences
from sciqa.inference import AskOptions, PredictOptions, ask, predict
from sciqa.models.merge import MergeOptions, merge
from sciqa.plan import PlanOptions, plan
from sciqa.retrieval import EvaluateOptions, IndexOptions, build_index, retrieve_or_evaluate
from sciqa.run import RunExamOptions, RunFinetuneOptions, run_exam, run_finetune

#: Every step: its function, its options and one line of help.
STEPS: dict[str, tuple[Callable, type, str]] = {
    "exam": (run_exam, RunExamOptions, "answer an exam: corpus, index, retrieve, predict and report"),
    "corpus": (build_passages, CorpusOptions, "turn articles into the passages table"),
    "index": (build_index, IndexOptions, "embed the passages and index them, shard by shard"),
    "retrieve": (retrieve_or_evaluate, EvaluateOptions, "find the passages of every question, or measure how well"),
    "predict": (predict, PredictOptions, "rank the options of every question"),
    "ask": (ask, AskOptions, "answer one question: rank its options, or reply in words with citations"),
    "finetune": (run_finetune, RunFinetuneOptions, "train an adapter, or a whole model, on questions with answers"),
    "merge": (merge, MergeOptions, "add an adapter's weights into its base model"),
    "plan": (plan, PlanOptions, "say what a run will take, and what has room for it, before anything is started"),
    "report": (report, ReportOptions, "render a run as one HTML page"),
}
#: What every step takes besides its options.
COMMON = (
    "--config FILE.yaml sets options that flags then override; --verbose (or SCIQA_VERBOSE=1) lets through what Ray, "
    "its workers and libraries print, from warnings on."
)


def main(arguments: list[str] | None = None) -> None:
    """Run one step and exit: 0 if it is done; with one message 2 for bad input, 1 for lost workers; 130 if stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in STEPS:
        wants_help = bool(arguments) and arguments[0] in ("-h", "--help")
        print("usage: sciqa STEP [--config FILE.yaml] [OPTIONS]\n", file=sys.stdout if wants_help else sys.stderr)
        for name, (_, _, about) in STEPS.items():
            print(f"  {name:<9} {about}", file=sys.stdout if wants_help else sys.stderr)
        print("\n`sciqa STEP --help` lists the options of a step.", file=sys.stdout if wants_help else sys.stderr)
        sys.exit(0 if wants_help else 2)
    function, kind, about = STEPS[arguments[0]]
    started = time.monotonic()
    try:
        options = parse_options(kind, arguments[0], about, arguments[1:])
        quiet("ray", "bitsandbytes", "transformers", "DeepSpeed")
        made = function(options)
    except KeyboardInterrupt:
        if not (error := lost.ended()):
            sys.exit(130)
        _end(arguments[0], error, 1)
    except Exception as error:
        if bad_input := find_input_error(error):
            _end(arguments[0], bad_input, 2)
        if verbose() or not (by_loss := lost.cause(error)):
            raise
        _end(arguments[0], by_loss, 1)
    show(made if isinstance(made, list) else [made], time.monotonic() - started)


def _end(step: str, error: Exception, code: int) -> None:
    print(f"sciqa {step}: error: {error}", file=sys.stderr)
    sys.exit(code)


def parse_options(kind: type, step: str, about: str, arguments: list[str]) -> object:
    """Return a step's options from flags over those of a YAML file given as `--config FILE`.

    `--verbose`, which every step takes, is an environment variable from there on, so that workers have it too.

    Raises:
        InputError: the file is missing, is no mapping, or names an option that the step does not have.
    """
    if "--config" in arguments[:-1]:
        at = arguments.index("--config")
        given = read_config(arguments[at + 1], kind)
        rest = arguments[:at] + arguments[at + 2 :]
        first = next((number for number, argument in enumerate(rest) if argument.startswith("-")), len(rest))
        arguments = rest[:first] + given + rest[first:]  # the question of `ask` stays out of reach of lists
    if "--verbose" in arguments:
        os.environ[VERBOSE] = "1"
        arguments = [argument for argument in arguments if argument != "--verbose"]
    return tyro.cli(
        kind,
        prog=f"sciqa {step}",
        description=about[0].upper() + about[1:] + ". " + COMMON,
        args=arguments,
    )


def read_config(path: str, kind: type) -> list[str]:
    """Return the options in a YAML file, hyphens or underscores in their names, as flags."""
    try:
        given = yaml.safe_load(storage.read_bytes(path)) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error})") from error
    if not isinstance(given, dict):
        raise InputError(f"{path}: `option: value` lines expected")
    names = {field.name for field in dataclasses.fields(kind)} | {"verbose"}
    flags = []
    for option, value in given.items():
        name = str(option).replace("-", "_")
        if name not in names:
            raise InputError(f"{path}: no option {option!r}; there are {', '.join(sorted(names))}")
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags += [f"--{flag}"] if value else [f"--no-{flag}"] * (name != "verbose")
        elif isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)]
        elif value is not None:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


def show(summaries: list[Summary], seconds: float) -> None:
    """Print what was made: figures as tables, then a line per step with its path."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    predicted = [summary.details for summary in summaries if summary.stage == "predict" and summary.details]
    if predicted:
        console.print(_score_table(predicted))
    for summary in summaries:
        if shown := {"ask": _show_sources, "check": _show_lines}.get(summary.stage):
            shown(summary.details, console)
        if "evaluation" in summary.details:
            console.print(_retrieval_table(summary.details["evaluation"]))
        for gain in differences(summary.details["readers"]) if summary.stage == "report" else []:
            if not predicted or {gain["reader"], gain["other"]} <= {row["reader"] for row in predicted}:
                console.print(
                    f"{gain['reader']} over {gain['other']}: {gain['gain']:+.3f} MAP@3, "
                    f"paired interval [{gain['low']:+.3f}, {gain['high']:+.3f}], {gain['questions']:,} questions",
                    markup=False,
                )
        for title, rows in summary.details.items() if summary.stage == "plan" else []:
            console.print(_plain_table(title, rows))
    for summary in summaries:
        path = f"\n{'':19}{summary.path}" if summary.path else ""
        print(f"{summary.stage:<9} {summary.seconds:6.1f} s  {summary.made}{path}")
    if len(summaries) > 1:
        print(f"{'total':<9} {seconds:6.1f} s")


def _show_lines(details: dict, console: Console) -> None:
    """Print how an exam is understood."""
    console.print("\n".join(details["check"]), markup=False, soft_wrap=True)


def _show_sources(details: dict, console: Console) -> None:
    """Print the ranking, if any, and the passages that an answer cites, or else those that it was made from."""
    for place, (option, probability) in enumerate(details.get("ranking", ()), 1):
        console.print(f"{place:>2}  {probability:.3f}  {option}", markup=False)
    cited = details.get("cited")
    console.print("\npassages cited" if cited else "\npassages read" + ", none is cited" * (cited is not None))
    for number in cited or details["read"]:
        passage = details["passages"][number - 1]
        where = ", ".join(filter(None, [passage["title"], passage["section"]]))
        console.print(f"[{number}] {where}  {passage.get('url') or ''}".rstrip(), markup=False, soft_wrap=True)


def _score_table(readers: list[dict]) -> Table:
    table = Table(title="Exam scores, 95 % bootstrap intervals", title_justify="left")
    columns = ("reader", "questions", "MAP@3", "accuracy", "ties", "log loss", "calibration error", "position bias")
    for column in (*columns, "seconds"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    for row in readers:
        table.add_row(
            row["reader"],
            f"{row['questions']:,}",
            f"{row['map_at_3']:.3f} [{row['map_at_3_low']:.3f}, {row['map_at_3_high']:.3f}]",
            f"{row['accuracy']:.3f} [{row['accuracy_low']:.3f}, {row['accuracy_high']:.3f}]",
            f"{row['ties']}",
            f"{row['log_loss']:.3f}",
            f"{row['calibration_error']:.3f}",
            "" if row["position_bias"] is None else f"{row['position_bias']:.3f}",
            f"{row['seconds']:.0f}",
        )
    if (chance := readers[0].get("chance_map_at_3")) is not None:  # tables of earlier versions have none
        accuracy = readers[0]["chance_accuracy"]
        table.add_row("(by chance)", f"{readers[0]['questions']:,}", f"{chance:.3f}", f"{accuracy:.3f}")
    return table


def _retrieval_table(rows: list[dict]) -> Table:
    table = Table(title=f"Retrieval, {rows[0]['questions']} questions", title_justify="left")
    figures = [name for name in rows[0] if name not in ("dense", "words", "questions")]
    for column in ("dense", "words", *figures):
        table.add_column(column.replace("_at_", "@"), justify="right" if column in figures else "left")
    for row in rows:
        table.add_row(" ".join(row["dense"]), " ".join(row["words"]), *(f"{row[name]:.3f}" for name in figures))
    return table


def _plain_table(title: str, rows: list[dict]) -> Table:
    """Return a table with a column for every key; numbers have three digits, and none is shown as a dash."""
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numbers = {name: any(isinstance(row.get(name), int | float) for row in rows) for name in columns}
    for name in columns:
        table.add_column(name, justify="right" if numbers[name] else "left")
    for row in rows:
        table.add_row(*(_plain(row.get(name, "–")) for name in columns))
    return table


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
