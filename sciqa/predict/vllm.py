"""Scoring with causal models in vLLM, through `ray.data.llm`; tokens and scores are those of our own scorer.

An option's log-likelihood is the sum of its tokens' log-likelihoods, each given the tokens before it. vLLM can return
them all for one sequence (`prompt_logprobs`), but then recomputes the whole prompt for every option (vLLM's v1 guide).
So each request is a token sequence and asks only for the likelihood of certain next tokens. Prefix caching computes
common prefixes, such as context and question, only once. A letter or a yes takes one request per prompt; an option of
several tokens takes one more for each token after the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sciqa.core import cluster
from sciqa.core.console import quiet_console
from sciqa.core.errors import InputError
from sciqa.core.extras import require_extra
from sciqa.core.model_files import find_model, model_file_family
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_table import QuestionTable
from sciqa.predict.rotations import Rotation, mean_over_rotations
from sciqa.predict.scored_answers import ScoredAnswer, read_scored_answer_sources, write_scored_answers

if TYPE_CHECKING:
    from ray.data import Dataset

    from sciqa.models.scorer import EncodedForScorer
    from sciqa.predict.options import PredictOptions
    from sciqa.predict.work import ReaderWork

#: Placeholder for an option of which a request asks for no token.
NO_TOKEN = -1
#: Requests per batch that an engine gets; Ray runs up to eight batches at the same time.
REQUESTS = 64
#: Most sequences that an engine computes at once; each has at least one token.
SEQUENCES = 256
#: Size of the key-value cache on a CPU, in bytes; on a GPU the cache fills the free memory.
CPU_CACHE = 4 << 30


def check_vllm(options: "PredictOptions") -> None:
    """Connect to Ray; raise `InputError` unless vLLM is installed, supports the model and the chosen device."""
    model = options.model
    require_extra("vllm", "--engine vllm")
    if find_model(model).gguf_file:
        raise InputError(f"--engine vllm: {model} is a GGUF file; pass a --model in safetensors, or --engine torch")
    if (family := model_file_family(model)) != "causal":
        raise InputError(f"--engine vllm: scores with causal models; {model} is {family}, pass --engine torch for it")
    cluster.connect_cluster(options)
    from vllm.platforms import current_platform

    if cluster.cluster_uses_gpu(options) == current_platform.is_cpu():
        says = "computes on CPUs; pass --accelerator cpu," if current_platform.is_cpu() else "needs a GPU; use one,"
        raise InputError(f"--engine vllm: this build of vLLM {says} or pass --engine torch")


def vllm_requests(question: "EncodedForScorer") -> list[dict]:
    """Return a question's requests to vLLM.

    Returns:
        Rows with `tokenized_prompt` and `sampling_params` for `ray.data.llm`; `wanted`, for each option the token whose
        log-likelihood the request returns, or `NO_TOKEN`; and the options' `divisors`.
    """
    wanted: dict[tuple[int, ...], list[int]] = {}
    for number, (option, counted) in enumerate(zip(question.options, question.counted, strict=True)):
        for at in range(len(option) - counted, len(option)):
            before = (*question.prompt, *option[:at])
            wanted.setdefault(before, [NO_TOKEN] * len(question.options))[number] = option[at]
    return [
        {
            "tokenized_prompt": list(before),
            "sampling_params": {
                "max_tokens": 1,
                "temperature": 0.0,
                "detokenize": False,
                "logprob_token_ids": sorted(set(tokens) - {NO_TOKEN}),
            },
            "wanted": tokens,
            "divisors": question.divisors,
        }
        for before, tokens in wanted.items()
    ]


def add_vllm_option_scores(row: dict) -> dict:
    """Return an answered request with its contribution to every option's score, shape (options,), as `scores`.

    Args:
        row: row of `vllm_requests` and `EncodeVllmShard`, with vLLM's `logprobs`: the log-likelihoods of tokens at the
            one generated position.
    """
    (logprobs,) = row["logprobs"]
    scores = [
        0.0 if token == NO_TOKEN else logprobs[token]["logprob"] / divisor
        for token, divisor in zip(row["wanted"], row["divisors"], strict=True)
    ]
    return {name: row[name] for name in ("part", "request", "requests", "question", "by", "cut")} | {"scores": scores}


class EncodeVllmShard:
    """Ray Data worker that turns shards of questions into requests; it holds a tokenizer and no weights.

    Its sources are tables with a row per question, such as contexts. `style`, `rotations` and `shots` are those of
    `ModelReader`, and `name` and `revision` are those of the model.
    """

    def __init__(
        self,
        exam: Exam,
        sources: tuple[QuestionTable, ...],
        name: str,
        revision: str,
        style: dict,
        rotations: int,
        shots: dict | None = None,
    ) -> None:
        from sciqa.models.load import load_without_weights
        from sciqa.predict.shots import ShotChooser

        find_model(name, revision)
        self.exam, self.sources, self.rotations = exam, sources, rotations
        self.scorer = load_without_weights(name, style)
        self.chooser = ShotChooser(**shots) if shots else None

    def __call__(self, row: dict) -> list[dict]:
        """Return the requests of shard `row["part"]`, each with its index and the number of all requests."""
        from sciqa.predict.readers import encode_for_reader

        questions = self.exam.read_shard(row["part"])
        found = read_scored_answer_sources(self.sources, questions, self.exam.first(row["part"]))
        turns, encoded = encode_for_reader(self.scorer, questions, found, self.rotations, self.chooser)
        requests = [
            {"part": row["part"], "question": turn.number, "by": turn.by, "cut": each.cut} | request
            for turn, each in zip(turns, encoded, strict=True)
            for request in vllm_requests(each)
        ]
        return [each | {"request": number, "requests": len(requests)} for number, each in enumerate(requests)]


def check_vllm_nodes(model: str, revision: str, kind: str) -> None:
    """Raise `InputError` if a node that has resources of a kind, `GPU` or `CPU`, has other files of the model.

    An engine of vLLM, which may be placed on any of them, loads what it finds there.
    """
    find: Any = ray.remote(num_cpus=0)(find_model)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    ray.get([find.options(scheduling_strategy=place).remote(model, revision) for place in places])


def answer_vllm_requests(
    parts: "Dataset", exam: Exam, options: "PredictOptions", work: "ReaderWork", pool: dict
) -> "Dataset":
    """Send the requests of all questions in some shards to vLLM and return the rows of `add_vllm_option_scores`.

    The engines take the resources of `pool`, from `sciqa.core.model_workers.model_worker_pool`, but for the memory:
    `ray.data.llm` accepts no memory request.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    check_vllm_nodes(options.model, work.arguments["revision"], "GPU" if cluster.cluster_uses_gpu(options) else "CPU")
    engine = {
        "dtype": options.precision,
        "load_format": "safetensors",
        "max_model_len": -1,  # the model's own limit, or less where memory is short
        "max_num_batched_tokens": options.tokens_per_batch,
        "max_num_seqs": min(SEQUENCES, options.tokens_per_batch),
        "enable_prefix_caching": True,
        "enforce_eager": True,  # compilation and CUDA graphs speed up only generation, which is not used
    }
    kinds = [(kind, pool[f"num_{kind.lower()}s"]) for kind in ("CPU", "GPU")]
    config = vLLMEngineProcessorConfig(
        model_source=options.model,
        engine_kwargs=engine | ({} if cluster.cluster_uses_gpu(options) else {"kv_cache_memory_bytes": CPU_CACHE}),
        batch_size=REQUESTS,
        log_engine_metrics=False,  # engine metrics need Ray Serve
        concurrency=(pool["compute"].min_size, pool["compute"].max_size),
        accelerator_type=pool["accelerator_type"],
        placement_group_config={"bundles": [{kind: number for kind, number in kinds if number}]},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    few = {"num_cpus": cluster.TASK_CPUS}
    quiet_console("ray")  # importing ray.data.llm resets the log level
    processor = build_processor(
        config, postprocess=add_vllm_option_scores, preprocess_map_kwargs=few, postprocess_map_kwargs=few
    )
    encoder = {name: work.arguments[name] for name in ("name", "revision", "style", "rotations")}
    encoder["shots"] = options.shots_arguments("cpu", 1)
    requests = parts.flat_map(
        EncodeVllmShard,
        fn_constructor_kwargs={"exam": exam, "sources": work.sources} | encoder,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=work.workers),
        **few,
    )
    return processor(requests)


