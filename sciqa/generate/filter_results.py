"""Workers that filter candidates, and write what is kept and what is rejected."""

import json
from collections import Counter
from functools import partial

import pyarrow as pa

from sciqa.core import storage, tables
from sciqa.corpus.chunking import titled_chunk
from sciqa.exam.answer_options import answer_options_of
from sciqa.generate.candidates import candidate_fields, candidate_schema, candidates_path
from sciqa.generate.filters import filterable_question
from sciqa.generate.options import GenerateOptions
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import template_prompt_text

#: Columns of the generated table beside what the model wrote: where a row is from, and what made it.
PROVENANCE = ("title", "passage_id", "source", "generator", "generator_revision", "template", "licence")
#: Shapes of the JSONL files.
SHAPES = ("trl", "alpaca")


def filter_result_rejects_path(folder: str, part: int) -> str:
    """Return the path of a part's rejected replies, by the folder of the generated table."""
    return tables.table_part_path(tables.table_records_path(folder, "rejected"), part)


def filter_result_counts_path(folder: str, part: int) -> str:
    """Return the path of a part's counts, by the folder of the generated table."""
    return tables.table_records_path(folder, "counts", f"{part:05d}.json")


def filter_result_exams_folder(folder: str) -> str:
    """Return the folder of the exams that are compared with, by the folder of the generated table."""
    return tables.table_records_path(folder, "against")


def filter_result_jsonl_folder(options: GenerateOptions) -> str:
    """Return the folder of the rows as JSONL, which has a folder for each of `SHAPES`."""
    return storage.join_paths(options.output, "jsonl", options.name)


class WriteFilterResults:
    """Ray Data worker that filters the candidates of one part at a time, and writes its shard last.

    Args:
        options: options of the step.
        provenance: `generator`, `generator_revision`, `template` and `licence` of every row.
        embed: arguments of `load_embedder` if there are exams to compare with.
        checker: kind and arguments of the reader that answers the questions, if there is one.
    """

    def __init__(
        self,
        options: GenerateOptions,
        provenance: dict[str, str],
        embed: dict | None = None,
        checker: tuple[str, dict] | None = None,
    ) -> None:
        self.options, self.provenance = options, provenance
        self.notes: list[str] = []
        self.copies = self.checker = None
        if embed:
            from sciqa.generate.copies import ExamCopies

            self.copies = ExamCopies(filter_result_exams_folder(options.folder), options, embed)
            self.notes += self.copies.notes
        if checker:
            from sciqa.generate.checks import QuestionChecker

            self.checker = QuestionChecker(*checker)
            self.notes += self.checker.notes

    def __call__(self, row: dict) -> dict:
        """Filter the candidates of the part with the number `row["part"]`."""
        part, options = row["part"], self.options
        rows = tables.read_table(candidates_path(options.folder, part)).to_pylist()
        for faults in (partial(self._duplicates, part), self._copies, self._unanswerable):
            left = [row for row in rows if not row["fault"]]
            for candidate, fault in zip(left, faults(left), strict=True):
                candidate["fault"] = fault
        kept = [self._result(row) for row in rows if not row["fault"]]
        rejected = [row for row in rows if row["fault"]]
        table = pa.Table.from_pylist(rejected, schema=candidate_schema(options))
        tables.write_table(filter_result_rejects_path(options.folder, part), table)
        for shape in SHAPES:
            lines = [json.dumps(_shaped(each, options, shape), ensure_ascii=False) + "\n" for each in kept]
            path = storage.join_paths(filter_result_jsonl_folder(options), shape, f"{part:05d}.jsonl")
            storage.write_bytes(path, "".join(lines).encode())
        counts = {name: sum(row[name] for row in rows) for name in ("tokens_in", "tokens_out")}
        counts |= {"replies": len(rows), "kept": len(kept), "faults": Counter(row["fault"] for row in rejected)}
        storage.write_json(filter_result_counts_path(options.folder, part), counts)
        table = pa.Table.from_pylist(kept, schema=filter_result_schema(options))
        tables.write_table(tables.table_part_path(options.folder, part), table)
        return {"replies": len(rows), "notes": self.notes}

    def _duplicates(self, part: int, rows: list[dict]) -> list[str | None]:
        if "near-duplicate" in self.options.skip_filters:
            return [None] * len(rows)
        folder = tables.table_records_path(self.options.folder, "duplicates")
        repeated = set(tables.read_table(folder, ["row"], [("part", "=", part)])["row"].to_pylist())
        return ["near-duplicate" if number in repeated else None for number in range(len(rows))]

    def _copies(self, rows: list[dict]) -> list[str | None]:
        if self.copies is None:
            return [None] * len(rows)
        copied = self.copies.find([filterable_question(row, self.options.kind) for row in rows])
        return ["exam-copy" if each else None for each in copied]

    def _unanswerable(self, rows: list[dict]) -> list[str | None]:
        if self.checker is None:
            return [None] * len(rows)
        return self.checker.faults([row | {"is_question": True} for row in rows], list(map(_context, rows)))

    def _result(self, row: dict) -> dict:
        result = {name: row[name] for name in ("id", "title", "passage_id", *candidate_fields(self.options))}
        result |= self.provenance | {"source": row["url"], "context": _context(row)}
        return result | {"is_question": True} if self.options.kind == "questions" else result


def _context(row: dict) -> str:
    return titled_chunk(row["title"], row["section"], row["text"])


def filter_result_schema(options: GenerateOptions) -> pa.Schema:
    """Return the schema of the generated table; of questions it is that of an exam table."""
    fields = [(name, pa.string()) for name in ("id", *candidate_fields(options), "context", *PROVENANCE)]
    if options.kind == "questions":
        fields.insert(2, ("is_question", pa.bool_()))
    return pa.schema(fields)


def _shaped(row: dict, options: GenerateOptions, shape: str) -> dict:
    """Return a row in the shape of Alpaca's data, or in that of TRL's conversational prompts with completions."""
    if options.kind == "questions":
        lettered = [f"{letter}. {text}" for letter, text in answer_options_of(row).items()]
        alpaca = {"instruction": row["prompt"], "input": "\n".join(lettered)}
        right = f"{row['answer']}. {row[row['answer']]}"
        prompt = template_prompt_text(row, "", PromptFormat(completion="letter"))
    else:
        alpaca = {name: row[name] for name in ("instruction", "input")}
        right, prompt = row["output"], f"{row['instruction']}\n\n{row['input']}".strip()
    if shape == "alpaca":
        return alpaca | {"output": right}
    completion = [{"role": "assistant", "content": right}]
    return {"prompt": [{"role": "user", "content": prompt}], "completion": completion}
