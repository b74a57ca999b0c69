"""Score with causal language models: the log-likelihood of each option after a prompt that is computed once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of
from sciqa.models.attention_limits import SELECTIONS, RopeLengthLimit, attention_window, position_limit
from sciqa.models.batch_layout import BatchLayout, batch_by_tokens
from sciqa.models.packed_attention import packed_attention
from sciqa.models.packing import (
    PackedRows,
    pack_by_shared_prefix,
    pack_rows,
    packed_row_tokens,
    packing_common_tokens,
    unpacked_rows,
)
from sciqa.models.packing_check import packing_check_layout
from sciqa.models.prefix_cache import PrefixScorer
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import render_prompt
from sciqa.models.scorer import EncodedForScorer, check_scorer_option, scorer_divisors
from sciqa.models.soft_prompt import add_soft_prompt, soft_prompt_tokens
from sciqa.models.text_encoder import TextEncoder


class CausalScorer(PrefixScorer):
    """Scores options by the log-likelihood of their text, or of their letter, after the prompt.

    A test of the model before its first batch (`sciqa.models.packing_check`) decides how sequences are laid out.
    """

    auto_class = "AutoModelForCausalLM"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, style: PromptFormat) -> None:
        super().__init__(model, tokenizer, style)
        self.text = TextEncoder(tokenizer)
        config = model.config.get_text_config()
        self._soft_prompt = soft_prompt_tokens(model)
        self.limit = min(self.limit, position_limit(model, config) - self._soft_prompt)
        self.exact_within = attention_window(config) - self._soft_prompt
        self.alone_beyond = attention_window(config, SELECTIONS) - self._soft_prompt
        self.rope = RopeLengthLimit.of(config)
        # Llama 4 scales attention by a token's place in its row, beyond this length.
        scaled = getattr(config, "attn_temperature_tuning", False)
        self.longest_row = config.floor_scale - 1 if scaled else 1 << 62
        if config.model_type == "gpt_neo":  # its windows, and its table of them, count places of the row
            self.longest_row = min(self.limit, self.exact_within)

    def encode(self, question: dict, context: str) -> EncodedForScorer:
        """See `Scorer.encode`."""
        if self.style.completion == "reasoned":
            raise InputError("--completion reasoned: this step scores options as they are; leave it out")
        options = answer_options_of(question)
        check_scorer_option(question, options, self.text.encode(list(options.values()), start=False))
        encoded = self.cut(question, context, lambda given: self._encode(question, given))
        check_scorer_option(question, options, encoded.options)  # one may have no tokens beyond the prompt's
        lengths = zip(causal_path_lengths(encoded), encoded.counted, strict=True)
        if any(length == counted for length, counted in lengths):
            raise InputError(
                f"question {question['id']!r}: --template {self.style.template_name} gives the model no tokens before "
                "what is scored; add some text to it"
            )
        return encoded

    def encode_to_write(self, question: dict, context: str, tokens: int) -> EncodedForScorer:
        """Tokenise a question up to where the model begins to write; it has no options.

        The context is cut so that the model's limit leaves room for what is written, `tokens` tokens.

        Raises:
            InputError: the question is too long without any context, or its template cannot be rendered.
        """

        def encode(given: str) -> EncodedForScorer:
            (prompt,) = self.text.encode([self._prompt(question, given)], start=bool(self._space))
            return EncodedForScorer(prompt, [], [])

        return self.cut(question, context, encode, tokens)

    def _encode(self, question: dict, context: str) -> EncodedForScorer:
        if self.style.completion == "yes":
            return self._encode_yes(question, context)
        by_letter, space = answer_options_of(question), self._space
        options = list(by_letter if self.style.completion == "letter" else by_letter.values())
        prompt = self._prompt(question, context)
        return self._continue(prompt, [space + option for option in options])

    def _encode_yes(self, question: dict, context: str) -> EncodedForScorer:
        """Encode one prompt per proposed option: the parts that differ are options; only the final yes is scored."""
        yes = f"{self._space}Yes"
        prompts = [self._prompt(question, context, option) for option in answer_options_of(question).values()]
        pairs = [self.text.continued(prompt, [yes], bool(self._space)) for prompt in prompts]
        rows = [before + tokens for before, (tokens,) in pairs]
        shared = max(0, min(packing_common_tokens(rows), *(len(before) - 1 for before, _ in pairs)))
        counted = [len(tokens) for _, (tokens,) in pairs]
        return EncodedForScorer(rows[0][:shared], [row[shared:] for row in rows], [1.0] * len(rows), counted)

    @property
    def _space(self) -> str:
        """Text between prompt and option; none in a chat template, which ends where the answer begins."""
        return "" if self.style.prompt == "chat" else " "

    def _prompt(self, question: dict, context: str, proposed: str | None = None) -> str:
        """Return the prompt before an option, or before the yes to the option `proposed`."""
        prompt = render_prompt(question, context, self.style, proposed)
        if self.style.prompt == "chat":
            return self.text.chat(prompt.messages(self.text.literal), thinks=self.style.completion == "reasoned")
        return self.text.literal(prompt.plain)

    def _continue(self, prompt: str, options: list[str]) -> EncodedForScorer:
        literal = [self.text.literal(option) for option in options]
        first, tokens = self.text.continued(prompt, literal, start=bool(self._space))
        return EncodedForScorer(first, tokens, scorer_divisors(options, tokens, self.style.normalise))

    def encode_text(self, prompt: str, options: list[str]) -> EncodedForScorer:
        """Tokenise a prompt and its continuations; each of these should begin with the space before it, if any."""
        return self._continue(self.text.literal(prompt), options)

    @property
    def longest_exact(self) -> int:
        """See `ProvedScorer.longest_exact`."""
        return min(self.limit, self.exact_within, self.rope.length or self.limit)

    def prove(self) -> BatchLayout:
        """See `Scorer.prove`.

        With a soft prompt, a model whose computation depends on the length of a row gets plain rows, untested: the
        lengths at which it changes are known only without virtual tokens.
        """
        if self._soft_prompt and not self.any_length:
            return BatchLayout("rows")
        return packing_check_layout(self)

    @property
    def any_length(self) -> bool:
        """Whether a model computes a token in the same way whatever the length of its row."""
        return self.rope.length is None and self.longest_row == 1 << 62

    @property
    def calls_vary(self) -> bool:
        """See `Scorer.calls_vary`."""
        return self.layout == "single rows" or self.alone_beyond < self.limit or self.rope.length is not None

    def packs(self, question: EncodedForScorer) -> bool:
        """See `PrefixScorer.packs`.

        Packing would change its scores if a sequence exceeds the attention window of a layer, the row is too long, or
        only some options are so long that the model's rotary embedding changes.
        """
        if self.layout != "packed":
            return False
        before = len(self.prefix.tokens) if self.prefix else 0
        lengths = [before + length for length in causal_path_lengths(question)]
        fits = max(lengths) <= self.exact_within and question.length <= self.longest_row
        return fits and not self.rope.splits(lengths)

    def _packed(self, batch: Sequence[EncodedForScorer]) -> list[list[int]] | None:
        """Return the question indices of each packed row, or None if the batch needs plain rows."""
        if not all(map(self.packs, batch)) or self.rope.splits(
            [n for question in batch for n in causal_path_lengths(question)]
        ):
            return None
        rows = pack_by_shared_prefix(batch)
        longest = max(self._row_tokens(batch, row) for row in rows)
        return rows if longest <= self.longest_row else None

    def _row_tokens(self, questions: Sequence[EncodedForScorer], row: list[int]) -> int:
        """Return the length in tokens of a packed row of some questions, including a soft prompt."""
        return self._soft_prompt + packed_row_tokens([questions[number] for number in row])

    def _kind(self, question: EncodedForScorer) -> tuple:
        """Return a key that all questions of a batch must share."""
        return self.packs(question), self.rope.key(max(causal_path_lengths(question)))

    def batches(self, questions: Sequence[EncodedForScorer], budget: int) -> list[list[int]]:
        """See `Scorer.batches`; questions with a common prompt prefix, such as the same context, share a row."""
        kinds: dict[tuple, list[int]] = {}
        for number, question in enumerate(questions):
            kinds.setdefault(self._kind(question), []).append(number)
        found = []
        for (packed, _), numbers in kinds.items():
            chosen = [questions[number] for number in numbers]
            if packed:
                rows = pack_by_shared_prefix(chosen, max(1, min(budget, self.longest_row) - self._soft_prompt))
                lengths = [self._row_tokens(chosen, row) for row in rows]
            else:
                rows = [[number] for number in range(len(chosen))]
                lengths = [self.padded_tokens([question]) for question in chosen]
            found += [[numbers[at] for at in batch] for batch in batch_by_tokens(rows, lengths, budget)]
        return found

    def tokens(self, batch: Sequence[EncodedForScorer]) -> int:
        """See `Scorer.tokens`."""
        if rows := self._packed(batch):
            return sum(self._row_tokens(batch, row) for row in rows)
        return sum(map(sum, self._plain_lengths(batch)))

    def padded_tokens(self, batch: Sequence[EncodedForScorer]) -> int:
        """See `Scorer.padded_tokens`."""
        if rows := self._packed(batch):
            return len(rows) * max(self._row_tokens(batch, row) for row in rows)
        return sum(len(lengths) * max(lengths) for lengths in self._plain_lengths(batch))

    def _plain_lengths(self, batch: Sequence[EncodedForScorer]) -> list[list[int]]:
        """Return the lengths of plain rows in tokens, including a soft prompt, for each batch of them."""
        before = self._soft_prompt
        return [[before + causal_path_lengths(batch[q])[o] for q, o in group] for group in self._plain_groups(batch)]

    def rows(self, batch: Sequence[EncodedForScorer]) -> list[PackedRows]:
        """Return the rows of a batch, for one or several calls of the model."""
        if self._packed(batch):
            return [pack_rows(batch)]
        return [unpacked_rows(batch, group) for group in self._plain_groups(batch)]

    def _plain_groups(self, batch: Sequence[EncodedForScorer]) -> list[list[tuple[int, int]]]:
        """Group pairs (question, option) into batches of plain rows."""
        groups: dict[object, list[tuple[int, int]]] = {}
        for number, question in enumerate(batch):
            for option, length in enumerate(causal_path_lengths(question)):
                alone = self.layout == "single rows" or length > self.alone_beyond or self.rope.alone(length)
                key = (number, option) if alone else self.rope.key(length)
                groups.setdefault(key, []).append((number, option))
        return list(groups.values())

    def forward(self, batch: Sequence[EncodedForScorer]) -> list[torch.Tensor]:
        """See `Scorer.forward`; differentiable."""
        if self.layout == "cached prompt" and not torch.is_grad_enabled():
            return [self._score_cached(q) if self._caches(q) else self._score_rows([q])[0] for q in batch]
        return self._score_rows(batch)

    def _score_rows(self, batch: Sequence[EncodedForScorer]) -> list[torch.Tensor]:
        sums: dict[tuple[int, int], torch.Tensor] = {}
        for rows in self.rows(batch):
            sums |= causal_option_sums(self._logits(rows), rows, batch)
        return [normalise_causal_scores(sums, number, question) for number, question in enumerate(batch)]

    def _logits(self, rows: PackedRows) -> torch.Tensor:
        """Return logits from the first needed column on, shape (rows, columns, vocabulary)."""
        if self.rope.dynamic:  # a short sequence resets the frequencies of a longer one
            self.call(input_ids=rows.ids[:1, :1].to(self.device))
        columns, call = rows.ids.shape[1] - rows.first, self.call
        given: dict[str, object] = {"input_ids": rows.ids.to(self.device)}
        if self._soft_prompt and rows.positions is not None:
            base, rows, given = add_soft_prompt(self.model, rows)
            call = partial(self._call, base)
        elif self.prefix:
            rows = self.prefix.extend(rows)
            given |= {"past_key_values": self.prefix.repeat(len(rows.ids)), "use_cache": True}
        mask = self.mask(rows, next(self.model.parameters()).dtype)
        positions = None if rows.positions is None else rows.positions.to(self.device)
        with packed_attention(rows, mask):
            return call(**given, attention_mask=mask, position_ids=positions, logits_to_keep=columns).logits[
                :, -columns:
            ]

    def mask(self, rows: PackedRows, dtype: torch.dtype) -> torch.Tensor:
        """Return the attention mask of rows in the form that the model takes.

        For packed rows it is a mask to add to attention scores, which every implementation supports; some would add
        True as 1.
        """
        mask = rows.mask.to(self.device)
        if mask.ndim == 2:
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def call(self, **inputs: object) -> Any:  # noqa: ANN401 (each model has an output class of its own)
        """Return the model's output, without a cache and without arguments that it does not take."""
        return self._call(self.model, **inputs)

    def _call(self, model: torch.nn.Module, **inputs: object) -> Any:  # noqa: ANN401
        """Call a model as `call` does."""
        given = {"use_cache": False} | {name: value for name, value in inputs.items() if value is not None}
        return model(**{name: value for name, value in given.items() if name in self.takes})

    @property
    def takes_prefix(self) -> bool:
        """See `PrefixScorer.takes_prefix`."""
        return self.layout == "packed" and self.any_length and not self._soft_prompt

    def _caches(self, question: EncodedForScorer) -> bool:
        """Whether a question's prompt gives the same result alone as before each option."""
        return len(question.prompt) > 1 and not self.rope.splits([len(question.prompt), *causal_path_lengths(question)])

    def _score_cached(self, question: EncodedForScorer) -> torch.Tensor:
        """Score a question with its prompt, except the last token, computed once and kept in the model's cache."""
        start = torch.tensor([question.prompt[:-1]], device=self.device)
        kept = self.model(input_ids=start, use_cache=True).past_key_values
        kept.batch_repeat_interleave(len(question.options))
        rest = replace(question, prompt=question.prompt[-1:])
        rows = unpacked_rows([rest], [(0, option) for option in range(len(rest.options))])
        before = torch.ones(len(rows.ids), start.shape[1], dtype=rows.mask.dtype)
        mask = torch.cat([before, rows.mask], dim=1).to(self.device)
        logits = self.model(
            input_ids=rows.ids.to(self.device), attention_mask=mask, past_key_values=kept, use_cache=True
        ).logits
        return normalise_causal_scores(causal_option_sums(logits[:, rows.first :], rows, [rest]), 0, rest)


