"""The batch predictor: a pool of readers writes ranked answers, and their metrics, to Parquet."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import ray

from sciqa import cluster, storage
from sciqa.cluster import Summary, check_name
from sciqa.errors import InputError
from sciqa.exam.metrics import average_precision_at_3, rank, score
from sciqa.exam.questions import Exam, ExamOptions, open_exam, options_of
from sciqa.hub import adapter_hash, check_base, find_model, has_trained_head, local_path, model_family, weight_bytes
from sciqa.inference.blend import fit_weights
from sciqa.inference.passes import passes_said, split_passes
from sciqa.models.format import Completion, Normalise, Precision, Prompt
from sciqa.models.stored import Streaming, check_streamed, streamed_bytes
from sciqa.retrieval.index import EmbedOptions

ReaderName = Literal["open-book", "closed-book", "retrieval"]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ranking", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("probabilities", pa.list_(pa.float64())),
        ("answer", pa.string()),
        ("average_precision", pa.float64()),
    ]
)
METRICS = pa.schema(
    [
        *((name, pa.string()) for name in ("slice", "reader", "model", "adapter", "contexts")),
        ("questions", pa.int64()),
        *((f"{name}{end}", pa.float64()) for name in ("map_at_3", "accuracy") for end in ("", "_low", "_high")),
        *((name, pa.float64()) for name in ("log_loss", "calibration_error", "seconds")),
    ]
)


@dataclass(kw_only=True)
class PredictOptions(ExamOptions, EmbedOptions):
    """What answers the questions."""

    contexts: str | None = None
    """Folder of the contexts table; by default OUTPUT/contexts."""
    reader: ReaderName = "open-book"
    """`open-book`: the model with the context; `closed-book`: without; `retrieval`: similarity to passages only."""
    model: str = "SmolLM2-135M-Instruct"
    """Model that reads: the packaged one, a local folder (a fine-tuned one too), a .gguf file or a hub id."""
    adapter: str | None = None
    """Adapter of that model, as `sciqa finetune` (OUTPUT/trained/NAME) or peft wrote it."""
    name: str | None = None
    """Answers are kept under this name; by default the reader's, with that of the adapter or fine-tuned model."""
    precision: Precision = "auto"
    """Type of the weights; `auto` is 16 bits where the hardware has them."""
    nf4: bool = False
    """Keep the linear layers of the model in 4 bits (NF4, double quantisation)."""
    prompt: Literal["auto", Prompt] = "auto"
    """`chat` is the tokenizer's chat template; `auto` is what the adapter was trained with, else `plain`."""
    completion: Literal["auto", Completion] = "auto"
    """Score the text or the letter of an option; `auto` is what the adapter was trained with, else the text."""
    normalise: Literal["auto", Normalise] = "auto"
    """Divide an option's log-likelihood by its length in tokens or characters; `auto`: as trained, else by tokens."""
    tokens_per_batch: int = 2048
    """Tokens that a worker computes at once."""
    stream: bool = False
    """Read the model layer by layer, for causal models larger than memory; without an adapter."""
    stream_questions: int = 1024
    """Questions that go through a streamed model together, in whole shards; each time all its weights are read."""
    stream_memory: int = 1_000_000_000
    """Bytes of hidden states that a worker keeps in memory; where they are more, they are in a file in its TMPDIR."""
    blend: tuple[str, ...] = ()
    """Instead of reading, average the probabilities of these readers' answers (names in OUTPUT/answers)."""
    blend_fit: str | None = None
    """Output folder of a run on other questions with answers: the weights that suit the same readers there best."""

    def __post_init__(self) -> None:
        """Fill the defaults and check the numbers."""
        super().__post_init__()
        self.contexts = self.contexts or storage.join(self.output, "contexts")
        self.model = local_path(self.model)
        self.adapter = self.adapter and local_path(self.adapter)
        own = Path(self.adapter or self.model)
        default = f"{self.reader}-{own.name}" if own.is_absolute() and self.reader != "retrieval" else self.reader
        self.name = self.name or ("blend" if self.blend else default)
        self.at_least(1, "tokens_per_batch", "stream_questions")
        self.at_least(0, "stream_memory")
        if self.stream and self.adapter:
            raise InputError("--stream: reads no adapters; make one model of it and its base by `sciqa merge` first")
        if self.stream and self.nf4:
            raise InputError(
                "--stream: computes with weights as they are stored; leave --nf4 out, or pass a model that "
                "bitsandbytes has stored in 4 bits"
            )
        check_name(self.name)
        if self.blend_fit and not self.blend:
            raise InputError("--blend-fit: fits the weights of --blend; name the readers there")


