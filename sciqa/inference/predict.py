"""The batch predictor: a pool of readers writes ranked answers, and their metrics, to Parquet."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import ray

from sciqa import cluster, storage
from sciqa.cluster import Summary
from sciqa.errors import InputError
from sciqa.exam.metrics import average_precision_at_3, score
from sciqa.exam.questions import Exam, ExamOptions, open_exam, options_of
from sciqa.hub import check_causal, find_model
from sciqa.retrieval.index import EmbedOptions

# Spelt out here too, so that the driver need not import PyTorch to show its help.
Normalise = Literal["none", "tokens", "characters"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
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
    """Causal language model: the packaged one, a local folder, a .gguf file or a hub id."""
    precision: Precision = "auto"
    """Type of the weights; `auto` is 16 bits where the hardware has them."""
    normalise: Normalise = "tokens"
    """Divide an option's log-likelihood by its length in tokens or characters, or not."""
    tokens_per_batch: int = 2048
    """Tokens that a worker computes at once."""

    def __post_init__(self) -> None:
        """Fill the default folder and check the numbers."""
        super().__post_init__()
        self.contexts = self.contexts or storage.join(self.output, "contexts")
        if self.tokens_per_batch < 1:
            raise InputError(f"--tokens-per-batch: {self.tokens_per_batch} given, at least 1 expected")


def predict(options: PredictOptions) -> Summary:
    """Write the answers table of one reader, and its metrics where the exam has answers.

    The tables are `OUTPUT/answers/READER/` and `OUTPUT/metrics/READER.parquet`. Finished shards of an earlier
    run with the same inputs are kept.

    Raises:
        InputError: a bad exam, no contexts of this exam, or no such model.
    """
    started = time.monotonic()
    exam = open_exam(options)
    inputs = _inputs(options, exam)
    folder = storage.join(options.output, "answers", options.reader)
    present = storage.begin(folder, inputs)
    paths = {part: _part_path(folder, part) for part in range(exam.shards)}
    missing = [part for part, path in paths.items() if path.rsplit("/", 1)[-1] not in present]
    if kept := storage.MANIFEST in present:
        manifest = storage.read_manifest(folder, "predict")
    else:
        list(_answer_all(exam, options, folder, missing))
        manifest = {"seconds": time.monotonic() - started, "inputs": inputs}
        _write_metrics(options, exam, folder, manifest["seconds"])
        storage.finish(folder, manifest)
    made = f"{exam.questions:,} questions ranked, {options.reader}" + ", kept" * kept
    if 0 < len(missing) < exam.shards:
        made += f", {exam.shards - len(missing)} of {exam.shards} shards kept"
    metrics = storage.read_table(metrics_path(options.output, options.reader)).to_pylist()
    return Summary("predict", folder, made, time.monotonic() - started, metrics[0] if metrics else {})


def metrics_path(output: str, reader: str) -> str:
    """Return where a reader's metrics table is."""
    return storage.join(output, "metrics", f"{reader}.parquet")


def rank(letters: list[str], scores: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return letters by falling score (ties in their order) and the softmax of the scores in option order."""
    shifted = np.exp(scores - scores.max())
    order = np.argsort(-scores, kind="stable")
    return [letters[number] for number in order], shifted / shifted.sum()


def _inputs(options: PredictOptions, exam: Exam) -> dict:
    """Check what the reader needs and return all that its answers follow from."""
    inputs = {"exam": exam.sha256, "reader": options.reader}
    if options.reader != "closed-book":
        contexts = storage.read_manifest(options.contexts, "retrieve")["inputs"]
        if contexts["exam"] != exam.sha256:
            raise InputError(
                f"{options.contexts}: these contexts belong to another exam than {options.exam}; "
                "run `sciqa retrieve` with the same --exam and --output"
            )
        inputs["contexts"] = contexts
    if options.reader == "retrieval":
        return inputs | {"embedder": find_model(options.embedder).revision, "backend": options.embed_backend}
    check_causal(options.model)
    revision = find_model(options.model).revision
    return inputs | {"model": revision, "precision": options.precision, "normalise": options.normalise}


def _part_path(folder: str, part: int) -> str:
    return storage.join(folder, f"{part:05d}.parquet")


def _answer_all(exam: Exam, options: PredictOptions, folder: str, parts: list[int]) -> Iterator[dict]:
    if not parts:
        return iter(())
    cluster.connect(options)
    workers = cluster.num_workers(options, len(parts))
    if options.reader == "retrieval":
        arguments = {"embed": options.embed_arguments(workers)}
    else:
        arguments = {
            "model": options.model,
            "precision": options.precision,
            "normalise": options.normalise,
            "tokens_per_batch": options.tokens_per_batch,
            "threads": cluster.threads_per_worker(workers),
        }
    rows = cluster.from_parts(parts).map(
        AnswerShard,
        fn_constructor_kwargs={
            "exam": exam,
            "folder": folder,
            "contexts": None if options.reader == "closed-book" else options.contexts,
            "reader": options.reader,
            "arguments": arguments,
        },
        **cluster.model_pool(workers),
    )
    return cluster.rows_with_progress(rows, "predict", exam.questions, "questions", lambda row: row["questions"])


class AnswerShard:
    """Ray Data worker that holds a reader and writes the answers of one shard of questions at a time."""

    def __init__(self, exam: Exam, folder: str, contexts: str | None, reader: str, arguments: dict) -> None:
        from sciqa.inference.readers import LikelihoodReader, RetrievalReader

        self.exam, self.folder, self.contexts = exam, folder, contexts
        self.reader = (RetrievalReader if reader == "retrieval" else LikelihoodReader)(**arguments)

    def __call__(self, row: dict) -> dict:
        """Rank the options of the shard that `row["part"]` numbers."""
        questions = self.exam.read_shard(row["part"])
        contexts = []
        if self.contexts:
            contexts = storage.read_table(_part_path(self.contexts, row["part"])).to_pylist()
        scores = self.reader.score(questions, contexts)
        answers = [_answer_row(*pair) for pair in zip(questions, scores, strict=True)]
        storage.write_table(_part_path(self.folder, row["part"]), pa.Table.from_pylist(answers, schema=SCHEMA))
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
    about = {
        "reader": options.reader,
        "model": options.embedder if options.reader == "retrieval" else options.model,
        "adapter": None,
        "contexts": None if options.reader == "closed-book" else options.contexts,
        "seconds": seconds,
    }
    rows = [about | row for row in ray.get(_score_slices.remote(exam, folder))]
    storage.write_table(metrics_path(options.output, options.reader), pa.Table.from_pylist(rows, schema=METRICS))
