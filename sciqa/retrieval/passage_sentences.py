"""Sentences of passages, in the form of passages."""

from collections.abc import Sequence

from sciqa.corpus.chunking import split_sentences


def passage_sentences(passages: Sequence[dict]) -> list[dict]:
    """Return the sentences of passages, each once under its headings: overlapping passages repeat some."""
    several = (passage | {"text": text.strip()} for passage in passages for text in split_sentences(passage["text"]))
    different: dict[tuple, dict] = {}
    for sentence in several:
        different.setdefault((sentence["title"], sentence["section"], sentence["text"]), sentence)
    return list(different.values())


def join_passage_sentences(sentences: Sequence[dict]) -> list[dict]:
    """Return sentences as passages; consecutive ones from the same passage are joined."""
    joined: list[dict] = []
    for sentence in sentences:
        if joined and joined[-1]["passage_id"] == sentence["passage_id"]:
            joined[-1]["text"] += " " + sentence["text"]
        else:
            joined.append(dict(sentence))
    return joined
