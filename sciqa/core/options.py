"""What every step is given, where a run writes and what it runs on, and what every step returns."""

from dataclasses import dataclass, field
from typing import Literal

from sciqa.core import storage
from sciqa.core.errors import InputError

#: Values of `--accelerator` that name no kind of GPU.
ACCELERATORS = ("auto", "cpu", "gpu")


@dataclass(kw_only=True)
class RunOptions:
    """Where a run writes and what it runs on."""

    output: str = "sciqa-run"
    """Folder (or URI such as s3://bucket/run) for all that the run makes."""
    overwrite: bool = False
    """Replace tables there that were made from other inputs; without it they are kept and the step is refused."""
    address: str | None = None
    """Ray cluster to connect to; by default the one of RAY_ADDRESS or on this machine, else a new local one."""
    num_cpus: int | None = None
    """CPUs of a new local Ray; leave it out to use all, or to use a cluster that is running."""
    num_workers: int | Literal["auto"] = "auto"
    """Model workers of each stage; `auto` is one per GPU, or per CPU without GPUs, and more as a cluster grows."""
    accelerator: str = "auto"
    """`auto`: GPUs where the cluster has some now; `cpu`: none; `gpu`, or a kind such as A10G or H100: that a worker
    asks for one, so that a cluster which has none yet starts a node."""

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        self.at_least(1, "num_cpus", "num_workers")
        if self.address and self.num_cpus:
            raise InputError("--num-cpus: sizes a new local Ray; leave it out with --address")
        if self.accelerator not in ACCELERATORS:
            _check_kind(self.accelerator)
        self.output = storage.absolute(self.output)

    def fill_folder(self, name: str, *default: str) -> None:
        """Make an option absolute that names a folder; where it is not given, that is one within the output folder."""
        given = getattr(self, name)
        setattr(self, name, storage.absolute(given) if given else storage.join(self.output, *default))

    def at_least(self, least: float, *names: str) -> None:
        """Raise `InputError` where one of the options is given and less."""
        for name in names:
            if isinstance(value := getattr(self, name), int | float) and value < least:
                raise InputError(f"--{name.replace('_', '-')}: {value} given, at least {least} expected")


def check_name(name: str) -> None:
    """Raise `InputError` unless an option `--name` can name a folder of a table."""
    if not name or "/" in name or name.startswith((".", "_")):
        raise InputError(f"--name: {name!r} given, the name of a folder expected")


@dataclass
class Summary:
    """What a step made.

    Attributes:
        stage: name of the step.
        path: where its table is.
        made: the counts worth saying, in words.
        seconds: wall time.
        details: figures for the caller.
    """

    stage: str
    path: str
    made: str
    seconds: float
    details: dict = field(default_factory=dict)


def _check_kind(accelerator: str) -> None:
    """Raise `InputError` unless Ray knows a kind of accelerator of that name."""
    from ray.util.accelerators import accelerators

    kinds = {name for key, name in vars(accelerators).items() if key.isupper()}
    if accelerator not in kinds:
        expected = f"{', '.join(ACCELERATORS)} or one of Ray's names ({', '.join(sorted(kinds))})"
        raise InputError(f"--accelerator: {accelerator!r} given, {expected} expected")
