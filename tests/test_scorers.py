"""Scores of options: against one sequence at a time, and against lm-evaluation-harness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import CAUSAL, ENCODER, tiny_model, tiny_tokenizer
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from sciqa.core.errors import InputError
from sciqa.corpus.articles import read_articles
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.models import adapter, packed_attention
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.causal import CausalScorer
from sciqa.models.load import load_scorer
from sciqa.models.multiple_choice import MultipleChoiceScorer
from sciqa.models.packing import pack_rows
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.prompt_template import template_prompt_text
from sciqa.models.scorer import EncodedForScorer, score_options, scorer_divisors
from sciqa.models.seq2seq import Seq2SeqScorer


def random_questions(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (count, 5))
    return [
        EncodedForScorer(
            rng.integers(1, 200, rng.integers(1, 60)).tolist(),
            [rng.integers(1, 200, n).tolist() for n in row],
            [1.0] * len(row),
        )
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


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_shared_prompts_score_as_separate_sequences(family, budget):
    scorer = CausalScorer(tiny_model(family), None, PromptFormat())
    questions = random_questions(12)
    for question, scores in zip(questions, score_options(scorer, questions, budget), strict=True):
        np.testing.assert_allclose(scores, one_by_one(scorer.model, question), atol=1e-4)


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("budget", [1, 400, 100_000])
@pytest.mark.parametrize("least", [1, packed_attention.LEAST_TOKENS], ids=["by parts", "whole"])
def test_shared_contexts_score_as_separate_sequences(family, budget, least, monkeypatch):
    monkeypatch.setattr(packed_attention, "LEAST_TOKENS", least)
    scorer = CausalScorer(tiny_model(family), None, PromptFormat())
    rng = np.random.default_rng(3)
    contexts = [rng.integers(1, 200, length).tolist() for length in (90, 140)]
    questions = [
        replace(question, prompt=contexts[number % 2] + question.prompt) if number % 4 else question
        for number, question in enumerate(random_questions(13))
    ]
    # One prompt is how another begins, and two are equal.
    questions += [replace(questions[1], prompt=contexts[1] + [7]), replace(questions[2], prompt=contexts[1] + [7])]
    if budget > 1:
        packed = pack_rows(questions)
        assert len(packed.ids) == 6
        assert packed.ids.numel() < len(questions) * max(question.length for question in questions)
    for question, scores in zip(questions, score_options(scorer, questions, budget), strict=True):
        np.testing.assert_allclose(scores, one_by_one(scorer.model, question), atol=1e-4)


@pytest.mark.parametrize("before", [0, 80])
def test_attention_by_parts_leaves_out_what_the_mask_excludes(before, monkeypatch):
    """Keys that no token of a part sees are not given to PyTorch; those of a kept prefix are."""
    monkeypatch.setattr(packed_attention, "LEAST_TOKENS", 1)
    scorer, seen = CausalScorer(tiny_model("llama"), None, PromptFormat()), []
    scorer.batch_layout = BatchLayout("packed")
    alike = [replace(question, prompt=[5] * 150 + question.prompt) for question in random_questions(2)]
    questions = [replace(question, prompt=[9] * 80 + question.prompt) for question in alike]

    class Seen(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is scaled_dot_product_attention:
                seen.append((args[0].shape[2], args[1].shape[2]))
            return function(*args, **kwargs or {})

    with torch.inference_mode():
        if before:
            scorer.prefix = scorer._compute_prefix([9] * 80, questions[0])
        with Seen():
            scores = scorer(alike if before else questions)
    prefix, own = (150 + 80 - before), [question.length - 150 for question in alike]
    assert set(seen) == {(prefix, prefix + before), *((length, length + prefix + before) for length in own)}
    for question, found in zip(questions, scores, strict=True):
        np.testing.assert_allclose(found, one_by_one(scorer.model, question), atol=1e-4)


def test_batches_with_shared_contexts_keep_to_the_budget():
    scorer = CausalScorer(tiny_model("llama"), None, PromptFormat())
    questions = [replace(question, prompt=[5] * 100 + question.prompt) for question in random_questions(40)]
    batches = scorer.batches(questions, 512)
    assert sorted(number for batch in batches for number in batch) == list(range(40))
    for batch in batches:
        assert scorer.padded_tokens([questions[number] for number in batch]) <= 512
    assert len(batches) < sum(question.length for question in questions) / 512


@pytest.mark.parametrize("prompt", ["plain", "chat"])
def test_the_likelihood_of_a_yes_is_that_of_separate_sequences(prompt):
    question = read_exam("direct-validation").to_pylist()[0]
    style = PromptFormat(prompt=prompt, completion="yes")
    scorer = CausalScorer(tiny_model("llama", vocab_size=49152), tiny_tokenizer("llama"), style)
    encoded = scorer.encode(question, "Some context.")
    for option, tokens, score in zip("ABCD", encoded.options, score_options(scorer, [encoded])[0], strict=True):
        ids = encoded.prompt + tokens
        text = scorer.tokenizer.decode(ids)
        assert f"Proposed answer: {question[option]}\n" in text
        assert text.endswith("Yes")
        with torch.inference_mode():
            logits = scorer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert score == pytest.approx(logits[-2, ids[-1]].item(), abs=1e-4)


def test_options_without_tokens_are_refused():
    question = {"id": "q7", "prompt": "Which?", "is_question": True, "A": "helium", "B": "\u200b"}
    scorer = MultipleChoiceScorer(choice_model(), tiny_tokenizer("bert"), PromptFormat())
    with pytest.raises(InputError, match=r"question 'q7', option B: .* no tokens"):
        scorer.encode(question, "")


def test_scores_do_not_depend_on_the_other_options():
    scorer = CausalScorer(tiny_model("llama"), None, PromptFormat())
    whole = random_questions(1)[0]
    together = score_options(scorer, [whole])[0]
    turned = score_options(scorer, [EncodedForScorer(whole.prompt, whole.options[::-1], whole.divisors)])[0]
    np.testing.assert_allclose(together, turned[::-1], atol=1e-5)


SOFT_PROMPTS = {"PROMPT_TUNING": {"num_virtual_tokens": 3}, "P_TUNING": {"encoder_hidden_size": 8}, "PREFIX_TUNING": {}}


@pytest.mark.parametrize("kind", SOFT_PROMPTS)
def test_soft_prompts_come_before_packed_rows(kind):
    """Scores and gradients are those of peft's own rows, one for each option."""
    torch.manual_seed(0)
    fields = {"peft_type": kind} | SOFT_PROMPTS[kind]
    model = adapter.add_trainable_adapter(tiny_model("llama"), "causal", "prompt-tuning", fields)
    scorer, questions = CausalScorer(model, None, PromptFormat()), random_questions(4)
    for question, scores in zip(questions, score_options(scorer, questions), strict=True):
        for option, score in zip(question.options, scores, strict=True):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([question.prompt + option])).logits[0].log_softmax(-1)
            predicted = logits[-len(option) - 1 : -1]
            expected = predicted.gather(1, torch.tensor(option)[:, None]).sum().item()
            assert score == pytest.approx(expected, abs=1e-4)
    assert scorer.layout == "packed"
    gradients = []
    for layout in ("packed", "single rows"):
        scorer.batch_layout = BatchLayout(layout)
        model.zero_grad()
        torch.cat(scorer(questions)).sum().backward()
        trained = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        gradients.append(torch.cat([gradient.flatten() for gradient in trained]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_a_soft_prompt_takes_of_the_places_that_a_model_has():
    model = tiny_model("llama", max_position_embeddings=64)
    plain = CausalScorer(model, None, PromptFormat()).limit
    soft = adapter.add_trainable_adapter(model, "causal", "prompt-tuning", {"num_virtual_tokens": 5})
    assert CausalScorer(soft, None, PromptFormat()).limit == plain - 5


def test_a_batch_of_unlike_questions_scores_as_each_alone():
    questions = read_exam("direct-validation").to_pylist()[:4]
    questions[1] |= {"C": None, "D": None}
    questions[2] |= {"E": "A fifth option"}
    contexts = ["Some context. " * length for length in (1, 30, 0, 90)]
    scorers = [
        MultipleChoiceScorer(choice_model(), tiny_tokenizer("bert"), PromptFormat()),
        Seq2SeqScorer(tiny_model("t5", vocab_size=49152), tiny_tokenizer("t5"), PromptFormat(completion="letter")),
        CausalScorer(tiny_model("llama", vocab_size=49152), tiny_tokenizer("llama"), PromptFormat(prompt="chat")),
    ]
    for scorer in scorers:
        encoded = [scorer.encode(*pair) for pair in zip(questions, contexts, strict=True)]
        together = score_options(scorer, encoded, 1 << 20)
        for question, scores, alone in zip(questions, together, score_options(scorer, encoded, 1), strict=True):
            assert len(scores) == len(answer_options_of(question))
            np.testing.assert_allclose(scores, alone, atol=1e-4)


def choice_model():
    from transformers import BertConfig, BertForMultipleChoice

    torch.manual_seed(0)
    return BertForMultipleChoice(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)).eval()


def test_encoders_read_context_then_question_and_option_and_cut_the_context_alone():
    scorer = MultipleChoiceScorer(choice_model(), tiny_tokenizer("bert"), PromptFormat(max_length=64))
    question = {"id": "1", "prompt": "Which gas do plants take in?", "A": "Carbon dioxide", "B": "Helium"}
    first, second = scorer.encode(question, "Plants breathe. " * 100).options
    assert len(first) == 64
    assert scorer.encode(question, "Plants breathe. " * 100).cut
    assert not scorer.encode(question, "Plants breathe.").cut
    text = scorer.tokenizer.decode(first)
    assert text.startswith("[CLS] plants breathe. plants")
    assert text.endswith("[SEP] which gas do plants take in? carbon dioxide [SEP]")
    assert scorer.tokenizer.decode(scorer.encode(question, "").options[1]).startswith("[CLS] which gas")
    reference = scorer.tokenizer("Plants breathe. " * 100, "Which gas do plants take in? Helium")
    segments = scorer.encode(question, "Plants breathe. " * 100).segments[1]
    assert len(segments) == len(second)
    assert segments[-5:] == reference["token_type_ids"][-5:] == [1] * 5
    with pytest.raises(InputError, match=r"question .1.: \d+ tokens .* limit is 8"):
        MultipleChoiceScorer(scorer.model, scorer.tokenizer, PromptFormat(max_length=8)).encode(question, "Plants.")


def test_encoders_say_how_much_of_a_context_is_left():
    scorer = MultipleChoiceScorer(choice_model(), tiny_tokenizer("bert"), PromptFormat(max_length=40))
    question = {"id": "1", "prompt": "Which?", "A": "iron", "B": "a gas that is noble"}
    context = "Iron rusts. Helium floats. " * 10
    encoded = scorer.encode(question, context)
    assert encoded.cut
    kept = context[: encoded.kept]
    assert scorer.tokenizer([kept], ["Which? iron"])["input_ids"][0] == encoded.options[0]
    assert encoded.options[0] == scorer.encode(question, kept).options[0]
    assert replace(scorer.encode(question, ""), cut=True, kept=0) == MultipleChoiceScorer(
        scorer.model, scorer.tokenizer, PromptFormat(max_length=len(scorer.encode(question, "").options[1]))
    ).encode(question, context)


def test_encoders_cut_the_end_of_a_context_whatever_side_their_tokenizer_cuts():
    tokenizer = tiny_tokenizer("bert")
    tokenizer.truncation_side = "left"
    scorer = MultipleChoiceScorer(choice_model(), tokenizer, PromptFormat(max_length=32))
    encoded = scorer.encode({"id": "1", "prompt": "Which gas?", "A": "Helium"}, "First words. " + "And others. " * 50)
    assert tokenizer.decode(encoded.options[0]).startswith("[CLS] first words.")


def test_rows_of_encoders_are_not_padded_beyond_their_positions():
    config = transformers.BertConfig(**ENCODER, max_position_embeddings=45)
    torch.manual_seed(0)
    model = transformers.BertForMultipleChoice(config)
    scorer = MultipleChoiceScorer(model.eval(), tiny_tokenizer("bert"), PromptFormat())
    question = {"id": "1", "prompt": "Which gas?", "A": "Helium", "B": "Carbon dioxide"}
    encoded = scorer.encode(question, "Some context. " * 50)
    assert max(map(len, encoded.options)) == 45
    assert scorer.layout == "padded"
    assert np.isfinite(score_options(scorer, [encoded])[0]).all()
    scorer.limit = 35  # as --max-length
    cut = scorer.encode(question, "Some context. " * 50)
    assert (max(map(len, cut.options)), scorer.padded_tokens([cut])) == (35, 80)


def test_tokens_without_an_embedding_are_refused():
    tokenizer = tiny_tokenizer("llama")
    scorer = CausalScorer(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer, PromptFormat())
    question = {"id": "1", "prompt": "Which gas?", "is_question": True, "context": None, "A": "helium", "B": "<gas>"}
    score_options(scorer, [scorer.encode(question, "")])
    tokenizer.add_tokens(["<gas>"])
    with pytest.raises(InputError, match=r"the token '<gas>' \(49152\), the model only 49152 embeddings"):
        score_options(scorer, [scorer.encode(question, "")])
    with pytest.raises(InputError, match="the token '<gas>'"):  # nor is anything written after them
        scorer.encode_to_write(question | {"prompt": "<gas>?"}, "", 8)


def test_a_model_of_characters_has_no_table_of_embeddings():
    torch.manual_seed(0)
    sizes = ENCODER | {"max_position_embeddings": 256, "num_hash_buckets": 512}
    model = transformers.CanineForMultipleChoice(transformers.CanineConfig(**sizes)).eval()
    scorer = MultipleChoiceScorer(model, transformers.CanineTokenizer(), PromptFormat())
    encoded = scorer.encode({"id": "1", "prompt": "Which gas?", "A": "helium", "B": "neon"}, "")
    assert np.isfinite(score_options(scorer, [encoded])[0]).all()


def test_encoder_decoders_score_as_their_own_loss():
    scorer = Seq2SeqScorer(tiny_model("t5", vocab_size=49152), tiny_tokenizer("t5"), PromptFormat())
    question = read_exam("direct-validation").to_pylist()[0]
    encoded = scorer.encode(question, "Some context.")
    for option, score in zip(encoded.options, score_options(scorer, [encoded])[0], strict=True):
        loss = scorer.model(input_ids=torch.tensor([encoded.prompt]), labels=torch.tensor([option])).loss
        assert score == pytest.approx(-loss.item(), abs=1e-4)


def test_chat_templates_and_letters():
    question = read_exam("direct-validation").to_pylist()[0]
    scorer = CausalScorer(
        tiny_model("llama", vocab_size=49152), tiny_tokenizer("llama"), PromptFormat(prompt="chat", completion="letter")
    )
    encoded = scorer.encode(question, "Some context.")
    asked = scorer.tokenizer.decode(encoded.prompt)
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert f"A. {question['A']}" in asked
    assert [scorer.tokenizer.decode(option) for option in encoded.options] == list("ABCD")


def test_batches_hold_every_question_once_within_the_budget():
    scorer = CausalScorer(tiny_model("llama"), None, PromptFormat())
    questions = random_questions(50)
    batches = scorer.batches(questions, 256)
    assert sorted(number for batch in batches for number in batch) == list(range(50))
    for batch in batches:
        assert len(batch) * max(questions[number].length for number in batch) <= 256
    assert len(scorer.batches(questions, 1)) == 50


def test_normalisation_by_tokens_and_characters():
    options, tokens = [" ab", " abcde"], [[1, 2], [3]]
    assert scorer_divisors(options, tokens, "none") == [1, 1]
    assert scorer_divisors(options, tokens, "tokens") == [2, 1]
    assert scorer_divisors(options, tokens, "characters") == [3, 6]


@pytest.fixture(scope="module")
def smollm2():
    return load_scorer("SmolLM2-135M-Instruct", style=PromptFormat(normalise="none"), precision="float32", threads=2)


@pytest.mark.slow
def test_scores_agree_with_lm_evaluation_harness(smollm2):
    articles = {article["title"]: article["text"] for article in read_articles("demo")}
    asked = []
    for question in read_exam("direct-validation").to_pylist()[:6]:
        prompt = template_prompt_text(question, articles[question["title"]])
        asked.append((prompt, [f" {option}" for option in answer_options_of(question).values()]))
    encoded = [smollm2.encode_text(*pair) for pair in asked]
    ours = score_options(smollm2, encoded)
    harness = HFLM(pretrained=smollm2.model, tokenizer=smollm2.tokenizer, batch_size=4)
    requests = [Instance("loglikelihood", {}, (p, option), 0) for p, options in asked for option in options]
    theirs = iter(score for score, _ in harness.loglikelihood(requests, disable_tqdm=True))
    by_length = CausalScorer(smollm2.model, smollm2.tokenizer, PromptFormat(normalise="characters"))
    normalised = score_options(by_length, [by_length.encode_text(*pair) for pair in asked])
    for scores, divided, (_, options) in zip(ours, normalised, asked, strict=True):
        reference = np.array([next(theirs) for _ in options])
        np.testing.assert_allclose(scores, reference, atol=1e-3)
        # As its acc_norm does: divided by the characters of the option.
        np.testing.assert_allclose(divided, reference / [len(option) for option in options], atol=1e-3)


def test_only_the_context_of_a_long_prompt_is_cut(smollm2):
    question = read_exam("direct-validation").to_pylist()[0]
    context = "A word or two about cells. " * 500
    limit, smollm2.limit = smollm2.limit, 200
    try:
        encoded = smollm2.encode(question, context)
    finally:
        smollm2.limit = limit
    text = smollm2.tokenizer.decode(encoded.prompt)
    assert encoded.cut
    assert not smollm2.encode(question, context[:100]).cut
    assert 150 <= len(encoded.prompt) <= 199
    assert text.startswith("Context: A word")
    assert text.endswith(f"{question['prompt']}\nAnswer:")


def test_scores_prefer_what_the_context_says(smollm2):
    question = {"prompt": "What colour is the zorblax flower?", "is_question": True, "A": "violet", "B": "orange"}
    for letter, colour in (("A", "violet"), ("B", "orange")):
        context = f"The zorblax is a flower of the hills. The zorblax flower is {colour}."
        scores = score_options(smollm2, [smollm2.encode(question, context)])[0]
        assert "AB"[int(scores.argmax())] == letter


@pytest.mark.parametrize("kind", ["llama", "soft prompt", "bert", "t5"])
def test_tokens_and_padding_are_those_that_the_model_computes(kind):
    """Some questions stand twice in a batch, as in a training set smaller than it."""
    family = "llama" if kind == "soft prompt" else kind
    tokenizer = tiny_tokenizer(family)
    model = tiny_model(family, vocab_size=len(tokenizer))
    if kind == "bert":
        model = transformers.BertForMultipleChoice(model.config).eval()
    if kind == "soft prompt":
        model = adapter.add_trainable_adapter(model, "causal", "prompt-tuning", {"num_virtual_tokens": 4}).eval()
    classes = {"bert": MultipleChoiceScorer, "t5": Seq2SeqScorer}
    scorer = classes.get(kind, CausalScorer)(model, tokenizer, PromptFormat())
    questions = [replace(question, prompt=[7] * 70 + question.prompt) for question in random_questions(4)]
    if kind == "bert":
        questions = [
            EncodedForScorer([], question.options[: 2 + number], []) for number, question in enumerate(questions)
        ]
    batch = questions + questions[:2] * (kind != "bert")
    scorer.padded_tokens(batch)  # a model is proved first, which is not counted
    computed = []

    def count(module, arguments, given):
        ids = next(x for x in (given.get("input_ids"), given.get("inputs_embeds"), *arguments) if x is not None)
        computed.append(ids.shape[0] * ids.shape[1])

    inner = {"t5": [scorer.model.encoder, scorer.model.decoder] if kind == "t5" else []}.get(kind)
    for module in inner or [scorer.model.base_model.base_model if kind != "bert" else scorer.model.bert]:
        module.register_forward_pre_hook(count, with_kwargs=True)
    with torch.no_grad():
        scorer(batch)
    assert scorer.padded_tokens(batch) == sum(computed)
    assert 0 < scorer.tokens(batch) <= scorer.padded_tokens(batch)
    if kind == "llama":
        assert scorer.padded_tokens(batch) < sum(question.length for question in batch)
    if kind != "bert":
        one = batch[:1]
        virtual = 4 if kind == "soft prompt" else 0
        assert scorer.tokens(one) == virtual + len(one[0].prompt) + sum(map(len, one[0].options))