def predict(options: PredictOptions) -> Summary:
    """Write the answers table of one reader, and its metrics where the exam has answers.

    The tables are `OUTPUT/answers/NAME/` and `OUTPUT/metrics/NAME.parquet`. Finished shards of an earlier
    run with the same inputs are kept.

    Raises:
        InputError: a bad exam, no contexts of this exam, no such model, or an adapter for another one.
    """
    started = time.monotonic()
    exam = open_exam(options)
    inputs = _inputs(options, exam)
    folder = answers_path(options.output, options.name)
    present = storage.begin(folder, inputs)
    paths = {part: _part_path(folder, part) for part in range(exam.shards)}
    missing = [part for part, path in paths.items() if path.rsplit("/", 1)[-1] not in present]
    if kept := storage.MANIFEST in present:
        manifest = storage.read_manifest(folder, "predict")
    else:
        list(_answer_all(exam, options, folder, missing, inputs))
        manifest = {"seconds": time.monotonic() - started, "inputs": inputs}
        _write_metrics(options, exam, folder, manifest["seconds"])
        storage.finish(folder, manifest)
    made = f"{exam.questions:,} questions ranked, {options.name}" + ", kept" * kept
    if options.blend:
        made += " (" + ", ".join(f"{name} {weight:.2f}" for name, weight in inputs["blend"].items()) + ")"
    if 0 < len(missing) < exam.shards:
        made += f", {exam.shards - len(missing)} of {exam.shards} shards kept"
    metrics = storage.read_table(metrics_path(options.output, options.name)).to_pylist()
    return Summary("predict", folder, made, time.monotonic() - started, metrics[0] if metrics else {})


def metrics_path(output: str, name: str) -> str:
    """Return where a reader's metrics table is."""
    return storage.join(output, "metrics", f"{name}.parquet")


def answers_path(output: str, name: str) -> str:
    """Return where a reader's answers table is."""
    return storage.join(output, "answers", name)


def check_reader(options: PredictOptions) -> None:
    """Raise `InputError` unless the model is there, can rank options, and the adapter is one for it."""
    family = model_family(options.model)
    if options.stream:
        check_streamed(options.model)
    if options.adapter:
        check_base(options.adapter, options.model)
    elif family == "multiple-choice" and not has_trained_head(options.model):
        raise InputError(
            f"{options.model}: an encoder whose multiple-choice head has not been trained; "
            "run `sciqa finetune` on it and pass what it makes as --adapter or --model"
        )


def _inputs(options: PredictOptions, exam: Exam) -> dict:
    """Check what the reader needs and return all that its answers follow from."""
    inputs = {"exam": exam.sha256, "reader": options.name}
    if options.blend:
        return inputs | {"answers": _blended(options, exam), "blend": _blend_weights(options)}
    if options.reader != "closed-book":
        contexts = storage.read_manifest(options.contexts, "retrieve")["inputs"]
        if contexts["exam"] != exam.sha256:
            raise InputError(
                f"{options.contexts}: these contexts belong to another exam than {options.exam}; "
                "run `sciqa retrieve` with the same --exam and --output"
            )
        inputs["contexts"] = contexts
    if options.reader == "retrieval":
        inputs |= {"embedder": find_model(options.embedder).revision, "backend": options.embed_backend}
        return inputs | {"prefixes": [options.prefix("query"), options.prefix("passage")]}
    check_reader(options)
    inputs |= {"model": find_model(options.model).revision, "precision": options.precision, "nf4": options.nf4}
    inputs |= {"adapter": adapter_hash(options.adapter) if options.adapter else None}
    return inputs | {name: getattr(options, name) for name in ("prompt", "completion", "normalise")}


def _blended(options: PredictOptions, exam: Exam) -> dict[str, str]:
    """Return, for each reader to blend, what its answers follow from."""
    found = {}
    for name in options.blend:
        folder = answers_path(options.output, name)
        inputs = storage.read_manifest(folder, "predict")["inputs"]
        if inputs["exam"] != exam.sha256:
            raise InputError(f"{folder}: answers to another exam than {options.exam}; run `sciqa predict` on it first")
        found[name] = storage.fingerprint(inputs)
    return found


def _blend_weights(options: PredictOptions) -> dict[str, float]:
    if not options.blend_fit:
        return {name: 1 / len(options.blend) for name in options.blend}
    folders = {name: answers_path(options.blend_fit, name) for name in options.blend}
    for folder in folders.values():
        storage.read_manifest(folder, "predict")
    return fit_weights(folders)


def _part_path(folder: str, part: int) -> str:
    return storage.join(folder, f"{part:05d}.parquet")


