"""The `compare` step: readers of one exam beside each other, with paired tests, as a table and one HTML page."""

import time
from collections import Counter
from dataclasses import dataclass
from itertools import combinations, takewhile
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
from tyro.conf import Positional, arg

from sciqa.core import hashes, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.options import WriteOptions
from sciqa.core.summary import Summary, summary_interval_text
from sciqa.exam.finished_answers import finished_answers_path
from sciqa.exam.metrics import RESAMPLES, metric_scores, score_metrics
from sciqa.models.prompt_template import built_in_template, prompt_template_names
from sciqa.report.page import render_page
from sciqa.report.report import report_answer_precisions, report_gains, report_inputs

#: Version of what a comparison computes. Raise it with every change, so that older tables are told apart.
COMPARISON_FORMAT = 1
#: Figures of the metrics table that say what a reader takes.
USAGE = ("seconds", "tokens_in", "tokens_out", "cost", "no_letter")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("reader", "run", "name")),
        ("reference", pa.bool_()),
        *((name, pa.int64()) for name in ("questions", "ties")),
        *((f"{name}{end}", pa.float64()) for name in ("map_at_3", "accuracy") for end in ("", "_low", "_high")),
        *((f"chance_{name}", pa.float64()) for name in ("map_at_3", "accuracy")),
        *((name, pa.float64()) for name in ("difference", "difference_low", "difference_high", "p_value", "p_holm")),
        ("comparisons", pa.int64()),
        *((name, pa.int64() if name in ("tokens_in", "tokens_out", "no_letter") else pa.float64()) for name in USAGE),
        ("options", pa.map_(pa.string(), pa.string())),
    ]
)


@dataclass(kw_only=True)
class CompareOptions(WriteOptions):
    """Options of the `compare` step."""

    runs: Annotated[tuple[str, ...], Positional, arg(metavar="[RUN ...]")] = ()
    """Output folders of the runs whose readers are compared, all of one exam; by default OUTPUT alone."""
    names: tuple[str, ...] = ()
    """Readers to compare (names in RUN/answers); each of these in every run that has it. By default all readers."""
    baseline: str | None = None
    """Reader that the others are compared with, as the table names it: NAME, or RUN/NAME where several runs have that
    name. By default the reader with the best MAP@3; then every pair counts as a comparison."""

    def __post_init__(self) -> None:
        """Make the paths absolute, and check that no run is given twice, or as a name."""
        super().__post_init__()
        self.runs = tuple(storage.absolute_path(run.rstrip("/")) for run in self.runs) or (self.output.rstrip("/"),)
        if repeated := [run for run, times in Counter(self.runs).items() if times > 1]:
            raise InputError(f"{repeated[0]}: given twice as a RUN; give each run once")
        if paths := [name for name in self.names if "/" in name]:
            raise InputError(
                f"--names: {paths[0]!r} given, names of readers expected; give folders of runs before --names"
            )


class ComparedReader(NamedTuple):
    """A reader of a run.

    Attributes:
        run: folder of the run.
        name: name of its answers table.
        answers: rows of that table, with `id`, `scores`, `probabilities`, `answer` and `average_precision`.
        inputs: what the answers follow from.
        metrics: row of the metrics table for the whole exam.
    """

    run: str
    name: str
    answers: list[dict]
    inputs: dict
    metrics: dict


