"""Scores by vLLM's engine: what is asked of it, what is refused, and, where it is installed, its own answers."""

import importlib.util
import random
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_folder, tiny_model, tiny_tokenizer

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model
from sciqa.exam import ExamOptions, open_exam, read_exam
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_safetensors_folder, load_without_weights
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import score_options
from sciqa.predict import PredictOptions, predict
from sciqa.predict.readers import encode_for_reader
from sciqa.predict.rotations import mean_over_rotations
from sciqa.predict.vllm import (
    EncodeVllmShard,
    VllmShards,
    add_vllm_option_scores,
    check_vllm_nodes,
    scored_vllm_rotations,
    vllm_requests,
)
from sciqa.retrieval import RetrieveOptions, retrieve

PACKAGED = "SmolLM2-135M-Instruct"


def answered(model, request):
    """A request with what vLLM says of the next token: the log-likelihoods of those that were asked for."""
    asked = request["sampling_params"]
    assert (asked["max_tokens"], asked["temperature"]) == (1, 0)
    with torch.inference_mode():
        logits = model(torch.tensor([request["tokenized_prompt"]])).logits[0, -1].log_softmax(-1)
    return request | {"logprobs": [{token: {"logprob": logits[token].item()} for token in asked["logprob_token_ids"]}]}


@pytest.mark.parametrize(
    ("style", "rotations"),
    [
        (PromptFormat(), 1),
        (PromptFormat(normalise="characters", max_length=120), 1),
        (PromptFormat(prompt="chat", completion="letter"), 3),
        (PromptFormat(completion="yes", normalise="none"), 1),
    ],
    ids=["text", "cut contexts", "letters", "yes"],
)
def test_requests_add_up_to_our_own_scores(style, rotations):
    model = tiny_model("llama", vocab_size=49152, initializer_range=0.2)
    scorer = CausalScorer(model, tiny_tokenizer("llama"), style)
    questions = read_exam("direct-validation").to_pylist()[:4]
    questions[1] |= {"C": None, "D": None}
    questions[2] |= {"B": f"{questions[2]['A']} and more", "E": "A fifth option"}
    found = [({"context": "Some context. " * times},) for times in (1, 30, 0, 90)]
    turns, encoded = encode_for_reader(scorer, questions, found, rotations)
    rows = []
    for turn, each in zip(turns, encoded, strict=True):
        requests = vllm_requests(each)
        if style.completion != "text":
            assert len(requests) == (1 if style.completion == "letter" else len(each.options))
        assert max(len(request["tokenized_prompt"]) for request in requests) < scorer.limit
        about = {"part": 0, "request": 0, "requests": 0, "question": turn.number, "by": turn.by, "cut": each.cut}
        rows += [add_vllm_option_scores(answered(model, request) | about) for request in requests]
    random.Random(0).shuffle(rows)
    cut = {turn.number for turn, each in zip(turns, encoded, strict=True) if each.cut}
    assert bool(cut) == (style.max_length is not None)
    ours = mean_over_rotations(turns, score_options(scorer, encoded), cut)
    for mine, scored in zip(ours, scored_vllm_rotations(rows), strict=True):
        np.testing.assert_allclose(scored.scores, mine.scores, atol=1e-4)
        assert scored.cut == mine.cut


def test_a_shard_is_written_once_all_its_requests_are_there(cluster, exam_file, tmp_path):
    exam = replace(open_exam(ExamOptions(exam=exam_file, output=str(tmp_path))), shard_questions=6)
    question = {"part": 0, "requests": 12, "by": 0, "cut": False}
    rows = [
        question | {"request": 2 * number + half, "question": number, "scores": [-1.0, half - 0.5, -2.0, -3.0]}
        for number in range(6)
        for half in (0, 1)
    ]
    random.Random(0).shuffle(rows)
    twice = [rows[0], *rows[:7], rows[3], *rows[7:], rows[5]]
    written = list(
        VllmShards(
            SimpleNamespace(iter_rows=lambda: iter(twice)), exam, str(tmp_path / "answers"), "a model", ()
        ).iter_rows()
    )
    assert written == [{"part": 0, "questions": 6}]
    answers = tables.read_table(str(tmp_path / "answers")).to_pylist()
    assert [row["ranking"] for row in answers] == [["B", "A", "C", "D"]] * 6
    missing = SimpleNamespace(iter_rows=lambda: iter([*rows[:11], rows[0]]))
    with pytest.raises(RuntimeError, match=r"shards \[0\]"):
        list(VllmShards(missing, exam, str(tmp_path / "answers"), "a model", ()).iter_rows())


def test_options_that_begin_alike_share_their_requests():
    encoded = CausalScorer(tiny_model("llama"), tiny_tokenizer("llama"), PromptFormat()).encode_text(
        "Q", [" a b", " a c"]
    )
    assert [request["wanted"] for request in vllm_requests(encoded)] == [
        [encoded.options[0][0]] * 2,
        [encoded.options[0][1], encoded.options[1][1]],
    ]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("llama"), "llama", initializer_range=0.2)


