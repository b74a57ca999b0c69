"""Answers in words: a generative model reads the context and writes an answer, whose sentences get citations.

A small model that is asked for citations writes meaningless ones, and answers worse. So this module adds them: it
embeds every finished sentence and cites the passage with the nearest sentence, or none where none is near. This works
with any model, and the same answer always gets the same citations. A citation says where to read more; it does not
prove that the sentence is true.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList, TextStreamer

from sciqa.ask.options import AskAnswerOptions
from sciqa.core.errors import InputError, QuestionError
from sciqa.core.model_files import model_files_name
from sciqa.core.progress import progress_lines
from sciqa.corpus.chunking import split_sentences, titled_chunk
from sciqa.models.causal import CausalScorer
from sciqa.models.decoding import CheckDecodedScores, decoding_end_tokens
from sciqa.models.prompt_template import TemplatePrompt, built_in_template, compiled_template
from sciqa.models.scorer import EncodedForScorer, Scorer
from sciqa.models.text_encoder import TextEncoder
from sciqa.retrieval.contexts import FindContexts

#: Least cosine between a sentence and the nearest sentence of a cited passage. On the packaged validation split, 95 %
#: of the questions with their right option have a cosine of 0.60 or more to a sentence of their article, and 99 % have
#: 0.38 or less to the sentences found for another question.
NEAR = 0.6
#: Built-in templates: a chat prompt ends with an instruction, a plain one with a cue, and its answer with the line.
CHAT, PLAIN = "chat-words", "plain-text"


class GeneratedAnswer(NamedTuple):
    """What was written.

    Attributes:
        cited: numbers, from 1, of the cited passages.
        tokens: number of tokens of the answer.
        prompt_tokens: number of tokens that the model read.
        finish_reason: `stop` if the model ended it, `length` if the limit of tokens cut it.
    """

    cited: list[int]
    tokens: int
    prompt_tokens: int
    finish_reason: str


def encode_for_generated_answer(
    options: AskAnswerOptions, question: dict, found: dict, scorer: Scorer, earlier: Sequence[dict] = ()
) -> EncodedForScorer:
    """Tokenise a question of the exam table up to where the answer begins; its context is cut to leave room for that.

    `found` is the question's row of the contexts table, and `earlier` are messages (`role`, `content`) of a
    conversation before it, for the model's chat template.

    Raises:
        QuestionError: the question does not fit the model, or a conversation does not fit its chat template.
        InputError: `--prompt chat` is given and the model has no chat template, or it writes less than
            `--max-new-tokens`.
    """
    chat, name = _is_chat(options, scorer), model_files_name(options.model)
    if earlier and not chat:
        raise QuestionError(f"messages: {name} is given no chat template, so one question alone is expected")
    if options.prompt == "chat" and not chat:
        raise InputError(f"--prompt chat: {options.model} has no chat template; pass --prompt plain")
    decodes = scorer.model.config.is_encoder_decoder  # the answer has positions of its own
    most = cast("Any", scorer).longest_option if decodes else scorer.limit - 1
    if options.max_new_tokens > most:
        raise InputError(f"--max-new-tokens: {options.max_new_tokens} given, {name} has room for {most}")

    template, style = built_in_template(CHAT if chat else PLAIN), scorer.style
    if options.template:  # its text, as the reader has it
        template = compiled_template(cast("str", style.template), style.template_name)
    asked = question | {"passages": found["passages"]}
    text = scorer.text if isinstance(scorer, CausalScorer) else TextEncoder(scorer.tokenizer)

    def encode(context: str) -> EncodedForScorer:
        prompt = template.render(asked, context, "text")
        if chat:
            ids = _chat_tokens(prompt, text, earlier)
        elif decodes:
            ids = scorer.tokenizer(prompt.plain, split_special_tokens=True)["input_ids"]
        else:
            (ids,) = text.encode([text.literal(prompt.plain)], start=True)
        return EncodedForScorer(ids, [], [])

    return scorer.cut(question, found["context"], encode, 0 if decodes else options.max_new_tokens)


def _chat_tokens(prompt: TemplatePrompt, text: TextEncoder, earlier: Sequence[dict]) -> list[int]:
    """Return the tokens of a prompt after earlier messages; control tokens come from the chat template alone."""
    *system, last = prompt.messages(text.literal)
    before = [message | {"content": text.literal(message["content"])} for message in earlier]
    try:
        return text.encode([text.chat([*system, *before, last])], start=False)[0]
    except InputError as error:
        if not earlier or not error.__cause__:  # the template cannot be rendered at all
            raise
        raise QuestionError(f"messages: the model's chat template refuses them ({error.__cause__})") from error


def _is_chat(options: AskAnswerOptions, scorer: Scorer) -> bool:
    """Whether the prompt goes through the model's chat template."""
    return options.prompt != "plain" and bool(scorer.tokenizer.chat_template)


