"""Lay out questions as rows of tokens: packed rows compute shared tokens once, plain rows hold one option each.

A packed row holds the prompt prefix that its questions share, then for each question the rest of its prompt and its
options one after the other. A token attends to the earlier tokens of its own part and to the parts that it continues;
positions count along that path. So the keys and values of context and question are computed once for all options, and
the scores equal those of separate sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sciqa.models.scorer import EncodedForScorer

#: Prompts share a row if at least this many tokens at their start are equal.
SHARED_AT_LEAST = 64


@dataclass(frozen=True)
class PackedOption:
    """Place of an option in a batch of rows: the columns of its row whose logits predict its scored tokens, in order.

    Question, option and row are indices too.
    """

    question: int
    option: int
    row: int
    columns: list[int]


@dataclass(frozen=True)
class PackedRows:
    """A batch of rows of tokens, padded on the right.

    Attributes:
        ids: tokens, shape (rows, tokens).
        mask: attention mask. Packed rows: True where a token (row) sees another (column), shape (rows, 1, tokens,
            tokens). Plain rows: 1 for tokens and 0 for padding, shape (rows, tokens).
        positions: position ids of packed rows, shape (rows, tokens); None for plain rows, whose positions the model
            counts.
        places: places of all options in the rows.
        ends: of each packed row, the column where what all later tokens see ends (the common prefix, or the prompt of a
            single question), and where what each question has besides ends; no question sees another's. Empty for plain
            rows.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor | None
    places: list[PackedOption]
    ends: list[list[int]] = field(default_factory=list)

    @property
    def first(self) -> int:
        """The first column whose logits are needed."""
        return min(place.columns[0] for place in self.places)


def pack_by_shared_prefix(questions: Sequence[EncodedForScorer], most: int | None = None) -> list[list[int]]:
    """Group questions into rows by prompt prefix, as indices; rows of several questions have at most `most` tokens."""
    groups: dict[tuple, list[int]] = {}
    for number, question in enumerate(questions):
        start = tuple(question.prompt[:SHARED_AT_LEAST])
        groups.setdefault(start if len(question.prompt) > SHARED_AT_LEAST else (None, number), []).append(number)
    rows: list[list[int]] = []
    for group in groups.values():
        shared, room = packed_prefix_tokens([questions[number] for number in group]), 0
        for number in group:
            added = questions[number].length - shared
            if added > room:
                rows.append([])
                room = (most or 1 << 62) - shared
            rows[-1].append(number)
            room -= added
    return rows


def packing_common_tokens(rows: list[list[int]]) -> int:
    """Return the length of the common prefix of all rows, in tokens."""
    first, last = min(rows), max(rows)
    return next(
        (at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), min(map(len, rows))
    )


def packed_prefix_tokens(questions: Sequence[EncodedForScorer]) -> int:
    """Return the length of the common prompt prefix, shorter than every prompt; 0 for one question."""
    if len(questions) == 1:
        return 0
    prompts = [question.prompt for question in questions]
    return min(packing_common_tokens(prompts), *(len(prompt) - 1 for prompt in prompts))


def packed_row_tokens(questions: Sequence[EncodedForScorer]) -> int:
    """Return the length in tokens of a packed row of these questions."""
    return sum(question.length for question in questions) - (len(questions) - 1) * packed_prefix_tokens(questions)


def pack_rows(questions: Sequence[EncodedForScorer]) -> PackedRows:
    """Return questions as packed rows; questions with a common prefix share a row."""
    rows = pack_by_shared_prefix(questions)
    width = max(packed_row_tokens([questions[number] for number in row]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions, sees = torch.zeros_like(ids), torch.zeros(len(rows), width, width, dtype=torch.bool)
    places, ends = [], []
    for at, numbers in enumerate(rows):
        row = _Row(ids[at], positions[at])
        shared = packed_prefix_tokens([questions[number] for number in numbers])
        prefix = row.add(questions[numbers[0]].prompt[:shared])
        alone = len(numbers) == 1  # then its options see its whole prompt
        ends.append([shared] * (not alone))
        for number in numbers:
            question = questions[number]
            stem = row.add(question.prompt[shared:], prefix)
            for option, (tokens, counted) in enumerate(zip(question.options, question.counted, strict=True)):
                start = row.parts[row.add(tokens, stem)].start
                columns = [row.parts[stem].stop - 1, *range(start, start + len(tokens) - 1)]
                places.append(PackedOption(number, option, at, columns[len(tokens) - counted : len(tokens)]))
            ends[at] += [row.parts[stem].stop] * alone + [row.parts[-1].stop]
        sees[at] = row.sees()
    return PackedRows(ids, sees[:, None], positions, places, ends)


def unpacked_rows(questions: Sequence[EncodedForScorer], options: Sequence[tuple[int, int]]) -> PackedRows:
    """Return plain rows: one for each given option, a pair (question index, option index), after its prompt."""
    rows = [questions[question].prompt + questions[question].options[option] for question, option in options]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    places = [
        PackedOption(
            question, option, at, list(range(len(row) - 1 - questions[question].counted[option], len(row) - 1))
        )
        for at, ((question, option), row) in enumerate(zip(options, rows, strict=True))
    ]
    return PackedRows(ids, mask, None, places)


class _Row:
    """Builder of one packed row, filled part by part."""

    def __init__(self, ids: torch.Tensor, positions: torch.Tensor) -> None:
        self.ids, self.positions = ids, positions
        self.parts: list[slice] = []
        self.paths: list[list[int]] = []

    def add(self, tokens: list[int], parent: int | None = None) -> int:
        """Append a part that continues the part `parent`, and return its index."""
        path = self.paths[parent] if parent is not None else []
        start = self.parts[-1].stop if self.parts else 0
        before = sum(self.parts[part].stop - self.parts[part].start for part in path)
        self.parts.append(slice(start, start + len(tokens)))
        self.paths.append([*path, len(self.parts) - 1])
        self.ids[self.parts[-1]] = torch.tensor(tokens, dtype=torch.long)
        self.positions[self.parts[-1]] = torch.arange(before, before + len(tokens))
        return len(self.parts) - 1

    def sees(self) -> torch.Tensor:
        """Return the attention mask; padding sees itself, because a softmax over nothing is not a number."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for part, path in zip(self.parts, self.paths, strict=True):
            for before in path:
                seen[part, self.parts[before]] = True
        return seen.tril()
