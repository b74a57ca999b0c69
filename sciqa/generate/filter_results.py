"""Workers that filter candidates, and write what is kept and what is rejected."""

import json
from collections import Counter
from typing import NamedTuple

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


class FilterResultSettings(NamedTuple):
    """How workers filter.

    Attributes:
        options: options of the step.
        provenance: `generator`, `generator_revision`, `template` and `licence` of every row.
        embed: arguments of `load_embedder` if there are exams to compare with.
        checker: kind and arguments of the reader that answers the questions, if there is one.
    """

    options: GenerateOptions
    provenance: dict[str, str]
    embed: dict | None = None
    checker: tuple[str, dict] | None = None


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
    """Ray Data worker that filters the candidates of one part at a time, and writes its shard last."""

    def __init__(self, filtering: FilterResultSettings) -> None:
        self.options, self.provenance = filtering.options, filtering.provenance
        self.notes: list[str] = []
        self.copies = self.checker = None
        if filtering.embed:
            from sciqa.generate.copies import ExamCopies

            self.copies = ExamCopies(filter_result_exams_folder(self.options.folder), self.options, filtering.embed)
            self.notes += self.copies.notes
        if filtering.checker:
            from sciqa.generate.checks import QuestionChecker

            self.checker = QuestionChecker(*filtering.checker)
            self.notes += self.checker.notes

    def __call__(self, row: dict) -> dict:
        """Filter the candidates of the part with the number `row["part"]`."""
        part, options = row["part"], self.options
        rows = tables.read_table(candidates_path(options.folder, part)).to_pylist()
        self._reject_duplicates(part, rows)
        self._reject_copies(rows)
        self._reject_unanswerable(rows)
        kept = [self._result(row) for row in rows if not row["fault"]]
        rejected = [row for row in rows if row["fault"]]
        schema = candidate_schema(options)
        tables.write_table(
            filter_result_rejects_path(options.folder, part), pa.Table.from_pylist(rejected, schema=schema)
        )
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

    def _reject_duplicates(self, part: int, rows: list[dict]) -> None:
        if "near-duplicate" in self.options.skip_filters:
            return
        folder = tables.table_records_path(self.options.folder, "duplicates")
        repeated = set(tables.read_table(folder, ["row"], [("part", "=", part)])["row"].to_pylist())
        for number, row in enumerate([row for row in rows if not row["fault"]]):
            if number in repeated:
                row["fault"] = "near-duplicate"

    def _reject_copies(self, rows: list[dict]) -> None:
        if self.copies is None:
            return
        left = [row for row in rows if not row["fault"]]
        for row, copied in zip(
            left, self.copies.find([filterable_question(r, self.options.kind) for r in left]), strict=True
        ):
            row["fault"] = "exam-copy" if copied else None

    def _reject_unanswerable(self, rows: list[dict]) -> None:
        if self.checker is None:
            return
        left = [row for row in rows if not row["fault"]]
        questions = [row | {"is_question": True} for row in left]
        for row, fault in zip(left, self.checker.faults(questions, list(map(_context, left))), strict=True):
            row["fault"] = fault

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