def test_an_encoder_without_weights_gives_the_scorers_tokens(llama):
    question = read_exam("direct-validation").to_pylist()[0]
    scorer = CausalScorer(
        tiny_model("llama", vocab_size=49152), tiny_tokenizer("llama"), PromptFormat(completion="letter")
    )
    encoder = load_without_weights(llama, {"completion": "letter"})
    assert encoder.encode(question, "Word. " * 3000) == scorer.encode(question, "Word. " * 3000)
    assert encoder.limit == scorer.limit
    assert {parameter.device.type for parameter in encoder.parameters()} == {"meta"}


@pytest.mark.parametrize("other", [{"adapter": "a"}, {"nf4": True}, {"stream": True}, {"cascade": "retrieval"}])
def test_what_vllm_does_not_go_with(other):
    with pytest.raises(InputError, match=f"--{next(iter(other))}: not with --engine vllm"):
        PredictOptions(engine="vllm", **other)


def say_installed(monkeypatch, installed):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed if name == "vllm" else find(name))


def test_vllm_must_be_installed(monkeypatch, tmp_path, llama):
    say_installed(monkeypatch, None)
    options = PredictOptions(engine="vllm", model=llama, reader="closed-book", output=str(tmp_path))
    with pytest.raises(InputError, match=r"--engine vllm: vllm not installed; run `pip install 'sciqa\[vllm\]'`"):
        predict(options)


def test_vllm_reads_causal_models_in_safetensors(monkeypatch, tmp_path):
    say_installed(monkeypatch, object())
    common = {"engine": "vllm", "reader": "closed-book", "output": str(tmp_path / "run")}
    with pytest.raises(InputError, match=f"{PACKAGED} is a GGUF file"):
        predict(PredictOptions(**common))
    encoder = tiny_folder(tmp_path / "t5", "t5")
    with pytest.raises(InputError, match="t5 is seq2seq"):
        predict(PredictOptions(**common, model=encoder))


def test_without_a_gpu_vllm_must_be_built_for_cpus(monkeypatch, tmp_path, cluster, llama):
    say_installed(monkeypatch, object())
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    options = PredictOptions(engine="vllm", model=llama, reader="closed-book", accelerator="cpu", output=str(tmp_path))
    with pytest.raises(InputError, match="this build of vLLM needs a GPU"):
        predict(options)


def test_vllm_does_not_answer_by_other_files_than_the_recorded_ones(cluster, llama):
    revision = find_model(llama).revision
    check_vllm_nodes(llama, revision, "CPU")
    with pytest.raises(InputError, match=re.escape(llama)):
        check_vllm_nodes(llama, "another", "CPU")
    for recorded in (revision, "another"):
        with pytest.raises(InputError, match=re.escape(llama)) if recorded == "another" else nullcontext():
            EncodeVllmShard(None, (), llama, recorded, {}, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_index, exam_file):
    """Options of a run with contexts, and of a model that vLLM takes."""
    pytest.importorskip("vllm")
    output = str(tmp_path_factory.mktemp("run"))
    options = {"output": output, "exam": exam_file, "shard_questions": 5}
    retrieve(RetrieveOptions(**options, index=f"{small_index}/index"))
    return options | {"model": load_safetensors_folder(find_model(PACKAGED)), "precision": "float32"}


def answers(run, name):
    return tables.read_table(f"{run['output']}/answers/{name}").to_pylist()


@pytest.mark.parametrize(
    "how",
    [{}, {"prompt": "chat", "completion": "letter", "rotations": 2}, {"completion": "yes", "reader": "closed-book"}],
    ids=["text", "letters", "yes"],
)
def test_vllm_answers_as_our_own_scorer(run, how):
    predict(PredictOptions(**run, **how, name="torch"))
    predict(PredictOptions(**run, **how, engine="vllm", name="vllm"))
    for ours, theirs in zip(answers(run, "torch"), answers(run, "vllm"), strict=True):
        np.testing.assert_allclose(theirs.pop("probabilities"), ours.pop("probabilities"), atol=1e-3)
        assert theirs == ours


def test_vllm_answers_only_the_shards_that_are_missing(run):
    options = PredictOptions(**run, completion="letter", engine="vllm", name="resumed")
    predict(options)
    folder = Path(run["output"], "answers", "resumed")
    first, times = answers(run, "resumed"), {path: path.stat().st_mtime_ns for path in folder.glob("0*.parquet")}
    assert len(times) == 3
    Path(tables.table_records_path(str(folder), tables.MANIFEST)).unlink()
    (folder / "00001.parquet").unlink()
    assert "2 of 3 shards kept" in predict(options).made
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == ["00001.parquet"]
    assert [row["ranking"] for row in answers(run, "resumed")] == [row["ranking"] for row in first]
    # Another engine keeps none of them.
    assert "kept" not in predict(PredictOptions(**run, completion="letter", name="resumed")).made
