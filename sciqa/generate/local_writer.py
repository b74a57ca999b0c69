"""Replies of a causal model in this process, in batches."""

from typing import Any, cast

import torch
from jinja2 import TemplateError

from sciqa.core.adapter_files import local_adapter
from sciqa.core.device import Device, check_device
from sciqa.core.errors import InputError
from sciqa.core.tables import fingerprint
from sciqa.generate.server_writer import ModelReply
from sciqa.models import adapter as adapters
from sciqa.models.attention_limits import position_limit
from sciqa.models.load import load_base, torch_dtype
from sciqa.models.padding import padded
from sciqa.models.prompt_format import Precision
from sciqa.models.prompt_template import Prompt


class LocalWriter:
    """Writer with a causal model; its chat template is used if it has one.

    Args:
        model: name of the model, as for `sciqa.core.model_files.find_model`.
        precision: type of computation.
        device: device that computes.
        threads: CPU threads.
        batch: prompts that are read at once.
        tokens: most tokens of a reply.
        seed: seed of the draws; they also depend on the names of the replies.
        draws: whether tokens are drawn; else each is the likeliest one.
        temperature: temperature of the draws; None is the model's own.
        adapter: folder of an adapter of the model.
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
    ) -> None:
        torch.set_num_threads(threads)
        check_device(device)
        self.name, self.batch, self.tokens, self.seed = model, batch, tokens, seed
        self.sampling = {"do_sample": draws} | ({"temperature": temperature} if temperature is not None else {})
        self.model, self.tokenizer = load_base(model, "causal", torch_dtype(precision, device), device=device)
        if adapter:
            self.model = adapters.as_model(adapters.attach_adapter(self.model, local_adapter(adapter)))
        self.limit = position_limit(self.model, self.model.config.get_text_config())
        self.notes: list[str] = []

    def write(self, prompts: list[Prompt], names: list[str], folder: str = "") -> list[ModelReply]:
        """Return a reply to each prompt; see `sciqa.generate.server_writer.ServerWriter.write`."""
        encoded = [self._encode(prompt) for prompt in prompts]
        replies = [ModelReply("", "too-long")] * len(prompts)
        fitting = [number for number, ids in enumerate(encoded) if len(ids) + self.tokens <= self.limit]
        fitting.sort(key=lambda number: len(encoded[number]))
        for at in range(0, len(fitting), self.batch):
            numbers = fitting[at : at + self.batch]
            torch.manual_seed(int(fingerprint([self.seed, *(names[number] for number in numbers)]), 16) >> 1)
            for number, reply in zip(numbers, self._write_batch([encoded[each] for each in numbers]), strict=True):
                replies[number] = reply
        return replies

    def _encode(self, prompt: Prompt) -> list[int]:
        if not self.tokenizer.chat_template:
            return cast("list[int]", self.tokenizer(prompt.plain)["input_ids"])
        try:
            ids = self.tokenizer.apply_chat_template(prompt.messages(), add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise InputError(f"--model {self.name}: its chat template refuses the prompt ({error})") from error
        return cast("list[int]", ids)

    @torch.inference_mode()
    def _write_batch(self, encoded: list[list[int]]) -> list[ModelReply]:
        width = max(map(len, encoded))
        end = self.tokenizer.eos_token_id
        padding = end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        device = self.model.device
        made = (
            cast("Any", self.model)
            .generate(
                input_ids=padded(encoded, padding or 0, width, "left").to(device),
                attention_mask=padded([[1] * len(ids) for ids in encoded], 0, width, "left").to(device),
                max_new_tokens=self.tokens,
                pad_token_id=padding or 0,
                **self.sampling,
            )[:, width:]
            .tolist()
        )
        replies = []
        for ids, new in zip(encoded, made, strict=True):
            written = new[: new.index(end) + 1] if end in new else new
            text = str(self.tokenizer.decode(written, skip_special_tokens=True))
            replies.append(ModelReply(text, None, len(ids), len(written)))
        return replies
