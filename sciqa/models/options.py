"""Options of a language model."""

from dataclasses import dataclass
from typing import Literal

from sciqa.core.model_files import local_model_path
from sciqa.core.options import Options, SeedOptions, check_output_option
from sciqa.models.prompt_format import Engine, Precision
from sciqa.models.prompt_template import prompt_template_path


@dataclass(kw_only=True)
class ModelOptions(Options):
    """The model that reads questions."""

    model: str = "SmolLM2-135M-Instruct"
    """Model: a packaged one, a local folder, a .gguf file or a hub id; causal, multiple-choice or seq2seq."""

    def __post_init__(self) -> None:
        """Make a local path absolute."""
        super().__post_init__()
        self.model = local_model_path(self.model)


@dataclass(kw_only=True)
class ModelEngineOptions(ModelOptions):
    """The model, and what runs it."""

    engine: Engine = "torch"
    """`vllm` runs causal models in safetensors in vLLM, through `ray.data.llm` (`pip install 'sciqa[vllm]'`);
    `openai` asks the model of that name on the server of --base-url (`pip install 'sciqa[openai]'`)."""

    def __post_init__(self) -> None:
        """Keep a server's name of the model, which is no path."""
        named = self.model
        super().__post_init__()
        self.model = named if self.engine == "openai" else self.model


@dataclass(kw_only=True)
class AdapterOptions(ModelOptions):
    """The model, perhaps with an adapter."""

    adapter: str | None = None
    """Adapter for the model, written by `sciqa finetune` (OUTPUT/trained/NAME) or peft."""

    def __post_init__(self) -> None:
        """Make a local path absolute."""
        super().__post_init__()
        self.adapter = self.adapter and local_model_path(self.adapter)


@dataclass(kw_only=True)
class PrecisionOptions(ModelOptions):
    """The model, and the type in which it computes."""

    precision: Precision = "auto"
    """Type of the weights and of computation; `auto` is 16 bits where the hardware supports them. Trained weights are
    kept in float32."""


@dataclass(kw_only=True)
class TemplateOptions(Options):
    """The template of prompts."""

    template: str | None = None
    """Template of the prompt: a Jinja2 file, or arc, mmlu, openbookqa or sciq, which are those of
    lm-evaluation-harness. What is trained keeps it; by default it is as in training, else the built-in one
    (docs/answering.md)."""

    def __post_init__(self) -> None:
        """Make a local path absolute."""
        super().__post_init__()
        self.template = self.template and prompt_template_path(self.template)


@dataclass(kw_only=True)
class TemperatureOptions(SeedOptions):
    """How texts are drawn."""

    temperature: float | None = None
    """Temperature of drawn texts; by default the model's own, else 1."""

    def __post_init__(self) -> None:
        """Check the value."""
        super().__post_init__()
        if self.temperature is not None:
            self.temperature = float(self.temperature)
        self.at_least(0.001, "temperature")  # scores divided by much less are not finite


@dataclass(kw_only=True)
class MergeOptions(ModelOptions):
    """Options of the `merge` step."""

    adapter: str = "sciqa-run/trained/reader"
    """Folder of the adapter."""
    output: str = "sciqa-run/merged"
    """Folder (or URI) for the merged model; it must not exist yet."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the written weights; they are added in float32."""

    def __post_init__(self) -> None:
        """Make local paths absolute; check where the model is written."""
        super().__post_init__()
        check_output_option(self.output)
        self.adapter = local_model_path(self.adapter)
