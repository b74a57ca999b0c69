"""The `prompt` step: print what a model reads of the first questions of an exam, in one process without Ray."""

import time
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from sciqa.core.device import device_cpus
from sciqa.core.errors import InputError
from sciqa.core.summary import Summary
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.open_exam import Exam, open_exam
from sciqa.predict.options import PromptOptions
from sciqa.predict.predict import check_predict_reader
from sciqa.retrieval.contexts import context_text, open_contexts

if TYPE_CHECKING:  # PyTorch is imported once the input is checked
    from transformers import PreTrainedTokenizerBase

    from sciqa.models.scorer import EncodedForScorer, Scorer

#: Characters shown of what was cut from a context.
LEFT_OUT = 60


def show_prompts(options: PromptOptions) -> Summary:
    """Return what a model reads of the first questions of an exam, as lines in `details["lines"]`; writes nothing.

    Control tokens stand between `«` and `»`; the same text within a question or passage is read as text, and is not
    marked.

    Raises:
        InputError: a bad exam, template, model or adapter, contexts of another exam, or a question that does not fit.
    """
    started = time.monotonic()
    exam = open_exam(options, write=False)
    questions = options.read(exam.name).table.slice(0, options.show).to_pylist()
    contexts = _contexts(options, exam, questions)
    check_predict_reader(options, exam.sample)
    from sciqa.models.load import load_without_weights
    from sciqa.predict.readers import encode_for_reader
    from sciqa.predict.reasoned import encode_reasoned, set_reasoned_style
    from sciqa.predict.shots import ShotChooser

    scorer = load_without_weights(options.model, options.style(), options.adapter)
    shots = options.shots_arguments("cpu", device_cpus())
    chooser = ShotChooser(**shots) if shots else None
    found: list[tuple[dict, ...]] = [(each,) for each in contexts]
    if scorer.style.completion == "reasoned":
        set_reasoned_style(scorer, options.style())
        encoded = encode_reasoned(scorer, questions, found, options.tokens_of_answer(True), chooser)
    else:
        _, encoded = encode_for_reader(scorer, questions, found, 1, chooser)
    lines = list(_shared_lines(scorer, encoded))
    for question, given, each in zip(questions, contexts, encoded, strict=True):
        lines += ["", *_question_lines(scorer, question, given["context"], each)]
    made = f"{len(questions)} of {exam.questions:,} questions as {options.model} reads them"
    return Summary("prompt", "", made, time.monotonic() - started, {"lines": lines})


def _contexts(options: PromptOptions, exam: Exam, questions: list[dict]) -> list[dict]:
    """Return `context` and `passages` of each question."""
    if options.closed_book:
        return [{"context": "", "passages": []} for _ in questions]
    if options.context == "given":
        return [{"context": context_text(question, []), "passages": []} for question in questions]
    try:
        table = open_contexts(options.contexts, exam, options.context)[0]
    except InputError as error:
        raise InputError(f"{error}; or pass --closed-book, or --context given") from error
    return [{name: row[name] for name in ("context", "passages")} for row in table.read(questions, 0)]


def _shared_lines(scorer: "Scorer", encoded: "list[EncodedForScorer]") -> Iterator[str]:
    """Yield the form of the prompts, and what all of them begin with."""
    from sciqa.models.packing import packing_common_tokens

    style = scorer.style
    template = f"template {style.template_name}" if style.template is not None else "built-in template"
    yield f"{template}, --prompt {style.prompt}, --completion {style.completion}; at most {scorer.limit:,} tokens"
    if len(encoded) > 1 and all(each.prompt for each in encoded):
        shared = packing_common_tokens([each.prompt for each in encoded])
        yield f"the prompts of these {len(encoded)} questions begin with the same {shared:,} tokens"


def _question_lines(scorer: "Scorer", question: dict, context: str, encoded: "EncodedForScorer") -> Iterator[str]:
    letters, tokenizer = answer_options_of(question), scorer.tokenizer
    yield f"question {question['id']}: {len(encoded.prompt)} tokens{_counts(encoded)}"
    if encoded.cut and encoded.kept is not None:
        left = context[encoded.kept :].strip()
        yield f"context cut to {encoded.kept:,} of {len(context):,} characters, before {left[:LEFT_OUT]!r}"
    elif encoded.cut:
        yield f"context of {len(context):,} characters cut"
    if encoded.prompt:
        yield shown_prompt_tokens(tokenizer, encoded.prompt)
    if not encoded.options:
        return
    if encoded.prompt:
        yield "── the shared prefix ends here ──"
    for letter, tokens, counted in zip(letters, encoded.options, encoded.counted, strict=True):
        before, scored = tokens[: len(tokens) - counted], tokens[len(tokens) - counted :]
        read = shown_prompt_tokens(tokenizer, before) + "│" if before else ""
        yield f"{letter} ({len(tokens)} tokens, {counted} scored): {read}{shown_prompt_tokens(tokenizer, scored)}"


def _counts(encoded: "EncodedForScorer") -> str:
    if not encoded.options:
        return ", after which the model writes"
    return ", computed once, then " + " + ".join(str(len(option)) for option in encoded.options) + " of the options"


def shown_prompt_tokens(tokenizer: "PreTrainedTokenizerBase", tokens: list[int]) -> str:
    """Return tokens as text, with every control token between `«` and `»`."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    parts = []
    for control, group in groupby(tokens, key=special.__contains__):
        run = list(group)
        if control:
            parts += [f"«{tokenizer.convert_ids_to_tokens(token)}»" for token in run]
        else:
            parts.append(str(tokenizer.decode(run, clean_up_tokenization_spaces=False)))
    return "".join(parts)
