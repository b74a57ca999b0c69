"""Options and constants of fine-tuning."""

from dataclasses import dataclass
from typing import Literal

import yaml

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.core.model_files import local_model_path
from sciqa.core.options import Options, RunOptions, SeedOptions, check_name_option, defaults_of
from sciqa.exam.options import ExamQuestionOptions
from sciqa.models.options import ModelOptions, PrecisionOptions, TemplateOptions
from sciqa.models.prompt_format import Method, Normalise, Prompt, TrainedCompletion
from sciqa.models.prompt_template import template_style

Loss = Literal["ranking", "completion"]
Optimizer = Literal["auto", "adamw", "paged-adamw"]
Schedule = Literal["cosine", "linear", "constant"]
Objective = Literal["rank", "instruct", "dpo", "reward", "grpo"]
ChatFormat = Literal["auto", "llama2", "llama3", "phi3"]
SPLITS = ("train", "validation")
#: Version of the training computation; raise it when that changes.
TRAINED_FORMAT = 2
#: File of a checkpoint that holds the history: a row per step and per evaluation.
HISTORY = "history.json"
#: Figures of a checkpoint's metrics that say what the model takes on rank 0; see `sharding.model_figures`.
MODEL_FIGURES = ("rank_bytes", "model_bytes", "trained_parameters", "peak_memory", "optimizer")
#: ZeRO-3 keeps parameters with fewer elements whole on every rank. DeepSpeed's default of 100,000 would keep most 4-bit
#: layers of small models whole, because four or eight of their weights count as one element.
PERSISTENCE_THRESHOLD = 10_000
#: Elements of the bucket in which ZeRO sums gradients. It is allocated in full; DeepSpeed's default of 500,000,000
#: would take 2 GB of every GPU, whatever is trained.
REDUCE_BUCKET = 50_000_000
#: From the source of DeepSpeed 0.19.8: under autocast its ZeRO optimizers clip gradients before unscaling them, and do
#: not lower the scale after an overflow. Without ZeRO it does both as PyTorch documents.
NO_SCALER = (
    "--precision float16: with --zero 2 and 3 DeepSpeed does not scale gradients as float16 needs; pass --precision "
    "float32, bfloat16 where the hardware has it, or --zero 0"
)
#: Steps in a row that may be skipped to find the scale of float16 gradients: it is halved each time, from 65,536.
MOST_SKIPPED = 24
#: Number of questions or prompts of a split, the longest in characters, whose tokens are counted before the first step.
LONGEST_CHECKED = 16
#: Objectives that options other than their defaults belong to.
OBJECTIVES_OF: dict[str, tuple[Objective, ...]] = {
    **dict.fromkeys(("loss", "hide_gold", "min_passages", "max_passages", "rotate"), ("rank",)),
    "max_length": ("rank", "instruct", "dpo", "reward"),
    "template": ("rank", "dpo", "reward", "grpo"),
    "chat_format": ("instruct", "dpo", "reward", "grpo"),
    "packing": ("instruct",),
    **dict.fromkeys(("columns", "answers_from"), ("rank", "grpo")),
    "context": ("rank", "dpo", "reward", "grpo"),
    "beta": ("dpo", "grpo"),
    **dict.fromkeys(("rewards", "generations", "completion_tokens"), ("grpo",)),
}


