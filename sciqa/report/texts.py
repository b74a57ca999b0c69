"""Texts of a question as a page shows them: formulas are readable, and what a reader read of a passage is known."""

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from sciqa.corpus.chunking import embedded_text, split_sentences
from sciqa.corpus.formulas import read_math

#: Formulas between the signs of TeX. One between single dollars begins and ends with something, and no number follows
#: it, so that amounts of money are none.
FORMULA = re.compile(
    r"(?<!\\)(?:\$\$(?P<display>[^$]+?)\$\$|\\\[(?P<block>.+?)\\\]|\\\((?P<inline>.+?)\\\)"
    r"|\$(?P<dollars>(?![\s$])(?:\\.|[^$\\\n]){0,500}?(?<![\s\\]))\$(?![\d$]))",
    re.DOTALL,
)
#: What only formulas hold, and words that they do not.
SIGN = re.compile(r"[\\^_{}=<>]")
WORD = re.compile(r"[^\W\d_]{2,}")


def readable(text: str) -> Markup:
    """Return a text as HTML in which formulas are written on a line, each with its source as title."""
    parts, at = [], 0
    for found in FORMULA.finditer(text):
        dollars = found["dollars"] or found["display"]
        if dollars and not _is_formula(dollars):
            continue
        source = dollars or found["block"] or found["inline"]
        if written := read_math(source):
            parts += [escape(text[at : found.start()]), _formula(written, found[0])]
            at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def _is_formula(source: str) -> bool:
    """Whether what stands between dollars is a formula, and not text between two amounts of money."""
    return bool(SIGN.search(source)) or not (WORD.search(source) and " " in source)


def _formula(written: str, source: str) -> Markup:
    return Markup('<span class="formula" title="{}">{}</span>').format(source, written)


def parts_read(passages: Sequence[dict], context: str, given: str | None) -> list[list[tuple[str, bool]]]:
    """Return each passage in parts: text, and whether it stands in a context that was made of the passages.

    The context is either of the first passages, whole, or of sentences of them. A sentence that several passages have
    counts as read as often as the context has it.

    Args:
        passages: `title`, `section` and `text` of each that the context may be made of.
        context: the text that was read.
        given: what of it the exam gives.
    """
    left = context
    if given and (context == given or context.startswith(f"{given}\n")):
        left = context[len(given) + 1 :]
    texts = [embedded_text(each["title"], each["section"], each["text"]) for each in passages]
    for number in range(1, len(texts) + 1):
        if left == "\n".join(texts[:number]):
            return [[(each["text"], place < number)] for place, each in enumerate(passages)]
    sentences = [split_sentences(each["text"]) for each in passages]
    read = _sentences_read(sentences, left)
    return [_joined([(text, (n, m) in read) for m, text in enumerate(several)]) for n, several in enumerate(sentences)]


def _sentences_read(sentences: list[list[str]], left: str) -> set[tuple[int, int]]:
    """Return which sentences, (passage, number), stand in a text; the longest take their part of it first."""
    places = [(passage, number) for passage, several in enumerate(sentences) for number in range(len(several))]
    read = set()
    for passage, number in sorted(places, key=lambda place: -len(sentences[place[0]][place[1]].strip())):
        sentence = sentences[passage][number].strip()
        if sentence and (found := re.search(rf"(?<!\S){re.escape(sentence)}(?!\S)", left)):
            read.add((passage, number))
            left = f"{left[: found.start()]}\0{left[found.end() :]}"
    return read


def _joined(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Return parts of which neighbours that are both read, or both not, are one."""
    joined: list[tuple[str, bool]] = []
    for text, read in parts:
        if joined and joined[-1][1] == read:
            joined[-1] = joined[-1][0] + text, read
        else:
            joined.append((text, read))
    return joined