@dataclass
class VllmShards:
    """Answered requests collected into shards; a shard is written as soon as all its requests are answered.

    Memory holds only the answered requests of unfinished shards.

    Attributes:
        answered: rows of `add_vllm_option_scores` in any order; after the loss of a worker some may appear twice.
        exam: the questions.
        folder: folder of the answers table.
        model: name of the model, for messages.
        sources: tables with a row per question, such as contexts.
    """

    answered: "Dataset"
    exam: Exam
    folder: str
    model: str
    sources: tuple[QuestionTable, ...]

    def iter_rows(self) -> Iterator[dict]:
        """Yield one row per written shard: its number `part` and its count of `questions`."""
        waiting: dict[int, dict[int, dict]] = {}
        done = set()
        for row in self.answered.iter_rows():
            part = row["part"]
            if part in done:
                continue
            rows = waiting.setdefault(part, {})
            rows[row["request"]] = row
            if len(rows) == row["requests"]:
                done.add(part)
                answered = [rows for _, rows in sorted(waiting.pop(part).items())]
                yield ray.get(_write_shard.remote(self.exam, self.folder, answered, self.model, self.sources))
        if waiting:
            raise RuntimeError(f"vLLM left requests of the shards {sorted(waiting)} without an answer; run it again")


@ray.remote(num_cpus=cluster.TASK_CPUS)
def _write_shard(exam: Exam, folder: str, answered: list[dict], model: str, sources: tuple[QuestionTable, ...]) -> dict:
    part = answered[0]["part"]
    questions = exam.read_shard(part)
    found = read_scored_answer_sources(sources, questions, exam.first(part))
    write_scored_answers(folder, part, questions, scored_vllm_rotations(answered), model, found)
    return {"part": part, "questions": len(questions)}


def scored_vllm_rotations(answered: list[dict]) -> list[ScoredAnswer]:
    """Return the scores of a shard's questions, summed over the answered requests."""
    sums: dict[Rotation, np.ndarray] = {}
    for row in answered:
        turn = Rotation(row["question"], row["by"])
        sums[turn] = sums.get(turn, 0) + np.array(row["scores"])
    turns = sorted(sums)
    cut = {row["question"] for row in answered if row["cut"]}
    return mean_over_rotations(turns, [sums[turn] for turn in turns], cut)