def options_mapping(flag: str, text: str, example: str) -> dict:
    """Return a mapping in YAML, as the value of an option.

    Raises:
        InputError: it is not YAML, no mapping as in the example, or has a name twice (`-` is the same as `_`).
    """
    try:
        given = yaml.safe_load(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # YAML's dates, such as 2024-13-01
        raise InputError(f"{flag}: not YAML ({error})") from error
    if not isinstance(given, dict):
        raise InputError(f"{flag}: {text!r} given, a mapping such as '{example}' expected")
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias, which may stand within what it names
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names = [name.value.replace("-", "_") for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{flag}: {twice!r} stands twice; leave one of them out")
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return given


@dataclass(kw_only=True)
class TrainOptions(ModelOptions):
    """What is trained on what, and the time and memory that it takes."""

    train: str = "train"
    """Questions to train on: packaged splits (as in train+direct-train), or files as `sciqa exam --exam` takes them.
    For another --objective than rank, a file of its examples."""
    validation: str = "validation"
    """What selects the best step: questions, or examples of the objective, as for --train."""
    method: Method = "lora"
    """`lora`; `qlora`: LoRA on a 4-bit base model; `prompt-tuning`: a soft prompt; `full`: all weights."""
    peft: str = "{}"
    """Fields of peft's LoraConfig (or PromptTuningConfig), as in '{r: 16, lora_alpha: 32, use_rslora: true}'."""
    max_length: int | None = None
    """Most tokens of a question; its context is cut to fit. By default the model's limit."""
    epochs: float = 2.0
    """Number of passes over the training questions."""
    eval_every: int | None = None
    """Steps between evaluations and checkpoints; by default ten of them over the run."""
    batch_size: int = 16
    """Questions per optimizer step, over all workers."""
    micro_batch: int = 4
    """Questions that a worker computes at once."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed ZeRO stage: 2 shards optimizer state and gradients over the workers, 3 the parameters as well."""
    offload: bool = False
    """Keep in CPU memory what ZeRO shards."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them."""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.peft_fields() and self.method == "full":
            raise InputError(
                "--peft: fields of an adapter, and --method full trains all weights; leave out one of them"
            )
        self.at_least(1, "batch_size", "micro_batch", "eval_every", "max_length")
        if self.epochs <= 0:
            raise InputError(f"--epochs: {self.epochs} given, more than 0 expected")
        if self.offload and not self.zero:
            raise InputError("--offload: moves what ZeRO shards; use it with --zero 2 or 3")
        if self.offload and self.zero == 3 and self.method == "qlora":
            raise InputError("--offload: DeepSpeed cannot offload 4-bit parameters; use --zero 2, or --method lora")

    def peft_fields(self) -> dict:
        """Return the fields for peft's configuration."""
        return options_mapping("--peft", self.peft or "{}", "{r: 16}")


@dataclass(kw_only=True)
class ObjectiveOptions(Options):
    """What a model is trained for, and the options of objectives besides `rank`."""

    objective: Objective = "rank"
    """`rank`: the right option before the others; `instruct`: the answer to an instruction (file with the columns
    instruction, input, output, or messages); `dpo`: the better of two answers (file with prompt, chosen, rejected, or
    the folder RUN/answers/NAME, in which it is the right option, and the wrong one that was believed most); `reward`:
    a model that scores answers, from the same pairs; `grpo`: the answers to exam questions that earn most."""
    chat_format: ChatFormat = "auto"
    """Chat template of the objectives besides `rank`, which the result keeps; `auto` is the model's own."""
    packing: bool = False
    """Put several examples of `instruct`, which do not see each other, into one row of --max-length tokens."""
    beta: float = 0.1
    """Strength with which `dpo` and `grpo` keep the model near what it was (Rafailov et al. 2023, equation 7; weight of
    the KL divergence: Shao et al. 2024, equation 3)."""
    rewards: tuple[str, ...] = ("answer", "format")
    """What answers of `grpo` earn, summed: `answer`, 1 for the letter of the right option; `format`, 1 for a letter and
    nothing else; the folder of a model that `--objective reward` made, its score."""
    generations: int = 8
    """Answers that `grpo` samples to each question, which are compared with each other."""
    completion_tokens: int = 16
    """Most tokens of an answer that `grpo` samples."""

    def __post_init__(self) -> None:
        """Check that each option belongs to the objective."""
        super().__post_init__()
        self.rewards = tuple(map(local_model_path, self.rewards))
        self.at_least(2, "generations")
        self.at_least(1, "completion_tokens")
        if self.beta <= 0:
            raise InputError(f"--beta: {self.beta} given, more than 0 expected")
        defaults = defaults_of(type(self))
        for name, objectives in OBJECTIVES_OF.items():
            if name in defaults and getattr(self, name) != defaults[name] and self.objective not in objectives:
                raise InputError(
                    f"--{name.replace('_', '-')}: belongs to --objective {' and '.join(objectives)}, and "
                    f"{self.objective} is given; leave it out"
                )


@dataclass(kw_only=True)
class FinetuneOptions(
    ObjectiveOptions, TrainOptions, TemplateOptions, PrecisionOptions, SeedOptions, ExamQuestionOptions, RunOptions
):
    """Options of the `finetune` step."""

    train_contexts: str = ""
    """Folder of the contexts of training questions; by default OUTPUT/train/contexts."""
    validation_contexts: str = ""
    """Folder of the contexts of validation questions; by default OUTPUT/validation/contexts."""
    name: str = "reader"
    """Name of the result, which is kept in OUTPUT/trained/NAME."""
    prompt: Literal["auto", Prompt] = "auto"
    """`auto` uses the chat template of a causal model's tokenizer if it has one, otherwise `plain`. For exam
    questions of --objective dpo and grpo it is the form that the model was fine-tuned with before, if it was."""
    completion: TrainedCompletion = "text"
    """What a generative model predicts: the option's text, its letter, or a yes to the proposed option."""
    normalise: Normalise = "tokens"
    """Divide an option's log-likelihood by its length in tokens or characters, or not."""
    loss: Loss = "ranking"
    """`ranking`: cross-entropy over the options' scores; `completion`: likelihood of the right option alone."""
    hide_gold: float = 0.0
    """Share of training questions whose gold passage (column `title`) is left out of the context."""
    min_passages: int = 0
    """Fewest passages of a training question, with --max-passages; the number is drawn anew each epoch."""
    max_passages: int = 0
    """Most passages of a training question; 0 keeps the contexts as retrieved."""
    rotate: bool = True
    """Rotate the options of training questions, so that answers cannot depend on letters."""
    steps: int | None = None
    """Optimizer steps, instead of --epochs."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Largest gradient norm, beyond which gradients are clipped; 0 does not clip."""
    optimizer: Optimizer = "auto"
    """`auto` is bitsandbytes' paged AdamW for QLoRA on a GPU, PyTorch's AdamW elsewhere."""
    patience: int | None = None
    """Stop after this many evaluations without a better MAP@3."""
    max_failures: int = 3
    """How often a run resumes from its last checkpoint after losing a worker."""
    mlflow: bool = False
    """Log to MLflow (set up by its own environment variables) as well as to TensorBoard."""

    def __post_init__(self) -> None:
        """Fill the default folders and check the numbers."""
        super().__post_init__()
        self.fill_folder("train_contexts", "train", "contexts")
        self.fill_folder("validation_contexts", "validation", "contexts")
        self.at_least(1, "steps", "patience")
        self.at_least(0, "weight_decay", "clip")
        if self.learning_rate <= 0:
            raise InputError(f"--learning-rate: {self.learning_rate} given, more than 0 expected")
        for name in ("hide_gold", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name.replace('_', '-')}: {getattr(self, name)} given, 0 to 1 expected")
        if not 0 <= self.min_passages <= self.max_passages:
            raise InputError(f"--min-passages: {self.min_passages} given, 0 to --max-passages expected")
        check_name_option(self.name)
        self._check_combination()

    def _check_combination(self) -> None:
        if self.objective == "grpo" and self.completion == "yes":
            raise InputError("--completion yes: answers of --objective grpo are letters; leave it out")
        if self.loss == "completion" and self.normalise != "tokens":
            raise InputError("--loss completion: is per token; leave --normalise at tokens")
        if self.offload and self.optimizer == "paged-adamw":
            raise InputError("--optimizer paged-adamw: pages a state on the GPU, and --offload keeps it off; pass one")
        if self.zero and self.precision == "float16":
            raise InputError(NO_SCALER)
        if self.is_elastic and not self.resizable:
            raise InputError(
                f"--num-workers {self.num_workers}: only --objective rank with --zero 0 goes on with another number of "
                "workers; pass a single number"
            )
        if self.hide_gold and not self.max_passages:
            raise InputError("--hide-gold: needs --max-passages, since hiding a passage needs others to fill its place")

    def template_style(self, completion: str | None = None) -> dict:
        """Return the fields of `PromptFormat` that `--template` sets, for which its file is read.

        Args:
            completion: what is scored after it; by default as `--completion` says.

        Raises:
            InputError: the template is missing, has an error, or is for another completion.
        """
        return template_style(self.template, completion or self.completion)

    @property
    def resizable(self) -> bool:
        """Whether a run goes on with another number of workers: any number reads a checkpoint that is not sharded."""
        return self.objective == "rank" and not self.zero

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change in the course of a run."""
        return len(self.worker_range or ()) > 1

    @property
    def folder(self) -> str:
        """Folder of the training result."""
        return storage.join_paths(self.output, "trained", self.name)

    @property
    def examples_per_step(self) -> int:
        """Number of examples that a batch is made of; `grpo` samples several answers to each."""
        return self.batch_size // (self.generations if self.objective == "grpo" else 1)

    def trl_steps(self, examples: int) -> int:
        """Return the number of steps of TRL's trainers; an epoch has the examples that fill whole batches."""
        whole = examples if self.objective == "grpo" else examples // self.batch_size * self.batch_size
        return self.steps or max(1, round(self.epochs * whole / self.examples_per_step))
