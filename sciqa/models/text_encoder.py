"""Tokenise for generative models: user text gives no control tokens, and no token spans prompt and option."""

import datetime
import re
from collections.abc import Sequence
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sciqa.core.errors import InputError
from sciqa.models.thoughts import OPENING, thoughts_end_mark

#: Unicode noncharacters, which no text should contain: a cut before tokenising, and a placeholder for an answer.
CUT, ANSWER = "\ufdd0", "\ufdd1"
#: What chat templates are told to be today, so that a prompt is the same on any day: the date in Llama 3.1's own.
TODAY = datetime.date(2024, 7, 26)
#: Place in a chat template where it asks for the date in some form.
ASKS_DATE = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(?:'(?P<one>[^']*)'|"(?P<two>[^"]*)")\s*\)""")
#: Mark at the end of a prompt that opens a model's thoughts.
OPENED = re.compile(rf"(?P<mark>{OPENING})\s*$")


class TextEncoder:
    """Wrapper of a causal model's tokenizer for the scorers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def literal(self, text: str) -> str:
        """Cut control tokens in a text, such as `<|im_end|>` in a passage, so that they are read as text.

        A mark goes after the first character of each; `encode` tokenises both sides separately.
        """
        text = text.replace(CUT, "\ufffd").replace(ANSWER, "\ufffd")
        while self._control and self._control.search(text):
            text = self._control.sub(lambda found: f"{found[0][0]}{CUT}{found[0][1:]}", text)
        return text

    def encode(self, texts: Sequence[str], start: bool) -> list[list[int]]:
        """Return the tokens of one or more texts, perhaps from `literal`.

        With `start`, the tokenizer's own first token, such as `<s>`, is put before each text.
        """
        pieces = [text.split(CUT) for text in texts]
        tokens = iter(self.tokenizer([p for each in pieces for p in each], add_special_tokens=False)["input_ids"])
        first = self._first if start else []
        return [first + [token for _ in each for token in next(tokens)] for each in pieces]

    def continued(self, prompt: str, options: Sequence[str], start: bool) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of a prompt, and of each option (a text with the space before it, if any) after it.

        They are split as in lm-evaluation-harness: prompt and option are tokenised together, and an option's tokens
        are those after the tokens of the prompt alone. If a token spans prompt and option, part of the prompt would
        count as the option; the options are then tokenised separately. `start` is as for `encode`.
        """
        first, *whole = self.encode([prompt, *(prompt + option for option in options)], start)
        if all(tokens[: len(first)] == first for tokens in whole):
            return first, [tokens[len(first) :] for tokens in whole]
        return first, [self._alone(option) for option in options]

    def chat(self, messages: Sequence[dict[str, str]], thinks: bool = False) -> str:
        """Return messages, perhaps from `literal`, in the tokenizer's chat template, up to the start of the answer.

        The prompt includes what a template puts before an answer, such as the channel of final answers or an empty
        reasoning block. Without it an option would be scored as the start of reasoning. If the model may think first
        (`thinks`), the prompt ends as the template ends it for this.
        """
        if thinks:
            return self._render(messages, thinks=True)
        prompt = self._render(messages)
        given, wanted = self._ends
        return prompt.removesuffix(given) + wanted

    def _alone(self, option: str) -> list[int]:
        """Return the tokens of an option within a text, without the space that some tokenizers put before a text."""
        for before in ("\n", ":", "a"):
            first, whole = self.encode([before, before + option], start=False)
            if whole[: len(first)] == first:
                return whole[len(first) :]
        return self.encode([option], start=False)[0]

    @cached_property
    def _control(self) -> re.Pattern | None:
        """Pattern of texts that become control tokens: special tokens, and added tokens that the chat template uses."""
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        added = self.tokenizer.added_tokens_decoder.values()
        found = {token.content for token in added if token.special or token.content in template}
        found = {text for text in found | set(self.tokenizer.all_special_tokens) if len(text.strip()) > 1}
        return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None

    @cached_property
    def _first(self) -> list[int]:
        """The tokens that the tokenizer puts before a text, without those after it, which would end the text."""
        bare, whole = (self.tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return whole[:at]

    def _render(self, messages: Sequence[dict[str, str]], thinks: bool = False) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            named = self.tokenizer.name_or_path or "the model"
            raise InputError(f"--prompt chat: {named} has no chat template; pass --prompt plain")
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=messages[-1]["role"] == "user",
                enable_thinking=thinks,
                thinking=thinks,
                chat_template=text_encoder_template(str(self.tokenizer.get_chat_template())),
            )
        except (TemplateError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"--prompt chat: the model's chat template refuses messages of {roles} ({error}); leave the system "
                "block out of --template, or pass --prompt plain"
            ) from error
        return str(rendered)

    @cached_property
    def _ends(self) -> tuple[str, str]:
        """The end that the template gives a prompt, and the end needed before an option."""
        content = "Question"
        asked = [{"role": "user", "content": content}]
        prompt = self._render(asked)
        given = prompt.rpartition(content)[2]
        answer = {"role": "assistant", "content": ANSWER}
        answered = self._render([*asked, answer]).partition(ANSWER)[0].rpartition(content)[2]
        wanted = given
        if answered.startswith(given.rstrip()) and answered.strip() != given.strip():
            wanted = answered
        if opened := OPENED.search(wanted):
            return given, f"{wanted[: opened.start()]}{opened['mark']}\n\n{thoughts_end_mark(opened['mark'])}\n\n"
        template = str(self.tokenizer.chat_template)
        reasons = "</think>" in template and "<think>" in self.tokenizer.get_vocab()
        if reasons and "</think>" not in wanted and prompt == self._render(asked, thinks=True):
            wanted += "<think>\n\n</think>\n\n"
        return given, wanted


def text_encoder_template(template: str) -> str:
    """Return a chat template that reads `TODAY` where it asks for the date of the day on which it is rendered.

    Raises:
        InputError: it asks in another form than as a text, and would read another date on another day.
    """
    fixed = ASKS_DATE.sub(lambda found: repr(TODAY.strftime(found["one"] or found["two"] or "")), template)
    if "strftime_now(" in fixed:
        raise InputError(
            "the model's chat template asks for the date (strftime_now) with a form that is computed, so that prompts "
            "would depend on the day; write the form there, as strftime_now('%d %b %Y'), or the date itself"
        )
    return fixed