def generate_answer(
    options: AskAnswerOptions,
    prompt: EncodedForScorer,
    passages: list[dict],
    scorer: Scorer,
    finder: FindContexts,
    show: Callable[[str], None] | None = None,
) -> GeneratedAnswer:
    """Write an answer after a prompt of `encode_for_generated_answer`, by a causal or encoder-decoder model.

    It is written word by word unless beam search is used; `show` takes each piece of text, which by default is printed,
    and what it raises ends the answer. `finder` embeds its sentences and those of the passages, which these may cite.
    """
    tokenizer = scorer.tokenizer
    ids = torch.tensor([prompt.prompt], device=scorer.device)
    stream = GeneratedAnswerStream(tokenizer, generated_answer_citation(passages, finder), show)
    start = 1 if scorer.model.config.is_encoder_decoder else ids.shape[1]
    stops, beams = decoding_end_tokens(scorer), options.num_beams > 1
    line_ends = [] if _is_chat(options, scorer) else [stop_generated_answer(tokenizer, start)]
    criteria = StoppingCriteriaList([*line_ends, *([call_between_tokens(show)] if beams and show else [])])
    settings: dict[str, object] = {"max_new_tokens": options.max_new_tokens, "num_beams": options.num_beams}
    settings |= {"stopping_criteria": criteria, "streamer": None if beams else stream, "eos_token_id": stops}
    settings["logits_processor"] = LogitsProcessorList([CheckDecodedScores(type(scorer.model).__name__)])
    scorer.reset()
    with progress_lines("ask", f"writing with {options.num_beams} beams") if beams else contextlib.nullcontext():
        torch.manual_seed(options.seed)
        whole = cast("Any", scorer.model).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **settings, **generated_answer_arguments(options)
        )
    made = whole[0, start:]
    if beams:
        stream.on_finalized_text(str(tokenizer.decode(made, skip_special_tokens=True)), stream_end=True)
    # BART is made to end at the limit, so its end token says nothing there.
    forced = cast("Any", scorer.model).generation_config.forced_eos_token_id is not None
    written = made[: options.max_new_tokens - forced].tolist()
    ended = not set(stops).isdisjoint(written) or any(line(whole, None).all() for line in line_ends)
    return GeneratedAnswer(sorted(stream.cited), len(made), ids.shape[1], "stop" if ended else "length")


def generated_answer_arguments(options: AskAnswerOptions) -> dict:
    """Return the sampling arguments for transformers' `generate`; options not given keep its defaults."""
    given = {"temperature": options.temperature, "top_k": options.sample_top_k, "top_p": options.top_p}
    return {"do_sample": options.do_sample} | {name: value for name, value in given.items() if value is not None}


def stop_generated_answer(tokenizer: PreTrainedTokenizerBase, start: int) -> Callable[..., torch.Tensor]:
    """Return a stopping criterion for the end of the answer's line, after which a plain model invents questions."""

    def ended(ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        lines = ["\n" in str(tokenizer.decode(row[start:])).lstrip() for row in ids]
        return torch.tensor(lines, device=ids.device)

    return ended


def call_between_tokens(call: Callable[[str], None]) -> Callable[..., torch.Tensor]:
    """Return a stopping criterion that stops nothing and calls a function with an empty text after every token."""

    def called(ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        call("")
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return called


def generated_answer_citation(passages: list[dict], finder: FindContexts) -> Callable[[str], int | None]:
    """Return a function that maps a sentence to the number, from 1, of the nearest passage, or None if none is near."""
    known = [
        (number, titled_chunk(passage["title"], passage["section"], sentence.strip()))
        for number, passage in enumerate(passages, 1)
        for sentence in split_sentences(passage["text"])
        if sentence.strip()
    ]

    @functools.cache
    def vectors() -> np.ndarray:  # not before the first sentence is written
        return finder.embed([text for _, text in known], "passage")

    def cite(sentence: str) -> int | None:
        if not known:
            return None
        nearness = vectors() @ finder.embed([sentence], "passage")[0]
        best = int(nearness.argmax())
        return known[best][0] if nearness[best] >= NEAR else None

    return cite


class GeneratedAnswerStream(TextStreamer):
    """Streamer that shows words as they are generated, and after each sentence the passage number from `cite`.

    A sentence is known to end only when the next one begins, so trailing white space is held back until then. `cite`
    maps a sentence to the number of a passage, or None; `show` takes each piece of text, which by default is printed.

    Attributes:
        cited: passage numbers cited so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        cite: Callable[[str], int | None],
        show: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.cite, self.show = cite, show
        self.cited: set[int] = set()
        self.open, self.shown, self.begun = "", 0, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """See `TextStreamer.on_finalized_text`."""
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        *whole, self.open = split_sentences(self.open + text) or [""]
        if stream_end:
            whole, self.open = [*whole, self.open.rstrip()], ""
        for sentence in whole:
            said = sentence.rstrip()
            # What is shown may reach into the next sentence, where the end of this one was not yet seen: no mark there.
            mark = self.cite(said.strip()) if said and self.shown <= len(said) else None
            self.cited |= {mark} if mark is not None else set()
            self._show(said[self.shown :] + (f" [{mark}]" if mark else "") + sentence[max(self.shown, len(said)) :])
            self.shown = max(0, self.shown - len(sentence))
        said = self.open.rstrip()
        self._show(said[self.shown :], stream_end)
        self.shown = max(self.shown, len(said))

    def _show(self, text: str, stream_end: bool = False) -> None:
        if self.show is None:
            super().on_finalized_text(text, stream_end)
        else:
            self.show(text)
