"""Text to tokens for generative models: user text stays text, and prompt and option keep to their own tokens."""

import re
from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

#: Noncharacters of Unicode, which no text holds: where a text is cut before it is tokenised, and an answer's place.
CUT, ANSWER = "\ufdd0", "\ufdd1"
#: A mark that opens a model's reasoning, at the end of a prompt, and what closes it: `<think>`, `<seed:think>`,
#: `[THINK]`, `<|START_THINKING|>`, `<reasoning>`.
OPENED = re.compile(r"(?P<mark><\|?START_THINKING\|?>|<(?:\w+:)?(?:think|thinking|reasoning|thought)>|\[THINK\])\s*$")


class TextEncoder:
    """A tokenizer as the scorers use it.

    Args:
        tokenizer: of a causal or encoder-decoder model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def literal(self, text: str) -> str:
        """Return a text in which no control token is recognised, such as the `<|im_end|>` of a passage.

        Each is cut after its first character, for `encode` to tokenise both sides by themselves.
        """
        text = text.replace(CUT, "\ufffd").replace(ANSWER, "\ufffd")
        while self._control and self._control.search(text):
            text = self._control.sub(lambda found: f"{found[0][0]}{CUT}{found[0][1:]}", text)
        return text

    def encode(self, texts: Sequence[str], start: bool) -> list[list[int]]:
        """Return the tokens of texts, of which some may be `literal`.

        Args:
            texts: one or more.
            start: put the tokenizer's own first token, such as `<s>`, before each.
        """
        pieces = [text.split(CUT) for text in texts]
        tokens = iter(self.tokenizer([p for each in pieces for p in each], add_special_tokens=False)["input_ids"])
        first = self._first if start else []
        return [first + [token for _ in each for token in next(tokens)] for each in pieces]

    def continued(self, prompt: str, options: Sequence[str], start: bool) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of a prompt and those of each option behind it.

        They are split as lm-evaluation-harness splits them: prompt and option are tokenised together, and an option's
        tokens are those beyond the tokens of the prompt alone. Where a token spans the border of the two, which would
        count part of the prompt as the option's, the options are tokenised by themselves.

        Args:
            prompt: text, perhaps `literal`.
            options: texts, each with the space before it, if any.
            start: as for `encode`.
        """
        first, *whole = self.encode([prompt, *(prompt + option for option in options)], start)
        if all(tokens[: len(first)] == first for tokens in whole):
            return first, [tokens[len(first) :] for tokens in whole]
        return first, [self._alone(option) for option in options]

    def chat(self, content: str) -> str:
        """Return the tokenizer's chat template around a question, up to where the answer itself begins.

        What a template puts between the two, such as the channel of final answers or an empty block of reasoning,
        belongs to the prompt: without it an option would be scored as the beginning of a reasoning.
        """
        prompt = self._render(content)
        given, wanted = self._ends
        return prompt.removesuffix(given) + wanted

    def _alone(self, option: str) -> list[int]:
        """Return the tokens of an option as it stands within a text: without the space that some put before a text."""
        for before in ("\n", ":", "a"):
            first, whole = self.encode([before, before + option], start=False)
            if whole[: len(first)] == first:
                return whole[len(first) :]
        return self.encode([option], start=False)[0]

    @cached_property
    def _control(self) -> re.Pattern | None:
        """Texts that become control tokens: the special ones, and added ones that the chat template makes use of."""
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        added = self.tokenizer.added_tokens_decoder.values()
        found = {token.content for token in added if token.special or token.content in template}
        found = {text for text in found | set(self.tokenizer.all_special_tokens) if len(text.strip()) > 1}
        return re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True)))) if found else None

    @cached_property
    def _first(self) -> list[int]:
        """The tokens that the tokenizer puts before a text; what some put behind one would end it, so is left out."""
        bare, whole = (self.tokenizer("x", add_special_tokens=added)["input_ids"] for added in (False, True))
        at = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
        return whole[:at]

    def _render(self, content: str, answer: str | None = None, thinks: bool = False) -> str:
        asked = [{"role": "user", "content": content}]
        answered = [{"role": "assistant", "content": answer}] if answer else []
        return self.tokenizer.apply_chat_template(
            asked + answered,
            tokenize=False,
            add_generation_prompt=not answered,
            enable_thinking=thinks,
            thinking=thinks,
        )

    @cached_property
    def _ends(self) -> tuple[str, str]:
        """How the template ends a prompt, and how a prompt for an option ends."""
        content = "Question"
        prompt = self._render(content)
        given = prompt.rpartition(content)[2]
        answered = self._render(content, ANSWER).partition(ANSWER)[0].rpartition(content)[2]
        wanted = given
        if answered.startswith(given.rstrip()) and answered.strip() != given.strip():
            wanted = answered
        if opened := OPENED.search(wanted):
            return given, f"{wanted[: opened.start()]}{opened['mark']}\n\n{_closing(opened['mark'])}\n\n"
        template = str(self.tokenizer.chat_template)
        reasons = "</think>" in template and "<think>" in self.tokenizer.get_vocab()
        if reasons and "</think>" not in wanted and prompt == self._render(content, thinks=True):
            wanted += "<think>\n\n</think>\n\n"
        return given, wanted


def _closing(mark: str) -> str:
    if "START" in mark:
        return mark.replace("START", "END")
    return f"{mark[0]}/{mark[1:]}"
