"""Wrong options for open questions: the entities, numbers and sentences of the corpus nearest to the right answer."""

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from sciqa.core import cluster, hashes, model_workers, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import model_file_bytes
from sciqa.corpus.chunking import split_sentences, titled_chunk
from sciqa.exam.answer_options import answer_option_text
from sciqa.exam.baselines import FUNCTION_WORDS
from sciqa.exam.exam_files import read_exam_files
from sciqa.exam.instructions import instruction_ids
from sciqa.exam.row import Row
from sciqa.generate.candidates import PASSAGE, CandidatePart, judge_candidate, write_candidates
from sciqa.generate.filters import filter_key_words
from sciqa.generate.options import GenerateOptions
from sciqa.retrieval.contexts import FindContexts
from sciqa.retrieval.index import check_index_embedder, index_identity, read_index_manifest
from sciqa.retrieval.options import ContextOptions, SearchOptions
from sciqa.retrieval.queries import open_query_index
from sciqa.retrieval.search import LocalSearch, ShardedSearch

#: Passages per question whose entities and sentences are taken.
PASSAGES = 20
#: Words from which on an answer is a statement, whose wrong options are statements too.
STATEMENT = 8
#: Shares of the answer's number of words that another statement may have.
SHORTEST, LONGEST = 0.5, 2.0
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
#: Names: words with capital letters, which prepositions may join.
NAME = re.compile(r"[A-Z][\w’'-]*(?: (?:(?:of|the|de|von|and) )*[A-Z][\w’'-]*)*")
#: Columns of the open questions.
ASKED = pa.schema([(name, pa.string()) for name in ("id", "prompt", "answer")])


class WriteDistractors:
    """Ray Data worker that makes candidates of one part of the open questions at a time.

    `embed` has the arguments of `load_embedder`.
    """

    def __init__(self, options: GenerateOptions, index: ShardedSearch | LocalSearch, embed: dict) -> None:
        self.options = options
        self.finder = FindContexts(None, distractor_search(options), index, embed, ContextOptions())
        self.notes = self.finder.embedder.notes

    def __call__(self, row: dict) -> dict:
        """Write the candidates of the part `row["part"]`, and return their number."""
        part, options = CandidatePart(**row["part"]), self.options
        asked = tables.read_table_rows(part.path, part.first, part.last, ASKED.names)
        questions = [{"id": e["id"], "prompt": e["prompt"], "A": e["answer"], "context": None} for e in asked]
        found = [each["passages"] for each in self.finder.find(questions)]
        rows = [self._candidate(*each) for each in zip(asked, found, strict=True)]
        write_candidates(options, part.number, rows)
        return {"passages": len(rows), "notes": self.notes}

    def _candidate(self, asked: dict, passages: list[dict]) -> dict:
        row = {name: passages[0].get(name) or "" for name in PASSAGE}
        row |= {"id": asked["id"], "reply": asked["answer"], "fault": None, "tokens_in": 0, "tokens_out": 0}
        sentence = self._sentence(asked, row)
        wrong = self._nearest(asked, passages, sentence)
        if len(wrong) < self.options.choices - 1:
            return row | {"fault": "few-distractors"}
        fields = {"prompt": asked["prompt"], "answer": "A", "sentence": sentence}
        fields |= dict(zip(string.ascii_uppercase, [asked["answer"], *wrong], strict=False))
        return judge_candidate(row, fields, self.options)

    def _nearest(self, asked: dict, passages: list[dict], sentence: str) -> list[str]:
        """Return the wrong options, nearest to the right one first, no two of which say the same.

        The sentence that decides is none of them, since it says what the right one says.
        """
        answer = asked["answer"]
        found = dict.fromkeys(find_distractors(asked["prompt"], answer, passages))
        taken, texts = [filter_key_words(answer)], [text for text in found if text != " ".join(sentence.split())]
        if not texts:
            return []
        wrong: list[str] = []
        for number in np.argsort(-self._nearness(answer, texts), kind="stable"):
            words = filter_key_words(texts[number])
            if words and not any(words <= each or each <= words for each in taken):
                wrong.append(texts[number])
                taken.append(words)
        return wrong[: self.options.choices - 1]

    def _sentence(self, asked: dict, passage: dict) -> str:
        """Return the sentence of the passage that is nearest to question and answer."""
        sentences = [text.strip() for text in split_sentences(passage["text"]) if text.strip()]
        return sentences[int(np.argmax(self._nearness(f"{asked['prompt']} {asked['answer']}", sentences)))]

    def _nearness(self, text: str, others: list[str]) -> np.ndarray:
        vectors = self.finder.embed([text, *others], "passage")
        return (vectors[1:] * vectors[0]).sum(axis=1)


