"""Find which parts of passages a context contains."""

import re
from collections.abc import Sequence
from itertools import groupby

from sciqa.corpus.chunking import split_sentences, titled_chunk


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
    texts = [titled_chunk(each["title"], each["section"], each["text"]) for each in passages]
    for number in range(1, len(texts) + 1):
        if left == "\n".join(texts[:number]):
            return [[(each["text"], place < number)] for place, each in enumerate(passages)]
    sentences = [split_sentences(each["text"]) for each in passages]
    read = _sentences_read(sentences, left)
    marked = [[(text, (n, m) in read) for m, text in enumerate(several)] for n, several in enumerate(sentences)]
    return [
        [("".join(text for text, _ in group), is_read) for is_read, group in groupby(parts, key=lambda part: part[1])]
        for parts in marked
    ]


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
