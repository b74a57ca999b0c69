"""Reasoning before an answer: chains are those of `generate`, whatever the batch; votes, ties, tables and refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from api_server import KEY_NAME, ApiServer, said
from conftest import QUESTIONS, write_jsonl
from tiny import mostly_slow, tiny_folder, tiny_model, tiny_tokenizer

from sciqa import cli
from sciqa.ask import AskOptions
from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.chain_table import read_chain_table, write_chain_rows
from sciqa.models import decoding
from sciqa.models.causal import CausalScorer
from sciqa.models.chains import Chain, ChainSettings, StopChainAtEnd, encode_chain_letters, write_chains
from sciqa.models.decoding import SeededTokenDraws, decode_tokens
from sciqa.models.letters import ends_with_letter, read_letter, scores_by_letter_votes
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import render_prompt
from sciqa.predict import PredictOptions, predict, reasoned
from sciqa.predict.api import ApiReader, api_inputs, api_server_arguments
from sciqa.predict.api_letters import api_letter_prompt
from sciqa.predict.options import PromptOptions
from sciqa.predict.show_prompts import show_prompts
from sciqa.report import ReportOptions, report
from sciqa.report.report_questions import report_question_chains

GREEDY = ChainSettings(samples=1, max_tokens=16, temperature=None, seed=0)
DRAWN = ChainSettings(samples=3, max_tokens=12, temperature=0.9, seed=7)
QUESTION = {"id": "1", "prompt": "Which rusts?", "is_question": True, "context": None, "answer": "B"}
QUESTION |= {"A": "helium", "B": "iron", "C": "glass"}
#: A chat template with a mode in which the model thinks.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


def make_scorer(family="llama", **style):
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, vocab_size=len(tokenizer), initializer_range=0.2)
    return CausalScorer(model, tokenizer, PromptFormat(**{"prompt": "chat", "completion": "reasoned"} | style))


@pytest.fixture(scope="module")
def scorer():
    return make_scorer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("llama"), "llama", initializer_range=0.2)


def prompts_of(scorer, number=5):
    questions = read_exam("direct-validation").slice(0, number).to_pylist()
    return [scorer.encode_to_write(question, "", 64).prompt for question in questions]


def write(scorer, prompts, settings, budget=4096):
    return write_chains(scorer, prompts, settings, budget, ends_with_letter)


@pytest.mark.parametrize("family", mostly_slow(["llama", "mistral", "phi3"], "llama"))
def test_greedy_chains_are_those_of_generate_one_by_one(family, monkeypatch):
    scorer = make_scorer(family)
    prompts = prompts_of(scorer)
    assert len(set(map(len, prompts))) > 1
    first = write(scorer, prompts, GREEDY)[0][0].tokens
    monkeypatch.setattr(scorer.model.generation_config, "eos_token_id", [2, first[5]])  # one chain ends by itself
    calls = []
    generate = scorer.model.generate
    monkeypatch.setattr(scorer.model, "generate", lambda **given: calls.append(given) or generate(**given))
    made = write(scorer, prompts, GREEDY)
    assert len(calls) == 1, "all prompts are one batch"
    for prompt, (chain,) in zip(prompts, made, strict=True):
        ids = torch.tensor([prompt])
        alone = generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, pad_token_id=2)
        alone = alone[0, len(prompt) :].tolist()
        end = next((at for at, token in enumerate(alone) if token in (2, first[5])), len(alone))
        assert chain.tokens == alone[:end]
        assert chain.finished == (end < len(alone))
        assert chain.text == scorer.tokenizer.decode(alone[:end])
    assert made[0][0].tokens == first[:5]
    assert not all(chain.finished for (chain,) in made)


def test_no_batch_and_no_order_changes_a_drawn_chain(scorer):
    prompts = prompts_of(scorer)
    made = write(scorer, prompts, DRAWN)
    assert write(scorer, prompts, DRAWN, budget=1) == made
    assert write(scorer, prompts[::-1], DRAWN) == made[::-1]
    assert [each[:2] for each in made] == write(scorer, prompts, replace(DRAWN, samples=2))
    assert all(len({tuple(chain.tokens) for chain in each}) == 3 for each in made)
    others = write(scorer, prompts, replace(DRAWN, seed=8))
    assert not any(chain in others[number] for number, each in enumerate(made) for chain in each)


def test_rows_are_padded_only_where_that_is_proved(scorer, monkeypatch):
    lengths = [30, 30, 40, 50, 40]
    assert list(decoding._batches(scorer, lengths, 1000)) == [[3, 2, 4, 0, 1]]
    monkeypatch.setattr(scorer, "batch_layout", replace(scorer.batch_layout, layout="rows"))
    assert list(decoding._batches(scorer, lengths, 1000)) == [[0, 1], [2, 4], [3]]
    monkeypatch.setattr(scorer, "batch_layout", replace(scorer.batch_layout, layout="single rows"))
    assert list(decoding._batches(scorer, lengths, 1000)) == [[0], [1], [2], [3], [4]]


def test_the_limits_of_the_models_own_files_hold(scorer, monkeypatch):
    prompts = prompts_of(scorer, 2)
    greedy = write(scorer, prompts, replace(DRAWN, samples=1))
    monkeypatch.setattr(scorer.model.generation_config, "top_k", 1)
    assert write(scorer, prompts, DRAWN) == [each * 3 for each in greedy]


def test_draws_follow_the_probabilities():
    scores = torch.tensor([0.5, 0.2, 0.0, 0.3]).log().repeat(4000, 1)
    draws = SeededTokenDraws(range(4000), torch.device("cpu"))
    first, second = (draws(torch.zeros(4000, 1, dtype=torch.long), scores).argmax(dim=1) for _ in range(2))
    for drawn in (first, second):
        np.testing.assert_allclose(drawn.bincount(minlength=4) / 4000, [0.5, 0.2, 0.0, 0.3], atol=0.03)
    assert (first == second).float().mean().item() == pytest.approx(0.25 + 0.04 + 0.09, abs=0.03)


def test_a_row_stops_where_its_answer_is_whole(scorer):
    texts = ["It rusts.\nAnswer: B\n", "It rusts.\nAnswer: B", "Is it?\nAnswer: B\n"]
    rows = [scorer.tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[5] * (2 + width - len(row)) + row for row in rows])
    stop = StopChainAtEnd(scorer.tokenizer, 2, ends_with_letter, ["", "", "<think>"])
    assert stop(ids, None).tolist() == [True, False, False]


def test_a_thinking_template_thinks_and_is_not_closed():
    scorer = make_scorer()
    scorer.tokenizer.chat_template = THINKING
    prompt = scorer.encode_to_write(QUESTION, "", 64).prompt
    assert decode_tokens(scorer.tokenizer, prompt).endswith("<|im_start|>assistant\n<think>\n")
    ((chain,),) = write(scorer, [prompt], GREEDY)
    assert chain.opened == "<think>"
    cut = Chain(scorer.tokenizer("It rusts")["input_ids"], "It rusts", False, "<think>")
    encoded = encode_chain_letters(scorer, prompt, cut, None, "ABC")
    whole = decode_tokens(scorer.tokenizer, encoded.prompt + encoded.options[1])
    assert whole.endswith("assistant\n<think>\nIt rusts\n</think>\n\nAnswer: B")


@pytest.mark.parametrize(
    ("text", "at", "before"),
    [
        ("Iron rusts.\nAnswer: B", -1, "Iron rusts.\nAnswer: "),
        ("Iron rusts.\n**(B)** it is", -10, "Iron rusts.\n**("),
        ("Iron rusts", None, "Iron rusts\nAnswer: "),
    ],
)
def test_letters_stand_where_the_chain_names_one(scorer, text, at, before):
    chain = Chain(scorer.tokenizer(text)["input_ids"], text, True, "")
    encoded = encode_chain_letters(scorer, [7], chain, at and len(text) + at, "ABC")
    wholes = [decode_tokens(scorer.tokenizer, encoded.prompt[1:] + option) for option in encoded.options]
    assert wholes == [before + letter for letter in "ABC"]
    assert encoded.counted == [1, 1, 1]


def read_scripted(folder, monkeypatch, texts, question=QUESTION):
    """What a reader makes of chains with these texts, of which None is cut off; and each letter's scores after them."""
    reader = reasoned.ReasonedReader(
        tokens_per_batch=512,
        style={"completion": "reasoned"},
        settings={"samples": len(texts), "max_tokens": 8, "temperature": None, "seed": 0},
        name=folder,
        precision="float32",
    )
    tokens = [reader.scorer.tokenizer(text or "Iron")["input_ids"] for text in texts]
    chains = [Chain(ids, text or "Iron", text is not None, "") for ids, text in zip(tokens, texts, strict=True)]
    monkeypatch.setattr(reasoned, "write_chains", lambda *_: [chains])
    (scored,) = reader.score([question], [()])
    prompt = reader.scorer.encode_to_write(question, "", 8).prompt
    likelihoods = []
    for chain in chains:
        found = chain.text.rfind("B") if chain.text.endswith("B") else None
        encoded = encode_chain_letters(reader.scorer, prompt, chain, found, "ABC")
        ids = torch.tensor([encoded.prompt])
        with torch.no_grad():
            logits = reader.scorer.model(ids).logits[0, -1].float()
        likelihoods.append(logits[[option[0] for option in encoded.options]].softmax(dim=0).numpy())
    return scored, likelihoods


