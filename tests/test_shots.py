"""Examples before questions: which are chosen, and that what all prompts begin with is computed once."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import QUESTIONS
from tiny import CAUSAL, tiny_folder, tiny_model, tiny_tokenizer

from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.question_key import question_key
from sciqa.models.causal import CausalScorer
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import EncodedForScorer, score_options
from sciqa.predict import PredictOptions, predict, shots
from sciqa.predict.options import PromptOptions
from sciqa.predict.shots import ShotChooser, balanced_shots
from sciqa.predict.show_prompts import show_prompts

WORDS = [f"word{number}" for number in range(40)]


class WordEmbedder:
    """Embeds a text by its first word: the next word has a cosine of 0.69 to it, the one after that 0.20."""

    notes: tuple[str, ...] = ()

    def encode(self, texts, **_):
        vectors = np.zeros((len(texts), len(WORDS) + 2))
        for row, text in zip(vectors, texts, strict=True):
            at = WORDS.index(text.split()[0].strip(",").casefold())
            row[at : at + 3] = 0.45, 0.77, 0.45
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def asked(number, answer, **changes):
    texts = {letter: f"{letter} of {number}" for letter in "ABCD"}
    return (
        {"id": str(number), "prompt": f"word{number} is?", "is_question": True, "context": None}
        | texts
        | ({"answer": answer} | changes)
    )


@pytest.fixture
def chooser(monkeypatch, tmp_path):
    monkeypatch.setattr(shots, "load_embedder", lambda **_: WordEmbedder())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(pool, count, similar):
        return ShotChooser(pool, count, similar, "a revision", "", {"backend": "torch", "device": "cpu"})

    return make


def test_vectors_of_other_texts_are_not_taken_from_the_cache(chooser):
    chooser([asked(1, "A")], 1, similar=True)
    other = asked(1, "A", prompt="Word1 is")  # in which only case and punctuation differ
    assert chooser([other], 1, similar=True).keys == [question_key(asked(1, "A"))]
    assert len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("vectors.npy"))) == 2


def test_fixed_examples_are_drawn_by_the_seed_and_balanced_over_letters():
    pool = [asked(number, "AAABBCD"[number % 7]) for number in range(35)]
    order = balanced_shots(pool, 0)
    assert sorted(order) == list(range(35))
    for start in range(0, 20, 4):
        assert sorted(pool[at]["answer"] for at in order[start : start + 4]) == list("ABCD")
    assert balanced_shots(pool, 0) == order != balanced_shots(pool, 1)


def test_fixed_examples_are_the_same_but_for_copies_of_a_question(chooser):
    pool = [asked(number, "ABCD"[number // 2 % 4]) for number in range(0, 40, 2)]
    choose = chooser(pool, 4, similar=False).choose
    usual, copied, near = choose([asked(39, None), pool[2] | {"prompt": "Word4, IS"}, asked(4, None, A="another")])
    assert usual == pool[:4]
    for found in (copied, near):  # the same words, and the same vector with other options
        assert found[:2] + found[3:] == pool[:2] + pool[3:4]
        assert found[2] == pool[6]
        assert found[2]["answer"] == pool[2]["answer"]
    assert len(chooser(pool[:2], 2, similar=False).choose([pool[0]])[0]) == 1


def test_similar_examples_are_the_nearest_without_copies(chooser):
    pool = [asked(number, "AB"[number // 2 % 2]) for number in range(30)]
    (found,) = chooser(pool, 2, similar=True).choose([asked(10, None, A="another")])
    assert [row["id"] for row in found] == ["11", "9"]  # equally near, the first one last; 10 itself is a copy


def test_similar_examples_are_balanced_over_letters(chooser):
    pool = [asked(number, "B" if number == 20 else "A") for number in range(30)]
    (found,) = chooser(pool, 5, similar=True).choose([asked(10, None)])
    assert Counter(row["answer"] for row in found) == {"A": 2, "B": 1}  # two of a letter, of four options
    assert {row["id"] for row in found} == {"9", "11", "20"}
    assert found[-1]["id"] == "9"


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("completion", ["text", "yes"])
def test_what_all_prompts_begin_with_is_computed_once(family, completion, monkeypatch):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_model(family, vocab_size=len(tokenizer), initializer_range=0.2)
    scorer = CausalScorer(model, tokenizer, PromptFormat(completion=completion, normalise="none"))
    examples = [asked(number, "ABCD"[number % 4]) for number in range(8)]
    questions = [asked(10 + number, None, prompt="What? " + "So? " * number, examples=examples) for number in range(9)]
    encoded = [scorer.encode(each, "Some context. " * number) for number, each in enumerate(questions)]
    computed: list[tuple[int, int]] = []
    scorer.layout  # noqa: B018 (the model's test is not counted)
    model.register_forward_pre_hook(lambda _, args, given: computed.append(given["input_ids"].shape), with_kwargs=True)
    score_options(scorer, encoded, 400)
    shared = len(scorer._kept_prefix.tokens)
    assert shared > 100
    assert (1, shared) in computed
    computed.clear()
    found = score_options(scorer, encoded, 400)
    after = sum(rows * tokens for rows, tokens in computed)
    assert (1, shared) not in computed
    assert scorer.prefix is None
    computed.clear()
    monkeypatch.setattr(CausalScorer, "takes_prefix", False)
    for fast, slow in zip(found, score_options(scorer, encoded, 400), strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-4)
    assert after <= sum(rows * tokens for rows, tokens in computed) - 0.9 * shared  # rows are padded otherwise


def test_a_model_that_scores_otherwise_after_a_prefix_is_left_alone(monkeypatch):
    scorer = CausalScorer(tiny_model("llama", initializer_range=0.2), None, PromptFormat())
    questions = [EncodedForScorer([7] * 100 + [number], [[1, 2], [3]], [1.0, 1.0]) for number in range(12)]
    exact = score_options(scorer, questions, 60)
    assert scorer._kept_prefix
    other = CausalScorer(scorer.model, None, PromptFormat())
    calls = other.call
    monkeypatch.setattr(
        other,
        "call",
        lambda **given: calls(**{name: value for name, value in given.items() if name != "past_key_values"}),
    )
    for mine, each in zip(score_options(other, questions, 60), exact, strict=True):
        np.testing.assert_allclose(mine, each, atol=1e-4)
    assert other._prefix_differs


def test_bad_shots(tmp_path):
    with pytest.raises(InputError, match="--shots: -1 given, at least 0"):
        PredictOptions(shots=-1)
    with pytest.raises(InputError, match="--shots 5000: train has 1621 questions with an answer"):
        PredictOptions(shots=5000).read_shots()
    assert PredictOptions().shots_identity() == {}
    fixed = PredictOptions(shots=2).shots_identity()
    assert fixed != PredictOptions(shots=2, shots_seed=1).shots_identity()
    nearest = PredictOptions(shots=2, shots_by="similarity")
    assert fixed != nearest.shots_identity()
    assert nearest.shots_identity() != replace(nearest, embed_backend="torch").shots_identity()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["fixed", "similarity"])
def test_answers_after_examples(cluster, exam_file, tmp_path, by):
    llama = tiny_folder(tmp_path / "llama", "llama", initializer_range=0.2)
    given = {"exam": exam_file, "model": llama, "shots": 3, "shots_by": by}
    given |= {"shots_from": "direct-validation", "output": str(tmp_path / "run"), "precision": "float32"}
    lines = show_prompts(PromptOptions(show=12, closed_book=True, **given)).details["lines"]
    prompts = [line for line in lines if line.startswith("Question: ") or line.startswith("Task: ")]
    questions = read_exam(exam_file).to_pylist()
    for prompt, question in zip(prompts, questions, strict=True):
        assert prompt.count("\nAnswer:") == 4
        assert prompt.count(question["prompt"]) == 1
        assert not any(f"Answer: {option}\n\n" in prompt for option in answer_options_of(question).values())
    options = PredictOptions(num_workers=1, reader="closed-book", **given)
    assert predict(options).details["questions"] == QUESTIONS
    with pytest.raises(InputError, match="made from other inputs"):
        predict(replace(options, shots=2))