def find_distractors(prompt: str, answer: str, passages: list[dict]) -> Iterator[str]:
    """Yield texts of passages that have the form of an answer: its number or name exchanged, titles, or sentences.

    Args:
        prompt: the question.
        answer: the right answer.
        passages: rows of the passages table, nearest first.
    """
    texts = [titled_chunk(each["title"], each["section"], each["text"]) for each in passages]
    names = [each["title"] for each in passages] + [name for text in texts for name in _names(text)]
    if numbers := NUMBER.findall(answer):
        named = {*numbers, *NUMBER.findall(prompt)}
        others = (other for text in texts for other in NUMBER.findall(text) if _same_form(other, numbers[0]))
        yield from (answer.replace(numbers[0], other, 1) for other in others if other not in named)
    elif len(answer.split()) < STATEMENT:
        held = next((name for name in _names(answer) if name != answer), None)
        others = (
            name for name in names if filter_key_words(name) and not filter_key_words(name) <= filter_key_words(prompt)
        )
        yield from (answer.replace(held, name) if held else _in_case_of(answer, name) for name in others)
    if len(answer.split()) >= STATEMENT:
        least, most = (share * len(answer.split()) for share in (SHORTEST, LONGEST))
        sentences = (" ".join(each.split()) for text in texts for each in split_sentences(text))
        yield from (each for each in sentences if least <= len(each.split()) <= most)


def _names(text: str) -> Iterator[str]:
    """Yield the names in a text; a single word at the start of a sentence is none."""
    for found in NAME.finditer(text):
        first, *others = found[0].split(" ")
        begins = text[: found.start()].rstrip()[-1:] in ("", ".", "!", "?")
        if begins and (not others or first.lower() in FUNCTION_WORDS):
            first, *others = others or [""]
        if first:
            yield " ".join([first, *others])


def _same_form(number: str, other: str) -> bool:
    """Whether two numbers have equally many digits before their point, as years do."""
    return len(re.split(r"[.,]", number)[0]) == len(re.split(r"[.,]", other)[0]) and ("." in number) == ("." in other)


def _in_case_of(answer: str, name: str) -> str:
    """Return a name with a small first letter if the answer has one and the name is no abbreviation."""
    return name[0].lower() + name[1:] if answer[:1].islower() and name[1:] == name[1:].lower() else name


def distractor_search(options: GenerateOptions) -> SearchOptions:
    """Return how passages are searched for wrong options."""
    names = ("output", "index", "embedder", "verify", "cache_bytes")
    return SearchOptions(**{name: getattr(options, name) for name in names}, top_k=PASSAGES)


def distractor_inputs(options: GenerateOptions) -> dict:
    """Return what wrong options follow from, besides the questions.

    Raises:
        InputError: there is no finished index of the embedding model.
    """
    index = read_index_manifest(options.index)
    check_index_embedder(distractor_search(options))
    return {"index": index_identity(index), "prefix": options.prefix("query"), "embed_backend": options.embed_backend}


@contextmanager
def distractor_workers(options: GenerateOptions, parts: int) -> Iterator[dict]:
    """Open the index, and yield the arguments of `Dataset.map` for workers that search it."""
    workers = cluster.num_cluster_workers(options, parts)
    with open_query_index(distractor_search(options), read_index_manifest(options.index)) as index:
        pool = model_workers.model_worker_pool(options, workers, parts, model_file_bytes(options.embedder))
        arguments = {"options": options, "index": index, "embed": options.embed_arguments(workers)}
        yield model_workers.model_worker_arguments(WriteDistractors, arguments, pool)


def read_distractor_questions(path: str) -> list[dict[str, str]]:
    """Return the open questions of a file or folder, with `id`, `prompt` and `answer`.

    Raises:
        InputError: names file, row and column of the problem.
    """
    rows = read_exam_files(path)
    return [
        {"id": name, "prompt": _text(row, "prompt", "instruction"), "answer": _text(row, "answer", "output")}
        for name, row in zip(instruction_ids(rows), rows, strict=True)
    ]


def _text(row: Row, name: str, other: str) -> str:
    """Return the text of a column that has one of two names."""
    column = name if name in row.cells else other
    try:
        text = answer_option_text(row.cells.get(column))
    except ValueError as error:
        raise row.error(column, str(error)) from error
    if text is None:
        raise InputError(f"{row.place}, column {name!r} (or {other!r}): nothing found, a text expected")
    return text


def distractor_questions_path(folder: str) -> str:
    """Return the path of the open questions' table, by the folder of the generated table."""
    return tables.table_records_path(folder, "asked", "questions.parquet")


def write_distractor_questions(folder: str, questions: list[dict[str, str]]) -> None:
    """Write the open questions where workers read them."""
    tables.write_table(distractor_questions_path(folder), pa.Table.from_pylist(questions, schema=ASKED))


def distractor_parts(options: GenerateOptions, questions: list[dict[str, str]]) -> tuple[list[CandidatePart], str]:
    """Return the parts of the open questions, and a hash of these."""
    step, path, most = options.part_passages, distractor_questions_path(options.folder), len(questions)
    parts = [CandidatePart(at // step, path, at, min(at + step, most)) for at in range(0, most, step)]
    return parts, hashes.fingerprint(questions)