def test_votes_rank_before_likelihood(folder, monkeypatch):
    texts = ["It rusts.\nAnswer: B", None, "I cannot tell."]
    scored, likelihoods = read_scripted(folder, monkeypatch, texts)
    forced = "ABC"[int(likelihoods[1].argmax())]
    assert [row["letter"] for row in scored.chains] == ["B", forced, None]
    assert [row["finished"] for row in scored.chains] == [True, False, True]
    assert [row["text"] for row in scored.chains] == ["It rusts.\nAnswer: B", "Iron", "I cannot tell."]
    expected = scores_by_letter_votes(["B", forced, None], "ABC", np.mean(likelihoods, axis=0))
    np.testing.assert_allclose(scored.scores, expected, atol=1e-5)
    assert np.exp(scored.scores).sum() == pytest.approx(1)


def test_without_votes_likelihood_ranks(folder, monkeypatch):
    scored, likelihoods = read_scripted(folder, monkeypatch, ["I cannot tell.", "Answer: D", "A or C?"])
    assert [row["letter"] for row in scored.chains] == [None, None, None]
    assert scored.scores.argsort().tolist() == np.mean(likelihoods, axis=0).argsort().tolist()
    assert len(set(scored.scores.tolist())) == 3


def test_a_run_keeps_its_chains(tmp_path, cluster, exam_file, folder):
    common = {"exam": exam_file, "shard_questions": 3, "output": str(tmp_path), "reader": "closed-book", "name": "it"}
    common |= {"model": folder, "precision": "float32", "completion": "reasoned", "max_tokens": 6, "samples": 2}
    made = predict(PredictOptions(**common)).made
    answers = f"{tmp_path}/answers/it"
    chains, table = read_chain_table(answers), tables.read_table(answers)
    ids = [question["id"] for question in read_exam(exam_file).to_pylist()]
    assert list(chains) == ids == table["id"].to_pylist()
    assert all([row["sample"] for row in rows] == [0, 1] for rows in chains.values())
    every = [row for rows in chains.values() for row in rows]
    whole = tables.read_table(f"{tmp_path}/metrics/it.parquet").to_pylist()[0]
    assert whole["unfinished"] == sum(not row["finished"] for row in every) > 0
    assert whole["no_letter"] == sum(row["letter"] is None for row in every)
    assert whole["tokens_out"] == sum(row["tokens"] for row in every) <= 2 * QUESTIONS * 6
    assert f"{whole['unfinished']} of its answers cut by --max-tokens" in made
    for row in table.to_pylist():
        votes = [chain["letter"] for chain in chains[row["id"]]]
        if len(set(votes)) == 1 and votes[0]:
            assert row["ranking"][0] == votes[0]
    manifest = json.loads(Path(tmp_path, "answers/_it/manifest.json").read_text())
    assert {"samples": 2, "max_tokens": 6, "temperature": None, "seed": 0}.items() <= manifest["inputs"].items()

    assert predict(PredictOptions(**common)).made.startswith(f"{QUESTIONS} questions ranked, it, kept")
    Path(answers, "00001.parquet").unlink()
    Path(tmp_path, "answers/_it/chains/00001.parquet").unlink()
    assert "2 of 3 shards kept" in predict(PredictOptions(**common)).made
    assert tables.read_table(answers).equals(table)
    assert read_chain_table(answers) == chains
    letter = {"completion": "letter", "max_tokens": "auto", "samples": "auto"}
    for other in ({"samples": 3}, {"max_tokens": 7}, {"temperature": 0.5}, {"seed": 1}, letter):
        with pytest.raises(InputError, match=rf"made from other inputs \({next(iter(other))}"):
            predict(PredictOptions(**common | other))

    row = tables.read_table(f"{tmp_path}/answers/_it/chains/00000.parquet").to_pylist()[0]
    write_chain_rows(
        answers, 0, [row | {"text": "<script>alert(1)</script>\nAnswer: B"}, *chains[ids[0]][1:], *every[2:10]]
    )
    page = storage.read_bytes(report(ReportOptions(output=str(tmp_path), exam=exam_file)).path).decode()
    assert page.count('<div class="chains"') == QUESTIONS
    assert page.count("<details open><summary>Chain 1: ") == QUESTIONS
    assert page.count("<details><summary>Chain 2: ") == QUESTIONS
    assert "<pre>&lt;script&gt;alert(1)&lt;/script&gt;\nAnswer: B</pre>" in page
    assert "<script>alert" not in page
    assert f"Chain 1: {row['letter'] or 'no answer'}, {row['tokens']} tokens" in page


