"""Worker that writes a model's answers to instructions, and scores them against the references."""

import numpy as np
import pyarrow as pa

from sciqa.core import tables
from sciqa.exam.instructions import instruction_prompt
from sciqa.generate.local_writer import LocalWriter
from sciqa.generate.text_metrics import FIGURES, rouge_scores, text_scores
from sciqa.models.prompt_template import TemplatePrompt
from sciqa.retrieval.embedder import embed_one_by_one
from sciqa.retrieval.load_embedder import load_embedder

TEXTS = ("id", "instruction", "input", "output", "answer")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in TEXTS),
        ("fault", pa.string()),
        ("tokens", pa.int64()),
        *((name, pa.float64()) for name in FIGURES),
    ]
)


class WriteTextAnswers:
    """Ray Data worker that answers one part of the instructions at a time.

    Args:
        folder: folder of the answers table.
        writer: arguments of `LocalWriter`.
        embed: arguments of `load_embedder`.
        prefix: text before each text that is embedded.
    """

    def __init__(self, folder: str, writer: dict, embed: dict, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.writer, self.embedder = LocalWriter(**writer), load_embedder(**embed)

    def __call__(self, row: dict) -> dict:
        """Write the answers to the instructions `rows` of `row["part"]`."""
        part = row["part"]
        rows = part["rows"]
        prompts = [TemplatePrompt("", [], instruction_prompt(each)) for each in rows]
        replies = self.writer.write(prompts, [each["id"] for each in rows])
        answers, references = [reply.text.strip() for reply in replies], [each["output"] for each in rows]
        nearness, rouge = self._similarities(answers, references), rouge_scores(answers, references)
        scored = [
            asked
            | {"answer": answer, "fault": reply.fault, "tokens": reply.tokens_out, "similarity": near}
            | figures
            | text_scores(answer, asked["output"])
            for asked, answer, reply, near, figures in zip(rows, answers, replies, nearness, rouge, strict=True)
        ]
        table = pa.Table.from_pylist(scored, schema=SCHEMA)
        tables.write_table(tables.table_part_path(self.folder, part["number"]), table)
        return {"answers": len(rows), "notes": self.embedder.notes}

    def _similarities(self, answers: list[str], references: list[str]) -> list[float]:
        """Return the cosine of each answer and its reference; of an empty answer, which has no vector, 0."""
        given = [number for number, answer in enumerate(answers) if answer]
        found = np.zeros(len(answers))
        if given:
            texts = [side[number] for side in (answers, references) for number in given]
            vectors = embed_one_by_one(self.embedder, texts, prefix=self.prefix, kind="passage").astype(float)
            found[given] = (vectors[: len(given)] * vectors[len(given) :]).sum(axis=1)
        return found.tolist()