def causal_path_lengths(question: EncodedForScorer) -> list[int]:
    """Return the number of tokens of the prompt with each option."""
    return [len(question.prompt) + len(option) for option in question.options]


def causal_option_sums(
    logits: torch.Tensor, rows: PackedRows, batch: Sequence[EncodedForScorer]
) -> dict[tuple[int, int], torch.Tensor]:
    """Return the log-likelihood, a scalar, of each option in some rows, by (question index, option index).

    The logits are those from the first needed column on, shape (rows, columns, vocabulary).
    """
    sums = {}
    for number, group in groupby(rows.places, key=lambda place: place.question):
        places = list(group)
        predicted = [(place.row, column - rows.first) for place in places for column in place.columns]
        tokens = torch.tensor(
            [token for place in places for token in causal_scored_tokens(batch[number], place.option)]
        )
        chosen = -torch.nn.functional.cross_entropy(
            logits[tuple(zip(*predicted, strict=True))].float(), tokens.to(logits.device), reduction="none"
        )
        for place, part in zip(places, chosen.split([len(place.columns) for place in places]), strict=True):
            sums[number, place.option] = part.sum()
    return sums


def causal_scored_tokens(question: EncodedForScorer, option: int) -> list[int]:
    """Return the tokens of an option that are scored."""
    tokens = question.options[option]
    return tokens[len(tokens) - question.counted[option] :]


def normalise_causal_scores(
    sums: dict[tuple[int, int], torch.Tensor], number: int, question: EncodedForScorer
) -> torch.Tensor:
    """Return the log-likelihoods of a question's options divided by their divisors, shape (options,)."""
    each = torch.stack([sums[number, option] for option in range(len(question.options))])
    return each / torch.tensor(question.divisors, device=each.device)