def test_a_long_chain_is_shortened_on_the_page(tmp_path):
    rows = [{"id": "1", "sample": 0, "text": "<script>" + 9000 * "x", "letter": "B", "tokens": 3, "finished": True}]
    write_chain_rows(f"{tmp_path}/answers/it", 0, rows)
    ((name, (chain,)),) = report_question_chains(str(tmp_path), ["it", "other"], 1)["1"].items()
    assert name == "it"
    assert chain["text"].startswith("<script>xx")
    assert chain["text"].endswith("xx")
    assert len(chain["text"]) < 4010


def test_a_server_is_asked_for_its_reasons(tmp_path, exam_file):
    server = ApiServer()  # it would give log-probabilities of letters
    try:
        options = PredictOptions(
            **{"engine": "openai", "base_url": server.url, "model": "small", "api_key_env": KEY_NAME},
            **{"reader": "closed-book", "exam": exam_file, "output": str(tmp_path), "completion": "reasoned"},
            **{"samples": 3, "temperature": 0.8, "seed": 4, "max_tokens": 99},
        )
        inputs = api_inputs(options)
        expected = {"samples": 3, "temperature": 0.8, "seed": 4, "max_tokens": 99, "completion": "reasoned"}
        assert expected.items() <= inputs.items()
        questions = read_exam(exam_file).to_pylist()
        reader = ApiReader(**api_server_arguments(options, f"{tmp_path}/answers/api", workers=1))
        for question, scored in zip(questions, reader.score(questions, [()] * QUESTIONS), strict=True):
            asked = api_letter_prompt(question, "", True, None, "reasoned")
            assert asked.endswith('End with a line "Answer: <letter>" that names the right option.')
            texts = [said({"seed": seed}, asked) for seed in (4, 5, 6)]
            letters = [read_letter(text, answer_options_of(question)) for text in texts]
            assert [row["text"] for row in scored.chains] == texts
            assert [row["letter"] for row in scored.chains] == letters
            np.testing.assert_allclose(
                scored.scores, scores_by_letter_votes(letters, list(answer_options_of(question)))
            )
    finally:
        server.shutdown()
        server.server_close()
    bodies = [json.loads(body) for body in server.answered]
    assert {(body["temperature"], body["max_tokens"], body["seed"]) for body in bodies} == {
        (0.8, 99, seed) for seed in (4, 5, 6)
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "vllm"}, "--engine vllm: not with --completion reasoned"),
        ({"stream": True}, "--stream: not with --completion reasoned"),
        ({"rotations": 2}, "--rotations: not with --completion reasoned"),
        ({"normalise": "none"}, "--normalise: not with --completion reasoned"),
        ({"max_tokens": 8192}, "--max-tokens: 8192 given, and .* has place for 2048, prompt included"),
        ({"temperature": 0.5}, "--temperature: not with --completion reasoned, for a single chain"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, exam_file, folder, given, message):
    options = {"reader": "closed-book", "completion": "reasoned", "exam": exam_file, "output": str(tmp_path)}
    options["model"] = folder
    with pytest.raises(InputError, match=message):
        predict(PredictOptions(**options | given))
    assert not Path(tmp_path, "answers").exists()


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_only_causal_models_write_their_reasons(tmp_path, exam_file, family, capfd):
    model = tiny_folder(tmp_path / family, family)
    flags = ["--reader", "closed-book", "--completion", "reasoned", "--exam", exam_file, "--model", model]
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", *flags, "--output", str(tmp_path / "run")])
    assert ended.value.code == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "--completion reasoned: causal models write their reasons" in error


