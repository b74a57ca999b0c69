"""Texts on a report page: formulas in readable form, and passages split into read and unread parts."""

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from sciqa.corpus.chunking import embedded_text, split_sentences
from sciqa.corpus.formulas import read_math

#: Formulas between TeX delimiters. Between single dollars, a formula neither begins nor ends with white space, and no
#: digit follows it, so that amounts of money do not match.
FORMULA = re.compile(
    r"(?<!\\)(?:\$\$(?P<display>[^$]+?)\$\$|\\\[(?P<block>.+?)\\\]|\\\((?P<inline>.+?)\\\)"
    r"|\$(?P<dollars>(?![\s$])(?:\\.|[^$\\\n]){0,500}?(?<![\s\\]))\$(?![\d$]))",
    re.DOTALL,
)
#: Characters that occur only in formulas, and words, which hint at text.
SIGN = re.compile(r"[\\^_{}=<>]")
WORD = re.compile(r"[^\W\d_]{2,}")


def formulas_as_html(text: str) -> Markup:
    """Return a text as HTML with formulas in one-line form, each with its TeX source as title."""
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
    """Return whether the text between dollars is a formula, and not text between two amounts of money."""
    return bool(SIGN.search(source)) or not (WORD.search(source) and " " in source)


def _formula(written: str, source: str) -> Markup:
    return Markup('<span class="formula" title="{}">{}</span>').format(source, written)


def split_read_parts(passages: Sequence[dict], context: str, given: str | None) -> list[list[tuple[str, bool]]]:
    """Return each passage in parts: pairs of text and whether the context contains it.

    The context holds either the first passages as a whole or sentences of the passages. A sentence in several passages
    counts as read as many times as it occurs in the context.

    Args:
        passages: passages that the context may contain, each with `title`, `section` and `text`.
        context: the text that was read.
        given: beginning of the context that comes from the exam, if any.
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
    """Return the sentences, as (passage, number), that occur in a text; longer sentences are matched first."""
    places = [(passage, number) for passage, several in enumerate(sentences) for number in range(len(several))]
    read = set()
    for passage, number in sorted(places, key=lambda place: -len(sentences[place[0]][place[1]].strip())):
        sentence = sentences[passage][number].strip()
        if sentence and (found := re.search(rf"(?<!\S){re.escape(sentence)}(?!\S)", left)):
            read.add((passage, number))
            left = f"{left[: found.start()]}\0{left[found.end() :]}"
    return read


def _joined(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Return the parts with neighbours merged where both are read or both are not."""
    joined: list[tuple[str, bool]] = []
    for text, read in parts:
        if joined and joined[-1][1] == read:
            joined[-1] = joined[-1][0] + text, read
        else:
            joined.append((text, read))
    return joined
