"""Text to passages: overlapping windows of whole sentences, as long as the embedder reads."""

from collections.abc import Iterator

from sentencex import segment
from tokenizers import Tokenizer

#: Tokens that a passage's text has at least, however long its headings are.
LEAST_TOKENS = 16


def split_sentences(text: str) -> list[str]:
    """Return the sentences of an English text; each keeps the white space behind it."""
    return list(segment("en", text))


def embedded_text(title: str, section: str, text: str) -> str:
    """Return what is embedded of a passage: its headings, unless the text begins with them, and its text."""
    headings = [heading for heading in (title, section) if heading and not text.startswith(heading)]
    return ". ".join([*headings, text])


class Splitter:
    """Cuts text into windows of sentences.

    Args:
        tokenizer: the embedder's own, which neither cuts nor pads.
        tokens: most tokens of a passage with its headings and the tokenizer's marks.
        overlap: sentences that a window repeats from the one before.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: int, overlap: int) -> None:
        self.tokenizer, self.tokens, self.overlap = tokenizer, tokens, overlap
        self.marks = tokenizer.num_special_tokens_to_add(is_pair=False)

    def split(self, title: str, section: str, text: str) -> Iterator[str]:
        """Yield the passages of a section; white space around them is dropped."""
        headings = len(self.tokenizer.encode(embedded_text(title, section, ""), add_special_tokens=False).ids)
        room = max(LEAST_TOKENS, self.tokens - self.marks - headings)
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
            # What is repeated must leave room for the next sentence: every window ends further on than the last.
            start = max(start + 1, end - self.overlap)
            while start < end and sum(lengths[start : end + 1]) > room:
                start += 1

    def _sentences(self, text: str, room: int) -> tuple[list[str], list[int]]:
        """Return sentences, those too long cut between lines, else words, and the tokens of each."""
        whole: list[str] = []
        for sentence in split_sentences(text):
            if sentence.strip():
                whole.append(sentence)
            elif whole:
                whole[-1] += sentence  # what separates paragraphs
        sentences, lengths = [], []
        for sentence, encoding in zip(whole, self.tokenizer.encode_batch(whole, add_special_tokens=False), strict=True):
            words, first, begin = encoding.word_ids, 0, 0
            while len(words) - first > room:
                last = first + room
                between = [at for at in range(last, first, -1) if words[at] != words[at - 1]]
                lines = (
                    at for at in between if "\n" in sentence[encoding.offsets[at - 1][1] : encoding.offsets[at][0]]
                )
                last = next(lines, between[0] if between else last)
                sentences.append(sentence[begin : encoding.offsets[last][0]])
                lengths.append(last - first)
                first, begin = last, encoding.offsets[last][0]
            sentences.append(sentence[begin:])
            lengths.append(len(words) - first)
        return sentences, lengths