def test_ask_refuses_it_and_prompt_shows_it(tmp_path):
    with pytest.raises(InputError, match="--completion reasoned: only for"):
        AskOptions(question="Which?", options=("a", "b"), completion="reasoned")
    write_jsonl(tmp_path / "exam.jsonl", [QUESTION])
    options = {"exam": str(tmp_path / "exam.jsonl"), "output": str(tmp_path), "closed_book": True}
    text = "\n".join(show_prompts(PromptOptions(**options, completion="reasoned")).details["lines"])
    assert "--prompt chat, --completion reasoned" in text
    assert text.endswith(
        'End with a line "Answer: <letter>" that names the right option.«<|im_end|>»\n«<|im_start|>»assistant\n'
    )


def test_examples_end_with_the_line_that_is_asked_for():
    example = {name: text for name, text in QUESTION.items() if name != "context"}
    prompt = render_prompt(QUESTION | {"examples": [example]}, "", PromptFormat(prompt="chat", completion="reasoned"))
    assert [turn["content"] for turn in prompt.messages()][1] == "Answer: B"


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # those of the reference, `generate`
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["lora", "prompt-tuning"],
)
def test_adapters_write_as_they_do_alone(config):
    plain = make_scorer()
    prompts = prompts_of(plain)
    without = write(plain, prompts, GREEDY)
    model = peft.get_peft_model(plain.model, config).eval()
    made = write(CausalScorer(model, plain.tokenizer, plain.style), prompts, GREEDY)
    assert made != without
    for prompt, (chain,) in zip(prompts, made, strict=True):
        ids = torch.tensor([prompt])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 2}
        alone = model.generate(**given, max_new_tokens=16, eos_token_id=2)[0, len(prompt) :].tolist()
        assert chain.tokens == alone[: len(chain.tokens)]
        assert len(chain.tokens) == 16 or alone[len(chain.tokens)] == 2


@pytest.mark.parametrize(("name", "given"), [("--max-tokens", {"max_tokens": 0}), ("--samples", {"samples": 0})])
def test_numbers_are_checked(name, given):
    with pytest.raises(InputError, match=f"{name}: 0 given, at least 1 expected"):
        PredictOptions(**given)
