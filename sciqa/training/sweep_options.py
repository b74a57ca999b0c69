"""Trials of a sweep: combinations of options, each checked before anything is trained."""

import contextlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar, get_type_hints

import yaml

from sciqa.core.errors import InputError
from sciqa.core.options import RayOptions, SeedOptions, WriteOptions
from sciqa.exam.options import ExamQuestionOptions
from sciqa.training.options import FinetuneOptions, options_mapping

#: Options that the trials of every sweep share: where they run and write, and how questions are read.
SHARED = {field.name for kind in (RayOptions, WriteOptions, ExamQuestionOptions) for field in fields(kind)} | {"name"}
#: Options of `finetune` that may vary: all others but what trials are compared on.
VARYING = {field.name for field in fields(FinetuneOptions)} - SHARED
VARYING -= {"objective", "validation", "validation_contexts"}
#: By objective, the options that its validation loss, or reward, is measured by: on which texts, in which tokens.
MEASURES = {
    "instruct": ("model", "max_length", "packing", "chat_format"),
    "dpo": ("beta", "max_length", "completion", "prompt", "template", "chat_format"),
    "reward": ("max_length", "completion", "prompt", "template", "chat_format"),
    "grpo": ("rewards",),
}
#: Random values of an option by the name of their distribution: functions of the arguments given and of a generator.
DRAWS: dict[str, Callable] = {
    "uniform": lambda given, rng: rng.uniform(*map(float, given)),
    "loguniform": lambda given, rng: math.exp(rng.uniform(*(math.log(float(each)) for each in given))),
    "randint": lambda given, rng: rng.randint(*map(int, given)),
    "choice": lambda given, rng: rng.choice(list(given)),
}


@dataclass(kw_only=True)
class TrialsOptions(SeedOptions, WriteOptions):
    """Which options of a step vary over the trials of a sweep."""

    search: str = "{}"
    """Values of options, all combinations of which are tried: a list, or a distribution of which --num-samples values
    are drawn, as in '{template: [null, sciq], seed: {randint: [0, 99]}}'; there are uniform, loguniform, randint (both
    ends included) and choice."""
    trials: tuple[str, ...] = ()
    """Options that vary together, for each of which --search is tried: '{name: letters, completion: letter, prompt:
    plain}', where `name` is the end of the trial's name."""
    num_samples: int = 1
    """Draws for each combination of the other values, if --search has distributions."""
    concurrent: int | None = None
    """Most trials at once; by default as many as the cluster now has room for."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(1, "num_samples", "concurrent")


@dataclass(kw_only=True)
class SweepOptions(TrialsOptions, FinetuneOptions):
    """Options of the `sweep` step, and those that its trials share."""

    asha: int | None = None
    """Stop a trial that is not in the best part, one in this many, where it is compared (ASHA); by default none is."""
    grace: int = 20
    """Per cent of its steps after which a trial is first compared with others, with --asha."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(1, "grace")
        self.at_least(2, "asha")
        if self.grace > 100:
            raise InputError(f"--grace: {self.grace} given, 1 to 100 expected")


class TrialOptions(Protocol):
    """Options of a trial: those of a step with a named result in a folder."""

    name: str

    @property
    def folder(self) -> str:
        """Folder of the result."""


T = TypeVar("T", bound=TrialOptions)


class SweepTrial(NamedTuple, Generic[T]):
    """One run of a step in a sweep.

    Attributes:
        options: options of the run; `options.name` is the name of the trial.
        varied: values of the options that vary over the sweep.
    """

    options: T
    varied: dict[str, object]

    @property
    def name(self) -> str:
        """Name of the trial, and of its result."""
        return self.options.name


def sweep_trials(
    options: SweepOptions, kind: type[FinetuneOptions] = FinetuneOptions
) -> list[SweepTrial[FinetuneOptions]]:
    """Return the trials of a sweep over `finetune`; see `sweep_option_trials`.

    Raises:
        InputError: as `sweep_option_trials`, or trials that cannot be compared, or rank with questions of their own.
    """
    trials = sweep_option_trials(options, kind, VARYING, "finetune")
    measures = MEASURES.get(options.objective, ())
    if varied := [name for name in measures if len({getattr(trial.options, name) for trial in trials}) > 1]:
        raise InputError(
            f"{varied[0]}: the figure that trials of --objective {options.objective} are compared by follows from it; "
            "give each value a sweep of its own"
        )
    if options.objective == "rank" and len({trial.options.train for trial in trials}) > 1:
        raise InputError(
            f"{trials[-1].name}: train: trials of --objective rank share the questions in {options.output}/train; give "
            "each of these a sweep of its own, with another --output"
        )
    return trials


