"""Split text into passages: overlapping windows of whole sentences, as long as the embedder reads."""

import re
from collections.abc import Iterator
from itertools import accumulate, pairwise

from sentencex import segment
from tokenizers import Tokenizer

#: Minimum number of tokens for the text of a passage; headings that leave fewer are cut.
LEAST_TOKENS = 16
#: A space of several bytes before a full stop: `sentencex` 1.0 fails at one that a capital letter stands before.
WIDE_SPACE = re.compile(r"[^\S\x00-\x7f](?=\.)")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of an English text, each with its trailing white space."""
    ends = accumulate(map(len, segment("en", WIDE_SPACE.sub(" ", text))), initial=0)
    return [text[start:end] for start, end in pairwise(ends)]


def titled_chunk(title: str, section: str, text: str) -> str:
    """Return the text to embed for a passage: its headings, unless the text begins with them, and its text."""
    headings = [heading for heading in (title, section) if heading and not text.startswith(heading)]
    return ". ".join([*headings, text])


class ChunkSplitter:
    """Cuts text into overlapping windows of sentences.

    Args:
        tokenizer: the embedder's own, without truncation and padding.
        tokens: maximum tokens of a passage, including headings and special tokens.
        overlap: sentences that a window repeats from the previous one.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, overlap: int) -> None:
        self.tokenizer, self.tokens, self.overlap = tokenizer, tokens, overlap
        self.marks = tokenizer.num_special_tokens_to_add(is_pair=False)

    def headings(self, title: str, section: str) -> tuple[str, str]:
        """Return title and section of a passage, cut where they leave no `LEAST_TOKENS` for its text.

        The section is cut first; a title keeps at least one token.
        """
        room = self.tokens - self.marks - LEAST_TOKENS
        most = room
        shown = title, section
        while self._count(titled_chunk(*shown, "")) > room and most:
            cut = self._beginning(title, most)
            left = most - self._count(titled_chunk(cut, "", ""))
            shown = cut, self._beginning(section, left)
            most -= 1
        return shown

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _beginning(self, text: str, most: int) -> str:
        """Return the first tokens of a text, at most so many."""
        ends = [end for _, end in self.tokenizer.encode(text, add_special_tokens=False).offsets[: max(0, most)]]
        return text[: max(ends, default=0)].strip()

    def split(self, title: str, section: str, text: str) -> Iterator[str]:
        """Yield the passages of a section, without surrounding white space, below headings from `headings`."""
        room = self.tokens - self.marks - self._count(titled_chunk(title, section, ""))
        sentences, lengths = self._sentences(text, room)
        start = 0
        while start < len(sentences):
            end, used = start, 0
            while end < len(sentences) and (end == start or used + lengths[end] <= room):
                used += lengths[end]
                end += 1
            yield "".join(sentences[start:end]).strip()
            if end == len(sentences):
                return
            # The overlap must leave room for the next sentence, so that every window ends further on than the last.
            start = max(start + 1, end - self.overlap)
            while start < end and sum(lengths[start : end + 1]) > room:
                start += 1

    def _sentences(self, text: str, room: int) -> tuple[list[str], list[int]]:
        """Return the sentences and their token counts; one that is too long is cut between lines, else words."""
        whole: list[str] = []
        for sentence in split_sentences(text):
            if sentence.strip():
                whole.append(sentence)
            elif whole:
                whole[-1] += sentence  # white space between paragraphs
        sentences, lengths = [], []
        for sentence, encoding in zip(whole, self.tokenizer.encode_batch(whole, add_special_tokens=False), strict=True):
            words, first, begin = encoding.word_ids, 0, 0
            while len(words) - first > room:
                last = first + room
                places = range(last, first, -1)
                gaps = {at: sentence[encoding.offsets[at - 1][1] : encoding.offsets[at][0]] for at in places}
                lines = (at for at in places if "\n" in gaps[at])
                spaces = (at for at in places if gaps[at])
                marks = (at for at in places if words[at] != words[at - 1])
                last = next((at for kind in (lines, spaces, marks) for at in kind), last)
                sentences.append(sentence[begin : encoding.offsets[last][0]])
                lengths.append(last - first)
                first, begin = last, encoding.offsets[last][0]
            sentences.append(sentence[begin:])
            lengths.append(len(words) - first)
        return sentences, lengths