def _answer_all(exam: Exam, options: PredictOptions, folder: str, parts: list[int], inputs: dict) -> Iterator[dict]:
    if not parts:
        return
    cluster.connect(options)
    streams = options.stream and options.reader != "retrieval" and not options.blend
    parts = split_passes(options, parts) if streams else parts
    workers = cluster.num_workers(options, len(parts), whole_nodes=streams)
    sources = [] if options.reader == "closed-book" else [options.contexts]
    weights = 0 if options.blend else weight_bytes(options.embedder if options.reader == "retrieval" else options.model)
    if options.blend:
        kind, arguments = "blend", {"weights": list(inputs["blend"].values())}
        sources = [answers_path(options.output, name) for name in options.blend]
    elif options.reader == "retrieval":
        prefixes = {f"{text}_prefix": options.prefix(text) for text in ("query", "passage")}
        kind, arguments = "retrieval", {"embed": options.embed_arguments(workers), **prefixes}
    else:
        kind = "model"
        given = {name: getattr(options, name) for name in ("prompt", "completion", "normalise")}
        arguments = {
            "name": options.model,
            "adapter": options.adapter,
            "precision": options.precision,
            "nf4": options.nf4,
            "style": {name: value for name, value in given.items() if value != "auto"},
            "tokens_per_batch": options.tokens_per_batch,
            "threads": cluster.threads_per_worker(workers),
        }
    with passes_said("predict") if streams else nullcontext() as say:
        if streams:
            arguments["streaming"] = Streaming(options.stream_memory, say)
            weights = streamed_bytes(options.model) + options.stream_memory
        rows = cluster.from_parts(parts).map(
            AnswerShard,
            fn_constructor_kwargs={
                "exam": exam,
                "folder": folder,
                "sources": sources,
                "kind": kind,
                "arguments": arguments,
            },
            **cluster.model_pool(options, workers, len(parts), weights),
        )
        yield from cluster.rows_with_progress(
            rows, "predict", exam.questions, "questions", lambda row: row["questions"]
        )


class AnswerShard:
    """Ray Data worker that holds a reader and writes the answers of one shard of questions at a time."""

    def __init__(self, exam: Exam, folder: str, sources: list[str], kind: str, arguments: dict) -> None:
        from sciqa.inference.readers import READERS

        self.exam, self.folder, self.sources = exam, folder, sources
        self.reader = READERS[kind](**arguments)

    def __call__(self, row: dict) -> dict:
        """Rank the options of the shard that `row["part"]` numbers, or of the several of a pass."""
        parts = np.atleast_1d(row["part"]).tolist()
        shards = [self.exam.read_shard(part) for part in parts]
        tables = [
            [storage.read_table(_part_path(source, part)).to_pylist() for part in parts] for source in self.sources
        ]
        questions = list(chain(*shards))
        found = list(zip(*(chain(*table) for table in tables), strict=True)) if tables else [()] * len(questions)
        scores = iter(self.reader.score(questions, found))
        for part, shard in zip(parts, shards, strict=True):
            answers = [_answer_row(question, next(scores)) for question in shard]
            storage.write_table(_part_path(self.folder, part), pa.Table.from_pylist(answers, schema=SCHEMA))
        return {"part": row["part"], "questions": len(questions)}


def _answer_row(question: dict, scores: np.ndarray) -> dict:
    ranking, probabilities = rank(list(options_of(question)), scores)
    answer, precision = question["answer"], None
    if answer:
        precision = float(average_precision_at_3(np.array(ranking.index(answer) + 1)))
    return {
        "id": question["id"],
        "ranking": ranking,
        "prediction": " ".join(ranking[:3]),
        "probabilities": probabilities.tolist(),
        "answer": answer,
        "average_precision": precision,
    }


@ray.remote(num_cpus=cluster.TASK_CPUS)
def _score_slices(exam: Exam, folder: str) -> list[dict]:
    """Score all answers, and those of each topic or subject and of the instructions, on a worker."""
    answers = storage.read_table(folder, ["id", "ranking", "probabilities", "answer"]).to_pylist()
    columns = ["topic", "subject", "is_question"]
    file = storage.open_parquet(exam.path)
    present = [name for name in columns if name in file.schema_arrow.names]
    slices: dict[str, list[dict]] = {"all": answers}
    for question, answer in zip(file.read(present).to_pylist(), answers, strict=True):
        for name in present[:-1]:
            slices.setdefault(f"{name}: {question[name]}", []).append(answer)
        if not question["is_question"]:
            slices.setdefault("instructions", []).append(answer)
    scored = {name: score(rows) for name, rows in slices.items()}
    return [{"slice": name} | figures for name, figures in scored.items() if figures]


def _write_metrics(options: PredictOptions, exam: Exam, folder: str, seconds: float) -> None:
    cluster.connect(options)
    model = options.embedder if options.reader == "retrieval" else options.model
    about = {
        "reader": options.name,
        "model": " + ".join(options.blend) or model,
        "adapter": options.adapter,
        "contexts": None if options.reader == "closed-book" else options.contexts,
        "seconds": seconds,
    }
    rows = [about | row for row in ray.get(_score_slices.remote(exam, folder))]
    storage.write_table(metrics_path(options.output, options.name), pa.Table.from_pylist(rows, schema=METRICS))
