"""Near copies of named exams among generated questions, by the measure of the `audit` step."""

import io

import numpy as np

from sciqa.audit.words import SEED, ExamWords, question_word_texts, question_words, share_of_words_found, split_words
from sciqa.core import storage, tables
from sciqa.exam.question_key import question_key
from sciqa.generate.options import GenerateOptions
from sciqa.retrieval.embedder import embed_one_by_one
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.queries import query_texts


class ExamCopies:
    """The questions of named exams, to compare others with.

    Args:
        folder: folder with a Parquet file for each exam; their vectors are kept there too, once computed.
        options: what makes two questions near copies.
        embed: arguments of `load_embedder`.
    """

    def __init__(self, folder: str, options: GenerateOptions, embed: dict) -> None:
        self.options, self.prefix = options, options.prefix("query")
        self.embedder = load_embedder(**embed)
        self.notes = self.embedder.notes
        others = [row for path in storage.list_files(folder, "parquet") for row in tables.read_table(path).to_pylist()]
        self.keys = {question_key(question) for question in others}
        self.texts = [split_words(text) for question in others for text in question_word_texts(question)]
        self.vectors = self._stored_vectors(storage.join_paths(folder, "vectors.npy"), others)

    def _stored_vectors(self, path: str, questions: list[dict]) -> np.ndarray:
        if storage.path_exists(path):
            return np.load(io.BytesIO(storage.read_bytes(path)))
        buffer = io.BytesIO()
        np.save(buffer, vectors := self._embed(questions))
        storage.write_bytes(path, buffer.getvalue())
        return vectors

    def _embed(self, questions: list[dict]) -> np.ndarray:
        whole = [text or "" for text in query_texts(questions, "whole")[0]]
        return embed_one_by_one(self.embedder, whole, prefix=self.prefix, kind="query")

    def find(self, questions: list[dict]) -> list[bool]:
        """Return for each question whether it is a copy or near copy of one of the exams' questions."""
        if not questions:
            return []
        exact = np.array([question_key(question) in self.keys for question in questions])
        near = (self._embed(questions) @ self.vectors.T).max(axis=1) >= self.options.similarity
        return (exact | near | self._shares_words(questions)).tolist()

    def _shares_words(self, questions: list[dict]) -> np.ndarray:
        words = [question_words(question)[0] for question in questions]
        seed = min(SEED, self.options.ngram)
        runs: list[list[tuple[int, int]]] = [[] for _ in words]
        for question, start, length, _ in zip(*ExamWords(words, seed).runs(self.texts), strict=True):
            runs[question].append((int(start), int(length)))
        shares = [
            share_of_words_found(each, len(own), self.options.ngram, seed)
            for each, own in zip(runs, words, strict=True)
        ]
        return np.array([(share or 0.0) >= self.options.share for share in shares])
