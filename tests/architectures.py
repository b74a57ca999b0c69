"""Tiny random models of the architectures that transformers knows, and the scores of options by plain computation.

A configuration is the default of its class made small: fields of a well-known meaning get a small value, of the layers
the first of each kind are kept, and what else a class needs stands in `architectures.yaml`.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sciqa.models.packing import SHARED_AT_LEAST
from sciqa.models.scorer import EncodedForScorer

Kind = Literal["causal", "seq2seq", "multiple-choice"]
CLASSES = {
    "causal": (auto.AutoModelForCausalLM, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": (auto.AutoModelForSeq2SeqLM, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "multiple-choice": (auto.AutoModelForMultipleChoice, auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES),
}
#: Tokens from the first to the last are plain ones in every model; what a class calls special is beside them.
FIRST, LAST, VOCABULARY = 10, 255, 320
ABOUT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SIZES = {name: size for size, names in ABOUT["sizes"].items() for name in names.split()}


def every() -> list[tuple[Kind, str, str]]:
    """Return kind, model type and variant ("" is the default) of every architecture."""
    found = []
    for kind, (_, names) in CLASSES.items():
        for model_type in names:
            variants = ABOUT["variants"][kind].get(model_type, {})
            found += [(kind, model_type, variant) for variant in ("", *variants)]
    return found


class CannotBuild(Exception):
    """An architecture of which there is no tiny text model here."""


def build(kind: Kind, model_type: str, variant: str = "", attention: str | None = None) -> PreTrainedModel:
    """Return a model with random weights, the same in every call, in float32 and in evaluation mode.

    Args:
        kind: what the model is for.
        model_type: its name in transformers' mapping for that kind.
        variant: another configuration than the default one.
        attention: implementation; by default what transformers chooses.

    Raises:
        CannotBuild: transformers makes no small one, and why.
    """
    torch.manual_seed(0)
    fields = {"decoder_start_token_id": 2} if kind == "seq2seq" else {}
    fields |= ABOUT["fields"].get(model_type, {})
    fields |= ABOUT["variants"][kind][model_type][variant] if variant else {}
    try:
        config = small_config(CONFIG_MAPPING[model_type], fields)
        model = CLASSES[kind][0].from_config(config, dtype=torch.float32, attn_implementation=attention)
    except Exception as error:
        raise CannotBuild(ABOUT["not built"].get(model_type, f"{type(error).__name__}: {error}")) from error
    with torch.no_grad():
        for weight in model.parameters():  # what begins as 0 or 1 would else have no say
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


def small_config(kind: type[PreTrainedConfig], fields: dict[str, object]) -> PreTrainedConfig:
    """Return a small configuration of a class, with the given fields as they are."""
    try:
        default = kind()
    except StrictDataclassClassValidationError:  # the defaults of some classes are not valid ones
        default = kind(**fields)
    stored = {name: kind.attribute_map.get(name, name) for name in (field.name for field in dataclasses.fields(kind))}
    values = {name: vars(default)[key] for name, key in stored.items() if key in vars(default)}
    layers = kept_layers(values)
    small = {name: small_value(name, value, values, layers, fields.get(name, {})) for name, value in values.items()}
    given = {name: value for name, value in fields.items() if not isinstance(values.get(name), PreTrainedConfig)}
    return kind(**small | given)


def kept_layers(values: dict[str, object]) -> list[int]:
    """Return the number of the first layer of every kind, and of another where there is only one kind."""
    count = values.get("num_hidden_layers")
    lists = [list(map(str, value)) for value in values.values() if isinstance(value, list) and len(value) == count]
    kinds = list(
        zip(*(each for each in lists if len(set(each)) < count), strict=True)
    )  # numbers of layers are no kinds
    numbers = sorted({kinds.index(kind) for kind in kinds})
    return [0, 1] if len(numbers) == 1 else numbers


def small_value(name: str, value: object, values: dict[str, object], layers: list[int], fields: object) -> object:
    """Return the small value of a field."""
    if isinstance(value, PreTrainedConfig):
        return small_config(type(value), fields)
    if isinstance(value, list) and layers and len(value) == values["num_hidden_layers"]:
        return [small_value(name, value[number], values, [], None) for number in layers]
    if name == "num_hidden_layers" and layers:
        return len(layers)
    if name in ("num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads") and value is not None:
        return 4 if value == values.get("num_attention_heads") else 2
    if _special(name, value):
        others = sorted(other for key, other in values.items() if _special(key, other))
        return value if value < FIRST else LAST + 1 + others.index(value)
    return SIZES[name] if name in SIZES and value is not None else value


def _special(name: str, value: object) -> bool:
    return name.endswith(("token_id", "token_index")) and isinstance(value, int)


@torch.inference_mode()
def plain_scores(model: PreTrainedModel, kind: Kind, question: EncodedForScorer) -> list[float]:
    """Return the score of each option by itself: one sequence, nothing shared, packed, cached or padded.

    A causal or encoder-decoder model scores an option by the sum of the log-likelihoods of its tokens, a
    multiple-choice model by the logit of its row. Some models change as they compute, so each option is given to a
    copy.
    """
    segments = getattr(question, "segments", None) or [None] * len(question.options)
    pairs = zip(question.options, segments, strict=True)
    return [_plain(copy.deepcopy(model), kind, question.prompt, *pair) for pair in pairs]


def _plain(
    model: PreTrainedModel, kind: Kind, prompt: list[int], option: list[int], segments: list[int] | None
) -> float:
    if kind == "multiple-choice":
        types = {} if segments is None else {"token_type_ids": torch.tensor([[segments]])}
        return model(input_ids=torch.tensor([[option]]), **types).logits.item()
    if kind == "seq2seq":
        # These have no fixed start: what they say begins with its last token, which is the language.
        start = (
            option[-1]
            if model.config.model_type in ("mbart", "plbart", "fsmt")
            else model.config.decoder_start_token_id
        )
        given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([[start, *option[:-1]]])}
        predicted = model(**given, use_cache=False).logits[0]
    else:
        predicted = model(input_ids=torch.tensor([prompt + option]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    chosen = predicted.float().log_softmax(-1).gather(1, torch.tensor(option)[:, None])
    return chosen.sum().item()


def tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """Return a tokenizer for a tiny model, of the words `t10;`, `t11;`, … with the model's special tokens."""
    config = model.config.get_text_config()
    separator = getattr(config, "sep_token_id", None) or 3
    padding = getattr(config, "pad_token_id", None) or 0
    words = {word(token): token for token in range(VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token=word(9)))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    begin = min({0, 2, 4} - {separator, padding})
    first, last = word(begin), word(separator)
    # Two separators stand between two texts, as in RoBERTa's and Longformer's rows.
    plain.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} {last} $B:1 {last}:1",
        special_tokens=[(first, begin), (last, separator)],
    )
    types = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        unk_token=word(9),
        pad_token=word(padding),
        cls_token=first,
        sep_token=last,
        model_input_names=["input_ids", "attention_mask", *types],
        padding_side="left" if model.config.model_type == "xlnet" else "right",
    )


