"""Encoders and encoder-decoders: how long a row may be, what its tokens are, and which rows are computed together."""

import copy

import numpy as np
import pytest
import torch
import transformers
from architectures import build, texts, tokenizer, word
from tiny import tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from sciqa.core.errors import InputError
from sciqa.models.batch_layout import BatchLayout
from sciqa.models.load import SCORERS
from sciqa.models.multiple_choice import MultipleChoiceScorer
from sciqa.models.prompt_format import PromptFormat
from sciqa.models.scorer import score_options
from sciqa.models.seq2seq import Seq2SeqScorer

PLAIN = PromptFormat(normalise="none")


def scorer_of(kind, model_type, words=None, style=PLAIN):
    model = build(kind, model_type)
    return SCORERS[kind](model, words or tokenizer(model), style)


def question(prompt, *options):
    """A question whose prompt and options are so many words."""
    written = {letter: " ".join([word(20)] * length) for letter, length in zip("ABCDE", options, strict=False)}
    return {"id": "q1", "is_question": True, "prompt": " ".join([word(30)] * prompt)} | written


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "longformer", "mpnet", "ibert", "data2vec-text"])
def test_positions_that_begin_behind_the_padding_token_are_fewer(model_type):
    scorer = scorer_of("multiple-choice", model_type)
    assert scorer.tokenizer.model_max_length > 1 << 30
    assert scorer.limit == 510  # of a table of 512 rows
    encoded = scorer.encode(question(5, 2, 3), " ".join([word(40)] * 600))
    assert encoded.cut
    assert max(map(len, encoded.options)) == 510
    assert np.isfinite(score_options(scorer, [encoded])[0]).all()
    with pytest.raises(InputError, match=r"'q1': 52\d tokens without any context, the model's limit is 510"):
        scorer.encode(question(515, 2, 3), "")


def test_a_question_that_leaves_no_room_for_a_context_is_read_without_one():
    scorer = scorer_of("multiple-choice", "roberta")
    encoded = scorer.encode(question(505, 1, 3), " ".join([word(40)] * 600))
    assert encoded.cut
    assert list(map(len, encoded.options)) == [508, 510]


@pytest.mark.parametrize("model_type", ["xlnet", "funnel"])
def test_relative_positions_have_no_limit(model_type):
    scorer = scorer_of("multiple-choice", model_type)
    encoded = scorer.encode(question(5, 2, 3), " ".join([word(40)] * 600))
    assert not encoded.cut
    assert np.isfinite(score_options(scorer, [encoded])[0]).all()


@pytest.mark.parametrize(("model_type", "limit"), [("led", 512), ("prophetnet", 511), ("bart", 512)])
def test_prompts_and_options_keep_to_their_own_positions(model_type, limit):
    scorer = scorer_of("seq2seq", model_type)
    assert (scorer.limit, scorer.longest_option) == (limit, limit)
    encoded = scorer.encode(question(5, 2, 3), " ".join([word(40)] * 600))
    assert encoded.cut
    assert np.isfinite(score_options(scorer, [encoded])[0]).all()
    scorer.longest_option = 20
    with pytest.raises(InputError, match=r"'q1': an option of 3\d tokens, the model's decoder takes 20"):
        scorer.encode(question(5, 30, 3), "")


def test_separators_in_a_text_are_text():
    asked = {
        "id": "1",
        "is_question": True,
        "prompt": "What does [SEP] stand for?",
        "A": "Separator",
        "B": "[CLS] </s>",
    }
    words = tiny_tokenizer("bert")
    model = transformers.BertForMultipleChoice(tiny_model("bert", vocab_size=len(words)).config)
    scorer = MultipleChoiceScorer(model.eval(), words, PLAIN)
    for row, segments in zip(*(lambda e: (e.options, e.segments))(scorer.encode(asked, "A [SEP] here.")), strict=True):
        assert row.count(words.sep_token_id) == 2
        assert row.count(words.cls_token_id) == 1
        assert sum(segments) == len(row) - row.index(words.sep_token_id) - 1
    reader = Seq2SeqScorer(tiny_model("t5", vocab_size=49152), tiny_tokenizer("t5"), PLAIN)
    asked["prompt"] = "What ends <|im_end|> here?"
    marks = set(reader.tokenizer.all_special_ids)
    assert not marks & set(reader.encode(asked, "A <|im_end|> too.").prompt)


class Translator(transformers.PreTrainedTokenizerFast):
    """A tokenizer that ends what is said otherwise than what is read, as those of mBART, Marian and NLLB do."""

    def _ending(self, token):
        given = [(word(4), 4), (word(token), token)]
        self.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {word(token)}", special_tokens=given)

    def _switch_to_input_mode(self):
        self._ending(3)

    def _switch_to_target_mode(self):
        self._ending(7)


