"""Questions packed into rows: what several sequences begin with stands in a row once, and a mask keeps them apart.

A row holds the tokens that its questions' prompts share, then for each question the rest of its prompt and its options
one after the other. A token sees the earlier tokens of its own part and of the parts it follows, and positions count
along that path, so every option gets keys and values of context and question that were computed once, and the scores
are those of as many separate sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sciqa.models.scorer import Encoded, common_tokens

#: Prompts that begin with as many equal tokens share a row.
SHARED_AT_LEAST = 64


@dataclass(frozen=True)
class Packed:
    """A batch of questions in rows.

    Attributes:
        ids: tokens, shape (rows, tokens).
        positions: shape (rows, tokens).
        mask: True where a token (row) sees another (column), shape (rows, 1, tokens, tokens).
        places: of each question its row, and the columns that predict the tokens of its options that count, one option
            after the other.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    places: list[tuple[int, list[int]]]

    @property
    def first(self) -> int:
        """The first column whose logits are wanted."""
        return min(min(columns) for _, columns in self.places)


def share_prefixes(questions: Sequence[Encoded], most: int | None = None) -> list[list[int]]:
    """Return the numbers of the questions in rows of at most `most` tokens, where more than one is in a row."""
    groups: dict[tuple, list[int]] = {}
    for number, question in enumerate(questions):
        start = tuple(question.prompt[:SHARED_AT_LEAST])
        groups.setdefault(start if len(question.prompt) > SHARED_AT_LEAST else (None, number), []).append(number)
    rows = []
    for group in groups.values():
        shared, room = shared_tokens([questions[number] for number in group]), 0
        for number in group:
            added = questions[number].length - shared
            if added > room:
                rows.append([])
                room = (most or 1 << 62) - shared
            rows[-1].append(number)
            room -= added
    return rows


def shared_tokens(questions: Sequence[Encoded]) -> int:
    """Return how many tokens all prompts begin with, at least one less than the shortest has; 0 for one question."""
    if len(questions) == 1:
        return 0
    prompts = [question.prompt for question in questions]
    return min(common_tokens(prompts), *(len(prompt) - 1 for prompt in prompts))


def row_tokens(questions: Sequence[Encoded]) -> int:
    """Return the length of a row that holds these questions."""
    return sum(question.length for question in questions) - (len(questions) - 1) * shared_tokens(questions)


def pack(questions: Sequence[Encoded]) -> Packed:
    """Return questions as rows, those with shared prefixes in one."""
    rows = share_prefixes(questions)
    width = max(row_tokens([questions[number] for number in row]) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions, sees = torch.zeros_like(ids), torch.zeros(len(rows), width, width, dtype=torch.bool)
    places: list[tuple[int, list[int]]] = [(0, [])] * len(questions)
    for at, numbers in enumerate(rows):
        row = _Row(ids[at], positions[at])
        shared = shared_tokens([questions[number] for number in numbers])
        prefix = row.add(questions[numbers[0]].prompt[:shared])
        for number in numbers:
            question = questions[number]
            stem = row.add(question.prompt[shared:], prefix)
            wanted = []
            for option, counted in zip(question.options, question.counted, strict=True):
                start = row.parts[row.add(option, stem)].start
                columns = [row.parts[stem].stop - 1, *range(start, start + len(option) - 1)]
                wanted += columns[len(option) - counted : len(option)]
            places[number] = (at, wanted)
        sees[at] = row.sees()
    return Packed(ids, positions, sees[:, None], places)


class _Row:
    """One row while it is filled, part by part."""

    def __init__(self, ids: torch.Tensor, positions: torch.Tensor) -> None:
        self.ids, self.positions = ids, positions
        self.parts: list[slice] = []
        self.paths: list[list[int]] = []

    def add(self, tokens: list[int], parent: int | None = None) -> int:
        """Put the tokens of a part that follows another behind what is there, and return the part's number."""
        path = self.paths[parent] if parent is not None else []
        start = self.parts[-1].stop if self.parts else 0
        before = sum(self.parts[part].stop - self.parts[part].start for part in path)
        self.parts.append(slice(start, start + len(tokens)))
        self.paths.append([*path, len(self.parts) - 1])
        self.ids[self.parts[-1]] = torch.tensor(tokens, dtype=torch.long)
        self.positions[self.parts[-1]] = torch.arange(before, before + len(tokens))
        return len(self.parts) - 1

    def sees(self) -> torch.Tensor:
        """Return which tokens see which; one of padding itself, since a softmax over nothing is not a number."""
        seen = torch.eye(len(self.ids), dtype=torch.bool)
        for part, path in zip(self.parts, self.paths, strict=True):
            for before in path:
                seen[part, self.parts[before]] = True
        return seen.tril()