def compare_readers(options: CompareOptions) -> Summary:
    """Write `OUTPUT/comparison/` and `OUTPUT/comparison.html` from the answers and metrics tables of runs.

    Raises:
        InputError: fewer than two readers, a run or name without answers, an unfinished table, answers to different
            exams or to one without known answers, or a comparison of other readers in OUTPUT.
    """
    started = time.monotonic()
    readers = read_compared_readers(options.runs, options.names)
    if options.baseline is not None and options.baseline not in readers:
        among = ", ".join(sorted(readers))
        raise InputError(f"--baseline: no reader {options.baseline!r} among those compared: {among}")
    folder = storage.join_paths(options.output, "comparison")
    identities = {label: hashes.rows_hash(reader.answers) for label, reader in readers.items()}
    inputs = {"format": COMPARISON_FORMAT, "readers": identities, "baseline": options.baseline}
    with lock(folder):
        tables.begin_table(folder, inputs, overwrite=options.overwrite)
        rows, same = comparison_rows(readers, options.baseline)
        written = [row | {"options": list(row["options"].items())} for row in rows]
        tables.write_table(tables.table_part_path(folder, 0), pa.Table.from_pylist(written, schema=SCHEMA))
        note = comparisons_note(rows, options.baseline)
        page = render_page("compare.html.j2", title="comparison of readers", rows=rows, same=same, note=note)
        storage.write_bytes(storage.join_paths(options.output, "comparison.html"), page)
        tables.finish_table(folder, {"format": COMPARISON_FORMAT, "inputs": inputs})
    made = f"{len(rows)} readers on {rows[0]['questions']:,} questions, {rows[0]['reader']} best; {note}"
    return Summary("compare", folder, made, time.monotonic() - started, _printed(rows))


def read_compared_readers(runs: tuple[str, ...], names: tuple[str, ...]) -> dict[str, ComparedReader]:
    """Return the readers of runs by their labels: the name, or RUN/NAME where several runs have one of that name.

    Without names, all readers are taken.

    Raises:
        InputError: see `compare_readers`.
    """
    found = [(run, name) for run in runs for name in _reader_names(run, names)]
    if missing := sorted(set(names) - {name for _, name in found}):
        there = sorted({name for run in runs for name in _reader_names(run, ())})
        raise InputError(f"--names: no reader {missing[0]!r} in {', '.join(runs)}; there are {', '.join(there)}")
    if len(found) < 2:
        raise InputError(
            f"{runs[0]}: one reader, {found[0][1]}, at least two expected; name more runs, or more --names"
        )
    first = finished_answers_path(*found[0])
    exams, readers = [], []
    for run, name in found:
        folder = finished_answers_path(run, name)
        inputs = tables.read_table_manifest(folder, "predict")["inputs"]
        exams.append(inputs["exam"])
        if inputs["exam"] != exams[0]:
            raise InputError(
                f"{folder}: answers to another exam than those in {first}; give runs of one exam, or choose readers of "
                "it by --names"
            )
        readers.append((run, name, inputs))
    read = [_read_reader(*reader) for reader in readers]
    for reader in read[1:]:
        if [row["id"] for row in reader.answers] != [row["id"] for row in read[0].answers]:
            folder = finished_answers_path(reader.run, reader.name)
            raise InputError(
                f"{folder}: rows of other questions than in {first}, though both are of one exam; files of one of them "
                "were changed or lost: run `sciqa predict --overwrite` for that one"
            )
    return dict(zip(_labels(found), read, strict=True))


def _reader_names(run: str, names: tuple[str, ...]) -> list[str]:
    """Return the names of a run's answers tables, of those that are asked for; none asks for all.

    Raises:
        InputError: there are none.
    """
    there = storage.list_folders(storage.join_paths(run, "answers"))
    if not there:
        raise InputError(f"{run}: no answers in this folder; give the --output of `sciqa predict` or `sciqa exam`")
    found = [name for name in there if not names or name in names]
    if not found:
        raise InputError(f"{run}: none of the readers {', '.join(names)}; there are {', '.join(there)}")
    return found


def _read_reader(run: str, name: str, inputs: dict) -> ComparedReader:
    folder = finished_answers_path(run, name)
    columns = ["id", "scores", "probabilities", "answer", "average_precision"]
    answers = tables.read_table(folder, columns).to_pylist()
    for row in answers:
        metric_scores(row, None, folder)
    metrics = tables.read_table(storage.join_paths(run, "metrics", f"{name}.parquet")).to_pylist()
    if not metrics:
        raise InputError(f"{folder}: no question of this exam has a known answer, so readers cannot be compared on it")
    return ComparedReader(run, name, answers, inputs, metrics[0])