def sweep_option_trials(
    options: TrialsOptions, kind: type[T], varying: set[str], step: str, **changes: object
) -> list[SweepTrial[T]]:
    """Return the trials of a sweep, with names that begin with that of the sweep.

    Args:
        options: options of the sweep; the seed determines the draws.
        kind: class of the options of a trial; those that do not vary are taken from `options`.
        varying: names of the options that may vary.
        step: name of the step.
        changes: options that are the same in all trials, but not those of the sweep.

    Raises:
        InputError: an option that cannot vary, a value that it cannot have, or two trials that are the same.
    """
    listed = [_read_mapping("--trials", text) for text in options.trials] or [{}]
    labels = [str(given.pop("name", "")) for given in listed]
    search = _read_mapping("--search", options.search)
    rng = random.Random(options.seed)
    alternatives = {name: _alternatives(name, given) for name, given in search.items()}
    _check_samples(options, search)
    chosen: list[tuple[str, dict]] = []
    for label, given in zip(labels, listed, strict=True):
        if both := given.keys() & search.keys():
            raise InputError(f"--trials: {min(both)} is in --search too; leave it out of one of them")
        for values in itertools.product(*alternatives.values()):
            for _ in range(options.num_samples):
                drawn = {
                    name: value(rng) if callable(value) else value for name, value in zip(search, values, strict=True)
                }
                chosen.append((label, given | drawn))
    counts = Counter(label for label, _ in chosen)
    shared = {field.name: getattr(options, field.name) for field in fields(kind)} | changes  # type: ignore[arg-type]
    varied = list(dict.fromkeys(name for _, given in chosen for name in given))
    trials = []
    for number, (label, given) in enumerate(chosen, 1):
        parts = [shared["name"], *[label] * bool(label), *[str(number)] * (not label or counts[label] > 1)]
        own = shared | {"name": "-".join(parts)}
        typed = _values(kind, own, given, varying, step)
        try:
            trial = kind(**own | typed)
        except InputError as error:
            raise InputError(f"{own['name']}: {error}") from error
        trials.append(SweepTrial(trial, {name: getattr(trial, name) for name in varied}))
    _check_distinct(trials)
    return trials


def _check_samples(options: TrialsOptions, search: dict) -> None:
    if not (search or options.trials):
        raise InputError("--search: the options to vary expected, as in '{seed: [0, 1]}', or --trials")
    if options.num_samples > 1 and not any(isinstance(given, dict) for given in search.values()):
        raise InputError("--num-samples: draws from the distributions of --search, which has none; leave it out")


def _read_mapping(flag: str, text: str) -> dict:
    """Return a mapping in YAML; names may have hyphens or underscores."""
    return {str(name).replace("-", "_"): value for name, value in options_mapping(flag, text, "{seed: 1}").items()}


def _alternatives(name: str, given: object) -> list:
    """Return the values of an option that are combined with those of others, or a function that draws one."""
    if isinstance(given, list) and given:
        return given
    if isinstance(given, dict) and len(given) == 1 and isinstance(arguments := next(iter(given.values())), list):
        with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):  # told below
            draw = partial(DRAWS[next(iter(given))], arguments)
            draw(random.Random())
            return [draw]
    forms = "uniform: [low, high], loguniform: [low, high], randint: [low, high] or choice: [a value, …]"
    raise InputError(f"--search: {name}: {given!r} given, a list of values or one of {{{forms}}} expected")


def _values(kind: type, shared: dict, given: dict, varying: set[str], step: str) -> dict:
    """Return values of options by name, in their types."""
    from pydantic import TypeAdapter, ValidationError  # Ray Train brings it

    hints = get_type_hints(kind)
    values = {}
    for name, value in given.items():
        if name not in varying:
            why = "is shared by all trials" if name in hints else f"is no option of {step}"
            raise InputError(f"{shared['name']}: {name!r} {why}; there are {', '.join(sorted(varying))}")
        try:
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).strip()
            values[name] = TypeAdapter(hints[name]).validate_python(text if isinstance(value, dict) else value)
        except ValidationError as error:
            raise InputError(f"{shared['name']}: {name}: {value!r} given; {error.errors()[0]['msg']}") from error
    return values


def _check_distinct(trials: list[SweepTrial[T]]) -> None:
    """Raise `InputError` if two trials have the same options, or the same name."""
    seen: dict[str, int] = {}
    for number, trial in enumerate(trials, 1):
        for what in (repr(vars(trial.options) | {"name": ""}), trial.name):
            if (first := seen.setdefault(what, number)) != number:
                raise InputError(f"{trial.name}: trial {number} is the same as trial {first}; leave out one of them")
