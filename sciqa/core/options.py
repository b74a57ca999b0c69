"""Groups of options that many steps have (where a run writes, what it runs on), and the summary of a step."""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

from sciqa.core import storage
from sciqa.core.errors import InputError

#: Folder of Ray in which jobs that were submitted with a `--working-dir` run.
JOB_FOLDERS = "working_dir_files"
#: Values of `--accelerator` that are not a type of GPU.
ACCELERATORS = ("auto", "cpu", "gpu")


@dataclass(kw_only=True)
class Options:
    """Base of all groups of options. A step's options combine groups, each of which checks its own values.

    An option is a field of one group alone; the groups that a class inherits from are checked before it.
    """

    def __post_init__(self) -> None:
        """Refuse numbers that are not finite, which no option has a use for; this ends the chain of the groups' checks.

        Lists, as JSON and callers in Python give them, become tuples, so that they equal the defaults.

        Raises:
            InputError: an option is NaN or infinite.
        """
        for field in fields(self):
            given = getattr(self, field.name)
            if isinstance(given, list):
                setattr(self, field.name, given := tuple(given))
            for value in given if isinstance(given, tuple) else (given,):
                if isinstance(value, float) and not math.isfinite(value):
                    raise InputError(f"--{field.name.replace('_', '-')}: {value} given, a finite number expected")

    def at_least(self, least: float, *names: str) -> None:
        """Raise `InputError` if one of the named options is given and below the minimum."""
        for name in names:
            if isinstance(value := getattr(self, name), int | float) and value < least:
                raise InputError(f"--{name.replace('_', '-')}: {value} given, at least {least} expected")


@dataclass(kw_only=True)
class OutputOptions(Options):
    """Where a run is."""

    output: str = "sciqa-run"
    """Folder (or URI such as s3://bucket/run) for everything that the run writes."""

    def __post_init__(self) -> None:
        """Make a local path absolute."""
        super().__post_init__()
        self.output = storage.absolute_path(self.output)

    def fill_folder(self, name: str, *default: str) -> None:
        """Make the path of a folder option absolute; an option that is not given gets a folder in the output folder.

        Raises:
            InputError: a step that writes is given a folder in Ray's copy of a job's files.
        """
        given = getattr(self, name)
        folder = storage.absolute_path(given) if given else storage.join_paths(self.output, *default)
        if isinstance(self, WriteOptions):
            check_outside_job(name, folder)
        setattr(self, name, folder)


@dataclass(kw_only=True)
class WriteOptions(OutputOptions):
    """Where a run writes, and over what."""

    overwrite: bool = False
    """Replace what was made there from other inputs; by default it is kept and the step fails."""

    def __post_init__(self) -> None:
        """Check that the output folder is kept."""
        super().__post_init__()
        check_outside_job("output", self.output)


@dataclass(kw_only=True)
class DeviceOptions(Options):
    """What models run on."""

    accelerator: str = "auto"
    """`auto`: GPUs if there are any now; `cpu`: no GPUs; `gpu`, or a type such as A10G or H100: required by every
    worker, so that a cluster without any can start a node."""

    def __post_init__(self) -> None:
        """Check the type of GPU."""
        super().__post_init__()
        if self.accelerator in ACCELERATORS:
            return
        from ray.util.accelerators import accelerators

        kinds = {name for key, name in vars(accelerators).items() if key.isupper()}
        if self.accelerator not in kinds:
            expected = f"{', '.join(ACCELERATORS)} or one of Ray's names ({', '.join(sorted(kinds))})"
            raise InputError(f"--accelerator: {self.accelerator!r} given, {expected} expected")


@dataclass(kw_only=True)
class RayOptions(DeviceOptions, OutputOptions):
    """The Ray cluster, whose nodes see the folder of the run."""

    address: str | None = None
    """Ray cluster to connect to; by default the one of RAY_ADDRESS or on this machine, else a new local one."""
    num_cpus: int | None = None
    """CPUs of a new local Ray; leave it out to use all CPUs, or a running cluster."""

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        super().__post_init__()
        self.at_least(1, "num_cpus")
        if self.address and self.num_cpus:
            raise InputError("--num-cpus: sizes a new local Ray; leave it out with --address")


@dataclass(kw_only=True)
class ClusterOptions(RayOptions):
    """The model workers in a cluster."""

    num_workers: int | str = "auto"
    """Model workers of each stage; `auto` is one per GPU, or per CPU without GPUs, and more as a cluster grows. With a
    range such as 1-4, training goes on with fewer workers when some are lost and with more when there is room for them;
    other stages take the larger number."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        if self.worker_range is not None and not self.worker_range:
            raise InputError(f"--num-workers: {self.num_workers} given, a number from 1, a range or auto expected")

    @property
    def worker_range(self) -> range | None:
        """The numbers of workers that are asked for, none if they are not valid; None for `auto`."""
        if self.num_workers == "auto":
            return None
        ends = re.fullmatch(r"([1-9]\d*)(?:-(\d+))?", str(self.num_workers))
        return range(int(ends[1]), int(ends[2] or ends[1]) + 1) if ends else range(0)


@dataclass(kw_only=True)
class RunOptions(ClusterOptions, WriteOptions):
    """Options of a step that runs on a cluster: where it writes and what it runs on."""


@dataclass(kw_only=True)
class SeedOptions(Options):
    """The seed of random draws."""

    seed: int = 0
    """Random seed: of the order of questions, dropout and new weights in training, of sampled tokens and vectors."""

    def __post_init__(self) -> None:
        """Check that random generators take the seed."""
        super().__post_init__()
        if not 0 <= self.seed < 1 << 32:
            raise InputError(f"--seed: {self.seed} given, a number from 0 to {(1 << 32) - 1} expected")


def check_outside_job(name: str, folder: str) -> None:
    """Raise `InputError` if the folder of an option is within that of a submitted job, of which Ray makes others."""
    if "://" not in folder and JOB_FOLDERS in Path(folder).parts:
        raise InputError(
            f"--{name.replace('_', '-')}: {folder} is in Ray's copy of this job's files, which it deletes and of which "
            "the next job has another; pass a whole path, or a URI such as s3://bucket/run, that all nodes see"
        )


def check_name_option(name: str) -> None:
    """Raise `InputError` unless the option `--name` is a valid name for a table's folder."""
    if not name or "/" in name or name.startswith((".", "_")):
        raise InputError(f"--name: {name!r} given, the name of a folder expected")


def defaults_of(*kinds: type) -> dict:
    """Return the defaults of all options of some dataclasses, by name."""
    return {field.name: field.default for kind in kinds for field in fields(kind)}