def _labels(found: list[tuple[str, str]]) -> list[str]:
    """Return labels of readers, given run and name of each; a run is named from the last folder that all share."""
    times = Counter(name for _, name in found)
    paths = [run.split("/") for run, _ in found]
    shared = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*(path[:-1] for path in paths), strict=False))))
    short = ["/".join(path[shared:]) for path in paths]
    return [name if times[name] == 1 else f"{run}/{name}" for run, (_, name) in zip(short, found, strict=True)]


def comparison_rows(
    readers: dict[str, ComparedReader], baseline: str | None = None
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Return the rows of the comparison, and the options that all readers have in common.

    Readers are compared with that of the label `baseline`, by default with the best. The best is chosen by the same
    answers, so that any pair might have been the one that is looked at; without a baseline, p-values are therefore
    adjusted for all pairs.

    Returns:
        Rows as in `SCHEMA`, best MAP@3 first, then best accuracy, then by label, with `options` by name; and names and
        values of the common options.
    """
    figures: dict[str, dict[str, Any]] = {
        label: score_metrics(reader.answers) or {} for label, reader in readers.items()
    }
    order = sorted(readers, key=lambda label: (-figures[label]["map_at_3"], -figures[label]["accuracy"], label))
    reference = baseline or order[0]
    others = [label for label in order if label != reference]
    pairs = [(reference, label) for label in others] if baseline else list(combinations(order, 2))
    precisions = {label: report_answer_precisions(reader.answers) for label, reader in readers.items()}
    p_values = np.array([sign_flip_p_value(precisions[one] - precisions[other]) for one, other in pairs])
    tests = dict(zip(pairs, zip(p_values.tolist(), holm(p_values).tolist(), strict=True), strict=True))
    answers = {label: {"answers": reader.answers} for label, reader in readers.items()}
    gains = {gain["other"]: gain for gain in report_gains(answers, reference)}
    options, same = _differing_options(readers)
    rows = []
    for label in order:
        reader = readers[label]
        row = {"reader": label, "run": reader.run, "name": reader.name, "reference": label == reference}
        row |= figures[label] | {name: reader.metrics.get(name) for name in USAGE}
        row |= {"comparisons": len(pairs), "options": options[label]}
        if label != reference:
            gain, (p_value, p_holm) = gains[label], tests[reference, label]
            row |= {"difference": -gain["gain"], "difference_low": -gain["high"], "difference_high": -gain["low"]}
            row |= {"p_value": p_value, "p_holm": p_holm}
        rows.append({name: row.get(name) for name in SCHEMA.names})
    return rows, same


def _differing_options(readers: dict[str, ComparedReader]) -> tuple[dict[str, dict[str, str]], list[tuple[str, str]]]:
    """Return of each reader those options in which readers differ, and the options that are the same in all.

    An option within a group, such as those of contexts, is compared among the readers that have this group; one that
    only readers with a model have, among these.
    """
    every = {label: _named_options(reader) for label, reader in readers.items()}
    names = sorted({name for options in every.values() for name in options})
    differing, same = set(), []
    for name in names:
        owners = [options for options in every.values() if name in options]
        group = name.partition(": ")[0]
        if group == name and all("model" in options for options in owners):
            group = "model"
        compared = [options for options in every.values() if name == group or group in options]
        if len({options.get(name) for options in compared}) > 1:
            differing.add(name)
        else:
            same.append((name, owners[0][name]))
    options = {
        label: {name: own[name] for name in names if name in own and name in differing} for label, own in every.items()
    }
    return options, same


def _named_options(reader: ComparedReader) -> dict[str, str]:
    """Return what a reader's answers follow from; a model, an adapter or a shipped template also has its own name.

    A group of options is also there itself, with the value `yes`; options that are off are left out.
    """
    inputs = {name: value for name, value in reader.inputs.items() if name not in ("reader", "exam")}
    options = {name: "yes" for name, value in inputs.items() if isinstance(value, dict)} | dict(report_inputs(inputs))
    for name, column in (("model", "model"), ("embedder", "model"), ("adapter", "adapter")):
        if name in options and (named := reader.metrics.get(column)) not in (None, options[name]):
            options[name] = f"{named} ({options[name][:12]})"
    shipped = {hashes.fingerprint(built_in_template(name).text): name for name in prompt_template_names()}
    if (template := options.get("template")) in shipped:
        options["template"] = shipped[template]
    return {name: value for name, value in options.items() if value not in ("null", "false")}


def comparisons_note(rows: list[dict], baseline: str | None) -> str:
    """Return in one sentence how many comparisons were made, and what is adjusted for that."""
    number = rows[0]["comparisons"]
    why = (
        f"each other reader with {baseline}" if baseline else "every pair, since the best is chosen by the same figures"
    )
    return f"{number} comparison{'s' * (number > 1)} ({why}): p (Holm) is adjusted for their number, intervals are not"


def _printed(rows: list[dict]) -> dict[str, list[dict]]:
    """Return tables to print, by title: the scores, what readers take, and the options in which they differ."""
    reference = next(row["reader"] for row in rows if row["reference"])
    scores = [
        {"reader": row["reader"], "n": row["questions"], "MAP@3": summary_interval_text(row, "map_at_3")}
        | {"accuracy": summary_interval_text(row, "accuracy")}
        | ({} if row["reference"] else {f"MAP@3 less {reference}": summary_interval_text(row, "difference", "+.3f")})
        | ({} if row["reference"] else {"p": f"{row['p_value']:.4f}", "p (Holm)": f"{row['p_holm']:.4f}"})
        for row in rows
    ]
    chance = {
        title: f"{rows[0][f'chance_{name}']:.3f}" for title, name in (("MAP@3", "map_at_3"), ("accuracy", "accuracy"))
    }
    scores.append({"reader": "(by chance)", "n": rows[0]["questions"]} | chance)
    taken = [
        {"reader": row["reader"]} | {n.replace("_", " "): row[n] for n in USAGE if row[n] is not None} for row in rows
    ]
    names = sorted({name for row in rows for name in row["options"]})
    # The first column has the name of no reader, so that each reader has a column of its own.
    differing = [
        {"option / reader": name} | {row["reader"]: row["options"].get(name, "–") for row in rows} for name in names
    ]
    shown = {"Scores, 95 % bootstrap intervals": scores, "What the answers took": taken}
    return shown | ({"Options in which the readers differ": differing} if differing else {})


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return p-values, shape (comparisons,), adjusted for their number by Holm's step-down method (Holm 1979).

    In rising order, the first of m is multiplied by m, the next by m - 1 and so on; none becomes smaller than the one
    before it, or larger than 1. Calling those below 0.05 different makes any error with a probability below 0.05.
    """
    order = np.argsort(p_values, kind="stable")
    raised = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(raised), 1)
    return adjusted


def sign_flip_p_value(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired randomization test of equal means (Smucker et al. 2007).

    If two readers are equally good, each question's difference is as likely to have the other sign. So the p-value is
    the share of random signs that give a mean at least as far from 0 as the observed one, which itself counts as one
    of them (Phipson and Smyth 2010). Of the differences of one size, the number with a positive sign is
    binomial, so the order of the questions does not matter.

    Args:
        differences: one reader's figure less the other's on each question, shape (questions,).
        seed: seed of the signs, so that a rerun gives the same p-value.
    """
    rounded = np.abs(differences).round(12)  # differences of one size may be rounded differently
    sizes, counts = np.unique(rounded[rounded > 0], return_counts=True)
    positive = np.random.default_rng(seed).binomial(counts, 0.5, (RESAMPLES, len(counts)))
    reached = np.abs((2 * positive - counts) @ sizes) >= abs(differences.sum()) - 1e-9
    return float(1 + reached.sum()) / (1 + RESAMPLES)
