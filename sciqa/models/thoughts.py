"""Marks around the thoughts that a model writes before its answer; without PyTorch."""

import re

#: Mark that opens thoughts: `<think>`, `<seed:think>`, `[THINK]`, `<|START_THINKING|>`, `<reasoning>`.
OPENING = r"<\|?START_THINKING\|?>|<(?:\w+:)?(?:think|thinking|reasoning|thought)>|\[THINK\]"
#: Mark that closes them: `</think>`, `</seed:think>`, `[/THINK]`, `<|END_THINKING|>`, `</reasoning>`.
CLOSING = r"<\|?END_THINKING\|?>|</(?:\w+:)?(?:think|thinking|reasoning|thought)>|\[/THINK\]"
MARKS = re.compile(rf"(?P<opening>{OPENING})|(?P<closing>{CLOSING})")


def thoughts_end_mark(opening: str) -> str:
    """Return the mark that closes the thoughts which a mark opens."""
    if "START" in opening:
        return opening.replace("START", "END")
    return f"{opening[0]}/{opening[1:]}"


def thoughts_start_mark(text: str) -> str | None:
    """Return the mark of the thoughts that a text has opened and not closed, or None."""
    found = list(MARKS.finditer(text))
    return found[-1]["opening"] if found else None


def end_of_thoughts(text: str) -> int:
    """Return the place after the last mark in a text that closes thoughts; 0 without any."""
    return max((found.end() for found in re.finditer(CLOSING, text)), default=0)
