"""Scores of options: against one sequence at a time, and against lm-evaluation-harness."""

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Phi3Config, Phi3ForCausalLM

from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.exam.questions import options_of
from sciqa.inference.likelihood import Encoded, batch_by_tokens, encode, log_likelihoods, normalise_scores
from sciqa.inference.readers import LikelihoodReader, prompt_text

TINY = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}


def tiny_model(family):
    torch.manual_seed(0)
    config, model = FAMILIES[family]
    return model(config(**TINY)).eval()


def random_questions(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (count, 5))
    return [
        Encoded(rng.integers(1, 200, rng.integers(1, 60)).tolist(), [rng.integers(1, 200, n).tolist() for n in row])
        for row in sizes
    ]


def one_by_one(model, question):
    """The reference: a full sequence per option, all logits, nothing shared."""
    scores = []
    for option in question.options:
        with torch.inference_mode():
            logits = model(torch.tensor([question.prompt + option])).logits[0].log_softmax(-1)
        predicted = logits[len(question.prompt) - 1 : -1]
        scores.append(predicted.gather(1, torch.tensor(option)[:, None]).sum().item())
    return scores


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_shared_prompts_score_as_separate_sequences(family, budget):
    model = tiny_model(family)
    questions = random_questions(12)
    for question, scores in zip(questions, log_likelihoods(model, questions, budget), strict=True):
        np.testing.assert_allclose(scores, one_by_one(model, question), atol=1e-4)


def test_scores_do_not_depend_on_the_other_options():
    model = tiny_model("llama")
    whole = random_questions(1)[0]
    together = log_likelihoods(model, [whole])[0]
    turned = log_likelihoods(model, [Encoded(whole.prompt, whole.options[::-1])])[0]
    np.testing.assert_allclose(together, turned[::-1], atol=1e-5)


def test_batches_hold_every_question_once_within_the_budget():
    questions = random_questions(50)
    batches = batch_by_tokens(questions, 256)
    assert sorted(number for batch in batches for number in batch) == list(range(50))
    for batch in batches:
        assert len(batch) * max(questions[number].length for number in batch) <= 256
    assert len(batch_by_tokens(questions, 1)) == 50


def test_normalisation_by_tokens_and_characters():
    encoded = Encoded([1], [[1, 2], [3]])
    scores = np.array([-4.0, -3.0])
    assert normalise_scores(scores, encoded, [" ab", " abcde"], "none").tolist() == [-4, -3]
    assert normalise_scores(scores, encoded, [" ab", " abcde"], "tokens").tolist() == [-2, -3]
    assert normalise_scores(scores, encoded, [" ab", " abcde"], "characters").tolist() == [-4 / 3, -0.5]


@pytest.fixture(scope="module")
def smollm2():
    return LikelihoodReader("SmolLM2-135M-Instruct", "float32", "tokens", 2048, 2)


def test_scores_agree_with_lm_evaluation_harness(smollm2):
    articles = {article["title"]: article["text"] for article in read_articles("demo")}
    asked = []
    for question in read_exam("validation").to_pylist()[:6]:
        prompt = prompt_text(question, articles[question["title"]])
        asked.append((prompt, [f" {option}" for option in options_of(question).values()]))
    encoded = [encode(smollm2.tokenizer, *pair) for pair in asked]
    ours = log_likelihoods(smollm2.model, encoded)
    harness = HFLM(pretrained=smollm2.model, tokenizer=smollm2.tokenizer, batch_size=4)
    requests = [Instance("loglikelihood", {}, (p, option), 0) for p, options in asked for option in options]
    theirs = iter(score for score, _ in harness.loglikelihood(requests, disable_tqdm=True))
    for scores, tokens, (_, options) in zip(ours, encoded, asked, strict=True):
        reference = np.array([next(theirs) for _ in options])
        np.testing.assert_allclose(scores, reference, atol=1e-3)
        # As its acc_norm does: divided by the characters of the option.
        lengths = [len(option) for option in options]
        by_length = normalise_scores(scores, tokens, options, "characters")
        np.testing.assert_allclose(by_length, reference / lengths, atol=1e-3)


def test_only_the_context_of_a_long_prompt_is_cut(smollm2):
    question = read_exam("validation").to_pylist()[0]
    context = "A word or two about cells. " * 500
    limit, smollm2.limit = smollm2.limit, 200
    try:
        encoded = smollm2._encode(question, context, [" yes", " no"])
    finally:
        smollm2.limit = limit
    text = smollm2.tokenizer.decode(encoded.prompt)
    assert 150 <= len(encoded.prompt) <= 199
    assert text.startswith("Context: A word")
    assert text.endswith(f"{question['prompt']}\nAnswer:")


def test_scores_prefer_what_the_context_says(smollm2):
    question = {"prompt": "What colour is the zorblax flower?", "is_question": True, "A": "violet", "B": "orange"}
    for letter, colour in (("A", "violet"), ("B", "orange")):
        context = {"context": f"The zorblax is a flower of the hills. The zorblax flower is {colour}."}
        scores = smollm2.score([question], [context])[0]
        assert "AB"[int(scores.argmax())] == letter