def test_options_are_in_the_tokens_of_what_is_said():
    model = build("seq2seq", "mbart")
    words = Translator(tokenizer_object=tokenizer(model).backend_tokenizer, pad_token=word(1), unk_token=word(9))
    words._switch_to_input_mode()
    encoded = Seq2SeqScorer(model, words, PLAIN).encode(question(5, 2, 3), "")
    assert encoded.prompt[-1] == 3
    assert [option[-1] for option in encoded.options] == [7, 7]


def test_a_longformer_reads_questions_without_a_context():
    scorer = scorer_of("multiple-choice", "longformer")
    asked = [question(5, 2, 3), question(30, 1, 2)]
    for encoded, scores in zip(
        [scorer.encode(each, "") for each in asked],
        score_options(scorer, [scorer.encode(each, "") for each in asked]),
        strict=True,
    ):
        assert np.isfinite(scores).all()
        assert all(row.count(scorer.tokenizer.sep_token_id) == 3 for row in encoded.options)


@pytest.mark.parametrize(("model_type", "layout"), [("bert", "padded"), ("roformer", "equal lengths")])
def test_only_models_that_ignore_padding_are_given_any(model_type, layout):
    scorer = scorer_of("multiple-choice", model_type)
    batch = [scorer.encode(*each) for each in texts(5)]
    shapes = []
    scorer.padded_tokens(batch)  # the model is proved first
    hook = lambda module, arguments, given: shapes.append(given["attention_mask"])  # noqa: E731
    scorer.model.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        scorer(batch)
    assert scorer.layout == layout
    assert (len(shapes) == 1) == (layout == "padded")
    assert any((mask == 0).any() for mask in shapes) == (layout == "padded")
    assert sum(mask.numel() for mask in shapes) == scorer.padded_tokens(batch)
    assert scorer.calls_vary == (layout != "padded")  # which ZeRO-3 cannot have
    assert (scorer.note is None) == (layout == "padded")


def test_weights_in_16_bits_are_proved_in_32():
    model = build("multiple-choice", "roformer").bfloat16()
    assert MultipleChoiceScorer(model, tokenizer(model), PLAIN).layout == "equal lengths"
    model = build("multiple-choice", "electra").bfloat16()
    assert MultipleChoiceScorer(model, tokenizer(model), PLAIN).layout == "padded"
    assert next(model.parameters()).dtype == torch.bfloat16


def test_what_a_model_read_before_changes_nothing():
    """BigBird attends to every token after its first short row, unless it is told otherwise."""
    model = build("multiple-choice", "big_bird")
    scorer = MultipleChoiceScorer(copy.deepcopy(model), tokenizer(model), PLAIN)
    short, long = (scorer.encode(question(length, 2, 3), "") for length in (4, 200))
    alone = MultipleChoiceScorer(model, tokenizer(model), PLAIN)
    alone.batch_layout = BatchLayout("single rows")
    expected = score_options(alone, [long])[0]
    for batch in ([short, long], [long, short], [long]):
        np.testing.assert_allclose(score_options(scorer, batch)[batch.index(long)], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "model_type", "change", "said"),
    [
        ("multiple-choice", "bert", lambda model: model.classifier.weight.fill_(torch.nan), "not numbers"),
        ("multiple-choice", "mra", lambda model: None, "scores all texts alike"),  # its CUDA kernel is missing
        ("multiple-choice", "xmod", lambda model: setattr(model.config, "default_language", None), "language unknown"),
        (
            "seq2seq",
            "t5",
            lambda model: setattr(model.config, "decoder_start_token_id", None),
            "decoder_start_token_id",
        ),
        ("seq2seq", "encoder-decoder", lambda model: setattr(model.config, "pad_token_id", None), "pad_token_id"),
    ],
)
@torch.no_grad()
def test_what_cannot_be_scored_is_refused_before_the_first_question(kind, model_type, change, said):
    scorer = scorer_of(kind, model_type)
    change(scorer.model)
    with pytest.raises(InputError, match=f"{type(scorer.model).__name__}: .*{said}"):
        scorer.prove()


def test_a_decoder_that_looks_ahead_is_refused():
    model = build("seq2seq", "encoder-decoder")
    for layer in model.decoder.bert.encoder.layer:
        layer.attention.self.is_causal = False
    model.decoder.bert.config.is_decoder = False
    with pytest.raises(InputError, match="depends on the tokens that follow"):
        Seq2SeqScorer(model, tokenizer(model), PLAIN).prove()


def test_models_of_speech_are_no_encoder_decoders():
    with pytest.raises(InputError, match="VoxtralForConditionalGeneration: not an encoder-decoder of text"):
        scorer_of("seq2seq", "voxtral")
