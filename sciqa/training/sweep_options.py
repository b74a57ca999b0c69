"""Trials of a sweep: combinations of options, each checked before anything is trained."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple, get_type_hints

import yaml

from sciqa.core.errors import InputError
from sciqa.core.options import Options, RayOptions, WriteOptions
from sciqa.exam.options import QuestionOptions
from sciqa.training.options import FinetuneOptions

#: Options that the trials of a sweep share: where it runs and writes, and what they are compared on.
SHARED = {field.name for kind in (RayOptions, WriteOptions, QuestionOptions) for field in fields(kind)}
SHARED |= {"name", "objective", "validation", "validation_contexts"}
#: Random values of an option by the name of their distribution: functions of the arguments given and of a generator.
DRAWS: dict[str, Callable] = {
    "uniform": lambda given, rng: rng.uniform(*map(float, given)),
    "loguniform": lambda given, rng: math.exp(rng.uniform(*(math.log(float(each)) for each in given))),
    "randint": lambda given, rng: rng.randint(*map(int, given)),
    "choice": lambda given, rng: rng.choice(list(given)),
}


@dataclass(kw_only=True)
class SearchOptions(Options):
    """Which options of `finetune` vary over the trials of a sweep."""

    search: str = "{}"
    """Values of options, all combinations of which are tried: a list, or a distribution of which --samples values are
    drawn, as in '{peft: [{r: 8}, {r: 16}], learning_rate: {loguniform: [1e-5, 1e-3]}}'; there are uniform, loguniform,
    randint (both ends included) and choice."""
    trials: tuple[str, ...] = ()
    """Options that vary together, for each of which --search is tried: '{name: ia3, peft: {peft_type: IA3}}', where
    `name` is the end of the trial's name."""
    samples: int = 1
    """Draws for each combination of the other values, if --search has distributions."""
    asha: int | None = None
    """Stop a trial that is not in the best part, one in this many, where it is compared (ASHA); by default none is."""
    grace: int = 20
    """Per cent of its steps after which a trial is first compared with others, with --asha."""
    concurrent: int | None = None
    """Most trials at once; by default as many as the cluster now has room for."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        self.at_least(1, "samples", "concurrent", "grace")
        self.at_least(2, "asha")
        if self.grace > 100:
            raise InputError(f"--grace: {self.grace} given, 1 to 100 expected")


@dataclass(kw_only=True)
class SweepOptions(SearchOptions, FinetuneOptions):
    """Options of the `sweep` step, and those that its trials share."""


class Trial(NamedTuple):
    """One training of a sweep.

    Attributes:
        options: options of the training; `options.name` is the name of the trial.
        varied: values of the options that vary over the sweep.
    """

    options: FinetuneOptions
    varied: dict[str, object]

    @property
    def name(self) -> str:
        """Name of the trial, and of its result in `OUTPUT/trained/`."""
        return self.options.name


def sweep_trials(options: SweepOptions, kind: type[FinetuneOptions] = FinetuneOptions) -> list[Trial]:
    """Return the trials of a sweep, with names that begin with that of the sweep.

    Args:
        options: options of the sweep; the seed determines the draws.
        kind: class of the options of a trial; those that do not vary are taken from `options`.

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
            for _ in range(options.samples):
                drawn = {
                    name: value(rng) if callable(value) else value for name, value in zip(search, values, strict=True)
                }
                chosen.append((label, given | drawn))
    counts = Counter(label for label, _ in chosen)
    shared = {field.name: getattr(options, field.name) for field in fields(kind)}
    varied = list(dict.fromkeys(name for _, given in chosen for name in given))
    trials = []
    for number, (label, given) in enumerate(chosen, 1):
        parts = [options.name, *[label] * bool(label), *[str(number)] * (not label or counts[label] > 1)]
        trials.append(_trial(kind, shared | {"name": "-".join(parts)}, given, varied))
    _check_distinct(trials)
    return trials


def _check_samples(options: SweepOptions, search: dict) -> None:
    if not (search or options.trials):
        raise InputError("--search: the options to vary expected, as in '{learning_rate: [1e-4, 5e-4]}', or --trials")
    if options.samples > 1 and not any(isinstance(given, dict) for given in search.values()):
        raise InputError("--samples: draws from the distributions of --search, which has none; leave it out")


def _read_mapping(flag: str, text: str) -> dict:
    """Return a mapping in YAML; names may have hyphens or underscores."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{flag}: not YAML ({error})") from error
    if not isinstance(given, dict):
        raise InputError(f"{flag}: {text!r} given, a mapping such as '{{learning_rate: 1e-4}}' expected")
    return {str(name).replace("-", "_"): value for name, value in given.items()}


def _alternatives(name: str, given: object) -> list:
    """Return the values of an option that are combined with those of others, or a function that draws one."""
    if isinstance(given, list) and given:
        return given
    if isinstance(given, dict) and len(given) == 1 and isinstance(arguments := next(iter(given.values())), list):
        distribution = next(iter(given))
        try:
            draw = partial(DRAWS[distribution], arguments)
            draw(random.Random())
        except (KeyError, TypeError, ValueError, IndexError):
            pass  # told below
        else:
            return [draw]
    forms = "uniform: [low, high], loguniform: [low, high], randint: [low, high] or choice: [a value, …]"
    raise InputError(f"--search: {name}: {given!r} given, a list of values or one of {{{forms}}} expected")


def _trial(kind: type[FinetuneOptions], shared: dict, given: dict, varied: list[str]) -> Trial:
    """Return a trial, whose options check themselves."""
    from pydantic import TypeAdapter, ValidationError  # Ray Train brings it

    hints = {name: hint for name, hint in get_type_hints(FinetuneOptions).items() if name not in SHARED}
    values = {}
    for name, value in given.items():
        if name not in hints:
            why = "is shared by all trials" if name in SHARED else "is no option of finetune"
            raise InputError(f"{shared['name']}: {name!r} {why}; there are {', '.join(sorted(hints))}")
        try:
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).strip()
            values[name] = TypeAdapter(hints[name]).validate_python(text if isinstance(value, dict) else value)
        except ValidationError as error:
            raise InputError(f"{shared['name']}: {name}: {value!r} given; {error.errors()[0]['msg']}") from error
    try:
        options = kind(**shared | values)
    except InputError as error:
        raise InputError(f"{shared['name']}: {error}") from error
    return Trial(options, {name: getattr(options, name) for name in varied})


def _check_distinct(trials: list[Trial]) -> None:
    """Raise `InputError` if trials have the same options or name, or other questions but the same contexts."""
    seen: dict[str, int] = {}
    questions: dict[str, str] = {}
    for number, trial in enumerate(trials, 1):
        options = trial.options
        for what in (repr(vars(options) | {"name": ""}), trial.name):
            if (first := seen.setdefault(what, number)) != number:
                raise InputError(f"{trial.name}: trial {number} is the same as trial {first}; leave out one of them")
        if questions.setdefault(options.train_contexts, options.train) != options.train:
            raise InputError(f"{trial.name}: other questions than those of trials before need another train_contexts")
