"""Workers that turn passages into candidates: ask for replies, parse them, and look for faults of each alone."""

from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from sciqa.core import storage, tables
from sciqa.core.device import Device
from sciqa.corpus import dedup
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.passage_shards import read_passage_shard
from sciqa.generate.filters import filter_option_order, filter_question, filter_repeat_text
from sciqa.generate.options import GenerateOptions
from sciqa.generate.passage_template import PassageTemplate
from sciqa.generate.replies import GenerateReplyError, SchemaForm, parse_reply, reply_schema
from sciqa.generate.server_writer import ServerWriter, ServerWriterReply
from sciqa.predict.api_client import ApiClientServer

PASSAGE = ("passage_id", "title", "section", "text", "url")


class CandidatePart(NamedTuple):
    """Passages that are one part of the work: rows `first` to `last` of a shard.

    Attributes:
        number: number of the part, from 0.
        path: path of the shard.
        first: first row.
        last: row after the last one.
        content: hash of the shard's rows in the manifest of the passages; "" if the shard is not one of passages.
    """

    number: int
    path: str
    first: int
    last: int
    content: str = ""


#: The shard that a worker process read last, of which several parts are taken.
_last_shard = lru_cache(1)(read_passage_shard)


def candidates_path(folder: str, part: int) -> str:
    """Return the path of a part's candidates, by the folder of the generated table."""
    return tables.table_part_path(tables.table_records_path(folder, "candidates"), part)


def candidate_entries_path(folder: str, part: int) -> str:
    """Return the path of what near duplicates among a part's candidates are found by; see `sciqa.corpus.dedup`."""
    return tables.table_records_path(folder, "entries", f"{part:05d}.arrow")


class WriteCandidates:
    """Ray Data worker that writes the candidates of one part of the passages at a time.

    Args:
        options: options of the step.
        template: text and name of the template.
        device: device of a local model.
        threads: its CPU threads.
        form: form of the schema that replies are limited to.
        server: a server, which is asked instead of a local model.
        concurrency: requests that a worker has under way.
        recorded: `revision` and `adapter_revision` of a local model, as in the table's inputs.
    """

    def __init__(
        self,
        options: GenerateOptions,
        template: tuple[str, str],
        device: Device = "cpu",
        threads: int = 1,
        form: SchemaForm = "bounded",
        server: ApiClientServer | None = None,
        concurrency: int = 1,
        recorded: dict | None = None,
    ) -> None:
        self.options, self.template, self.form = options, PassageTemplate(*template), form
        if server:
            self.writer: Any = ServerWriter(server, concurrency, options)
        else:
            from sciqa.generate.local_writer import LocalWriter

            self.writer = LocalWriter(**options.writer_arguments(device, threads) | (recorded or {}))

    def __call__(self, row: dict) -> dict:
        """Write the candidates of the part `row["part"]`, and return their number."""
        part, options = CandidatePart(**row["part"]), self.options
        shard = _last_shard(part.path, part.content).select(PASSAGE)
        passages = shard.slice(part.first, part.last - part.first).to_pylist()
        asked = [passage for passage in passages for _ in range(options.per_passage)]
        names = [f"{passage['passage_id']}-{draw}" for passage in passages for draw in range(options.per_passage)]
        prompts = [self.template.render_passage(passage, options.choices) for passage in asked]
        kept = tables.table_records_path(options.folder, "replies", f"{part.number:05d}")
        schemas = [reply_schema(options.kind, options.choices, self.form, passage["text"]) for passage in asked]
        replies = self.writer.write(prompts, names, kept, schemas)
        rows = [make_candidate(*each, options, self.form) for each in zip(names, asked, replies, strict=True)]
        write_candidates(options, part.number, rows)
        storage.delete_path(tables.table_records_path(kept))
        return {"passages": len(passages), "notes": self.writer.notes}


def write_candidates(options: GenerateOptions, part: int, rows: list[dict]) -> None:
    """Write the candidates of a part, and before them what their near duplicates are found by."""
    texts = [
        {"passage_id": row["passage_id"], "title": "", "section": "", "text": filter_repeat_text(row, options.kind)}
        for row in rows
        if not row["fault"]
    ]
    entries = dedup.make_dedup_entries(texts, 0, near=True)
    dedup.write_dedup_entries(candidate_entries_path(options.folder, part), entries)
    table = pa.Table.from_pylist(rows, schema=candidate_schema(options))
    tables.write_table(candidates_path(options.folder, part), table)


def candidate_schema(options: GenerateOptions) -> pa.Schema:
    """Return the schema of candidates: id, passage, what was replied, its fault and its fields."""
    texts = ["id", *PASSAGE, "reply", "fault", *candidate_fields(options)]
    return pa.schema([*((name, pa.string()) for name in texts), ("tokens_in", pa.int64()), ("tokens_out", pa.int64())])


def candidate_fields(options: GenerateOptions) -> list[str]:
    """Return the names of the fields that a model writes."""
    if options.kind == "instructions":
        return ["instruction", "input", "output"]
    return ["prompt", *map(chr, range(ord("A"), ord("A") + options.choices)), "answer", "sentence"]


def make_candidate(
    name: str, passage: dict, reply: ServerWriterReply, options: GenerateOptions, form: SchemaForm
) -> dict:
    """Return the row of a reply to a passage; `fault` is None if neither its form nor its passage shows one."""
    text = reply.text.encode(errors="replace").decode()
    row: dict = {each: passage[each] for each in PASSAGE} | {"id": name, "reply": text, "fault": reply.fault}
    row |= {"tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
    if reply.fault:
        return row
    try:
        fields = parse_reply(reply.text, options.kind, options.choices, form)
    except GenerateReplyError as error:
        return row | {"fault": str(error)}
    return judge_candidate(row, fields, options) if options.kind == "questions" else row | fields


def judge_candidate(row: dict, fields: dict[str, str], options: GenerateOptions) -> dict:
    """Return the row of a question with its options arranged, and the fault that its passage alone shows."""
    fields = filter_option_order(fields, row["id"])
    context = titled_chunk(row["title"], row["section"], row["text"])
    return row | fields | {"fault": filter_question(fields, context, options.skip_filters)}