def word(token: int) -> str:
    """Return the word that is a token."""
    return f"t{token};"


def texts(count: int, seed: int = 0, longest: int = 120) -> list[tuple[dict, str]]:
    """Return random questions with their contexts: 2 to 5 options of 1 to 8 words, contexts of up to `longest`."""
    rng = np.random.default_rng(seed)

    def words(length: int) -> str:
        return " ".join(word(token) for token in rng.integers(FIRST, LAST + 1, length))

    found = []
    for number in range(count):
        options = {letter: words(rng.integers(1, 9)) for letter in "ABCDE"[: rng.integers(2, 6)]}
        question = {"id": str(number), "is_question": True, "prompt": words(rng.integers(1, 30))} | options
        found.append((question, words(rng.integers(0, longest))))
    return found


def questions(count: int, seed: int = 0, longest: int = 120) -> list[EncodedForScorer]:
    """Return random questions in tokens: prompts of unlike lengths, 2 to 5 options of 1 to 8 tokens.

    Every third begins with the same tokens as the others of its kind, which are more than packing shares.
    """
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> list[int]:
        return rng.integers(FIRST, LAST + 1, length).tolist()

    shared, found = tokens(min(SHARED_AT_LEAST + 6, longest)), []
    for number in range(count):
        options = [tokens(rng.integers(1, 9)) for _ in range(rng.integers(2, 6))]
        prompt = (shared if number % 3 == 0 else []) + tokens(rng.integers(1, longest))
        found.append(EncodedForScorer(prompt, options, [1.0] * len(options)))
    return found
