"""Worker functions of the `audit` step: embed questions, and compare an exam with a part of the others or of texts."""

import io
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

import numpy as np

from sciqa.audit.contamination import ARTICLE, EXACT, NEAR, PASSAGE_RUN, QUESTION_RUN, ContaminationFindings
from sciqa.audit.words import ExamWords, question_word_texts, question_words, split_words
from sciqa.core import storage, tables
from sciqa.corpus.articles import ArticleCounts, read_articles
from sciqa.corpus.parts import check_corpus_files
from sciqa.corpus.passage_shards import read_passage_shard
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_key import question_key, question_keys_with_context
from sciqa.retrieval.embedder import embed_one_by_one
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.queries import query_texts

#: Texts whose words are held at once.
TEXTS = 1024
#: Cosines that a matrix product may get wrong by rounding, which depends on its shape.
ROUNDING = 1e-5


class EmbedComparedQuestions:
    """Ray Data worker that writes the vectors of a part of a table of questions, each embedded with its options.

    `embed` has the arguments of `load_embedder`; `prefix` is the text before each question.
    """

    def __init__(self, embed: dict, prefix: str) -> None:
        self.embedder, self.prefix = load_embedder(**embed), prefix

    def __call__(self, row: dict) -> dict:
        """Write the vectors of the questions that `row["part"]` names to its path `vectors`."""
        part = row["part"]
        questions = tables.read_table_rows(part["table"], part["first"], part["last"])
        whole = [text or "" for text in query_texts(questions, "whole")[0]]
        names = [f"question {question['id']!r} of {part['source']}" for question in questions]
        vectors = embed_one_by_one(self.embedder, whole, prefix=self.prefix, kind="query", names=names)
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        storage.write_bytes(part["vectors"], buffer.getvalue())
        return {"questions": len(questions), "notes": self.embedder.notes}


def read_compared_question_vectors(parts: list[dict]) -> np.ndarray:
    """Return the vectors of parts of a table, float32, shape (questions, dimension)."""
    return np.concatenate([np.load(io.BytesIO(storage.read_bytes(part["vectors"]))) for part in parts])


class ComparedExam:
    """What is held in memory of an exam to compare others with; runs have at least `seed` words."""

    def __init__(self, exam: Exam, seed: int) -> None:
        questions = [question for part in range(exam.shards) for question in exam.read_shard(part)]
        self.words = ExamWords([question_words(question)[0] for question in questions], seed)
        self.keys: dict[tuple, list[int]] = {}
        self.titles: dict[str, list[int]] = {}
        for number, question in enumerate(questions):
            for key in question_keys_with_context(question_key(question), question.get("context"))[0]:
                self.keys.setdefault(key, []).append(number)
            if question.get("title"):
                self.titles.setdefault(question["title"], []).append(number)


#: Made once in each worker process.
_compared_exam = lru_cache(1)(ComparedExam)


def compare_part(row: dict, exam: Exam, seed: int, exam_parts: list[dict]) -> dict:
    """Compare an exam with the part `row["part"]` of other questions or of texts, and write what is found.

    The part names the path to write to, `findings`; `exam_parts` are those of the exam's table, with their vectors, and
    runs of words have at least `seed`.
    """
    part, held, findings = row["part"], _compared_exam(exam, seed), ContaminationFindings()
    if part.get("table"):
        _compare_questions(part, held, findings, exam_parts)
    else:
        tally = ArticleCounts()
        _add_runs(PASSAGE_RUN, held, _texts(part, tally), findings)
        findings.articles = tally["articles"]
        findings.left_out = {
            f"{row['path']}: {row['reason']}" + f" ({row['title']})" * bool(row["title"]) for row in tally.named
        }
    findings.write(part["findings"])
    return {"done": 1}


def _compare_questions(part: dict, held: ComparedExam, findings: ContaminationFindings, exam_parts: list[dict]) -> None:
    others = tables.read_table_rows(part["table"], part["first"], part["last"])
    places = [(part["source"], question["id"], question.get("title") or "") for question in others]
    asked, vectors = read_compared_question_vectors(exam_parts), read_compared_question_vectors([part])
    for number, several in enumerate(compare_question_vectors(asked, vectors)):
        for at, cosine in several:
            findings.add(NEAR, number, cosine, places[at])
    for at, question in enumerate(others):
        keys = question_keys_with_context(question_key(question), question.get("context"))[1]
        for number in (number for key in keys for number in held.keys.get(key, ())):
            findings.add(EXACT, number, compare_question_cosines(asked[number], vectors[[at]])[0], places[at])
        for number in held.titles.get(question.get("title") or "", ()):
            findings.add(ARTICLE, number, 1.0, places[at])
    texts = (
        (place, text) for place, question in zip(places, others, strict=True) for text in question_word_texts(question)
    )
    _add_runs(QUESTION_RUN, held, texts, findings)


def compare_question_vectors(asked: np.ndarray, vectors: np.ndarray) -> Iterator[list[tuple[int, float]]]:
    """Yield for each row of one array the rows of another with the largest cosine, several if they are equally near.

    Args:
        asked: unit vectors, shape (questions, dimension).
        vectors: unit vectors, shape (others, dimension), at least one.
    """
    products = asked @ vectors.T
    for vector, row in zip(asked, products, strict=True):
        near = np.flatnonzero(row >= row.max() - ROUNDING)
        exactly = compare_question_cosines(vector, vectors[near])
        yield [(int(at), cosine) for at, cosine in zip(near, exactly, strict=True) if cosine == max(exactly)]


def compare_question_cosines(vector: np.ndarray, others: np.ndarray) -> list[float]:
    """Return the cosines of a unit vector to others, shape (others, dimension); each depends on its own row alone."""
    return np.minimum(1.0, (others * vector).sum(axis=1)).tolist()


def _texts(part: dict, tally: ArticleCounts) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yield the place (source, name, title) and the text of each passage or article of a part; count the articles."""
    if path := part.get("path"):
        content = part.get("content")
        table = read_passage_shard(path, content) if content else tables.read_table(path)
        for passage in tables.table_rows(table.select(["passage_id", "title", "text"])):
            yield ("", passage["passage_id"], passage["title"]), passage["text"]
    check_corpus_files(files := part.get("files") or {})
    for piece in part.get("pieces") or ():
        for article in read_articles(**piece, tally=tally):
            yield ("", piece["path"], article["title"]), article["text"]
    check_corpus_files(files)


def _add_runs(
    what: str, held: ComparedExam, texts: Iterator[tuple[tuple[str, str, str], str]], findings: ContaminationFindings
) -> None:
    """Add the runs of words that the exam shares with texts, of which `TEXTS` are held at once."""
    while batch := sorted(islice(texts, TEXTS)):
        runs = held.words.runs(split_words(text) for _, text in batch)
        for question, start, length, text in zip(*(each.tolist() for each in runs), strict=True):
            findings.add(what, question, length, batch[text][0], start)
