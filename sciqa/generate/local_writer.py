"""Replies of a causal model in this process, in batches; limited to JSON of a schema if there is one."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from transformers import LogitsProcessor

from sciqa.core.device import Device
from sciqa.core.hashes import fingerprint
from sciqa.generate.server_writer import ServerWriterReply
from sciqa.models.causal import CausalScorer
from sciqa.models.decoding import TokenDraws, generate_tokens
from sciqa.models.load import load_scorer
from sciqa.models.prompt_format import Precision, PromptFormat
from sciqa.models.prompt_template import TemplatePrompt

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class LocalWriter:
    """Writer with a causal model; its chat template is used if it has one.

    Args:
        model: name of the model, as for `sciqa.core.model_files.find_model`.
        precision: type of computation.
        device: device that computes.
        threads: CPU threads.
        batch: replies that are written at once; of short prompts more, in the same memory.
        tokens: most tokens of a reply.
        seed: seed of the draws; they also depend on the name of the reply.
        draws: whether tokens are drawn; else each is the likeliest one.
        temperature: temperature of the draws; None is the model's own.
        adapter: folder of an adapter of the model.
        revision: hash of the model's files that the command has recorded.
        adapter_revision: the same of the adapter.
    """

    def __init__(
        self,
        model: str,
        precision: Precision,
        device: Device,
        threads: int,
        batch: int,
        tokens: int,
        seed: int,
        draws: bool,
        temperature: float | None,
        adapter: str | None = None,
        revision: str | None = None,
        adapter_revision: str | None = None,
    ) -> None:
        self.batch, self.tokens, self.seed = batch, tokens, seed
        self.draws, self.temperature = draws, temperature
        scorer = load_scorer(
            model,
            style=PromptFormat(),
            precision=precision,
            adapter=adapter,
            threads=threads,
            device=device,
            revision=revision,
            adapter_revision=adapter_revision,
        )
        self.scorer = cast("CausalScorer", scorer)
        self.notes = [scorer.note] if scorer.note else []
        self.constraint: LLTokenizer | None = None

    def write(
        self, prompts: list[TemplatePrompt], names: list[str], folder: str = "", schemas: Sequence[dict | None] = ()
    ) -> list[ServerWriterReply]:
        """Return a reply to each prompt; see `sciqa.generate.server_writer.ServerWriter.write`.

        The folder is not used: nothing has to be kept until the replies are in a table.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        replies = [ServerWriterReply("", "too-long")] * len(prompts)
        fitting = [number for number, ids in enumerate(encoded) if len(ids) + self.tokens <= self.scorer.limit]
        limits = [schema for number in fitting if schemas and (schema := schemas[number])]
        written = generate_tokens(
            self.scorer,
            [encoded[number] for number in fitting],
            self.tokens,
            self.batch * max((len(encoded[number]) + self.tokens for number in fitting), default=0),
            draws=self._seeded_draws([names[number] for number in fitting]),
            constrain=self._constrain(limits) if limits else None,
        )
        for number, tokens in zip(fitting, written, strict=True):
            text = self.scorer.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            replies[number] = ServerWriterReply(str(text), None, len(encoded[number]), len(tokens))
        return replies

    def _encode(self, prompt: TemplatePrompt) -> list[int]:
        text = self.scorer.text
        chat = bool(self.scorer.tokenizer.chat_template)
        written = text.chat(prompt.messages(text.literal)) if chat else text.literal(prompt.plain)
        return text.encode([written], start=not chat)[0]

    def _seeded_draws(self, names: list[str]) -> TokenDraws | None:
        if not self.draws:
            return None
        return TokenDraws([int(fingerprint([self.seed, name])[:15], 16) for name in names], self.temperature)

    def _constrain(self, schemas: list[dict]) -> Callable[[list[int]], LogitsProcessor]:
        """Return what limits the replies of a batch to their schemas."""
        from sciqa.models.json_constraint import JsonConstraint, constraint_tokenizer

        if self.constraint is None:
            self.constraint = constraint_tokenizer(self.scorer)
        tokenizer = self.constraint
        return lambda rows: JsonConstraint(tokenizer, [schemas[row] for row in rows])
