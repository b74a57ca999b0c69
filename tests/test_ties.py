"""Options that nothing tells apart, scores that are no numbers, and answers taken from tables: right or refused."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from conftest import write_jsonl
from tiny import tiny_folder, tiny_tokenizer

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam import probabilities, read_exam
from sciqa.exam.answer_options import rotate_answer_options
from sciqa.exam.metrics import average_precision_at_3, metric_rank_range, right_at_first, score_metrics
from sciqa.predict import PredictOptions, predict, rotations
from sciqa.predict.readers import BlendReader, CascadeReader, ModelReader, RetrievalReader
from sciqa.predict.scored_answers import ScoredAnswer, scored_answer_row
from sciqa.report import ReportOptions, report
from sciqa.retrieval.embedder import Embedder, embed_one_by_one

QUESTION = {"id": "q7", "prompt": "Which?", "A": "one", "B": "two", "C": "three", "D": "four", "answer": "C"}


@pytest.mark.parametrize(
    "scores", [[3, 2, 2, 2, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 2, 3, 3], [4, 3, 2, 1, 1]]
)
def test_ties_count_their_mean_over_all_orders(scores):
    scores = np.array(scores, float)
    for gold in range(5):
        ranks = []
        for order in itertools.permutations(range(5)):
            ranking = sorted(order, key=lambda option: -scores[option])
            ranks.append(ranking.index(gold) + 1)
        first, tied = metric_rank_range(scores, gold)
        expected = average_precision_at_3(np.array(ranks)).mean()
        assert average_precision_at_3(np.array([first]), np.array([tied])) == pytest.approx(expected)
        assert right_at_first(np.array([first]), np.array([tied])) == pytest.approx(np.mean(np.array(ranks) == 1))


def test_what_is_tied_follows_from_no_order_and_goes_on_from_neighbour_to_neighbour():
    scores = np.array([1.0, 1.0 + 0.8e-5, 1.0 + 1.6e-5, 0.5, 1.1])
    for order in itertools.permutations(range(5)):
        settled = probabilities.settle_probability_ties(scores[list(order)], 1e-5)[np.argsort(order)]
        assert settled[0] == settled[1] == settled[2] != settled[4]
        np.testing.assert_array_equal(probabilities.settle_probability_ties(settled, 1e-5), settled)
    assert np.isnan(probabilities.settle_probability_ties(np.array([1.0, np.nan, 2.0]), 1e-5)).tolist() == [
        False,
        True,
        False,
    ]


def test_tied_options_are_ranked_by_what_they_say():
    seen = set()
    for number in range(40):
        question = QUESTION | {"prompt": f"Which of {number}?"}
        rankings = []
        for by in range(4):
            turned = rotate_answer_options(question, by)
            rankings.append(
                [turned[letter] for letter in scored_answer_row(turned, ScoredAnswer(np.zeros(4)), "it")["ranking"]]
            )
        assert rankings == rankings[:1] * 4
        seen.add(rankings[0][0])
    assert seen == {"one", "two", "three", "four"}


def test_the_same_text_twice_is_tied():
    question = QUESTION | {"B": "one"}
    row = scored_answer_row(question, ScoredAnswer(np.array([1.0, 1.5, 0.2, 0.1])), "it")
    assert row["scores"][0] == row["scores"][1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(value):
    said = r"question 'q7', option B: some/model gives it the score .*; .* pass --precision float32"
    with pytest.raises(InputError, match=said):
        scored_answer_row(QUESTION, ScoredAnswer(np.array([1.0, value, 0.2, 0.1])), "some/model")
    # An average over rotations does not hide it either.
    turns = rotations.rotations_of([QUESTION], 4)
    scores = [np.zeros(4) for _ in turns]
    scores[2][1] = value
    with pytest.raises(InputError, match="question 'q7'"):
        scored_answer_row(QUESTION, rotations.mean_over_rotations(turns, scores, set())[0], "some/model")


@pytest.mark.slow
def test_an_overflowing_model_ends_the_run(tmp_path, cluster, exam_file):
    folder = tiny_folder(tmp_path / "loud", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(model.lm_head.weight, 3e38)
    model.save_pretrained(folder)
    options = {"output": str(tmp_path / "run"), "exam": exam_file, "reader": "closed-book", "model": folder}
    # The first scores that are asked for are those of a trial at load.
    with pytest.raises(InputError, match=r"its scores are not numbers.*--precision float32"):
        predict(PredictOptions(**options, precision="float32"))
    assert not (tmp_path / "run" / "metrics").exists()


def test_vectors_that_are_no_numbers_are_refused():
    class Broken(Embedder):
        model, computing = "some/model", "PyTorch"

        def raw(self, texts, batch_size, prefix="", kind=None):
            return np.full((len(texts), 3), np.nan, np.float32)

    with pytest.raises(InputError, match="its vector of the text 'Which planet' is not finite"):
        embed_one_by_one(Broken(), ["Which planet"])


def test_a_model_that_knows_nothing_scores_by_chance_wherever_the_right_option_stands(tmp_path, cluster, exam_file):
    folder = tiny_folder(tmp_path / "mute", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder)
    rows = read_exam("direct-validation").slice(0, 12).to_pylist()
    for place_of_right in "AD":
        turned = [rotate_answer_options(row, (ord(place_of_right) - ord(row["answer"])) % 4) for row in rows]
        assert {row["answer"] for row in turned} == {place_of_right}
        output = str(tmp_path / place_of_right)
        write_jsonl(tmp_path / f"{place_of_right}.jsonl", turned)
        summary = predict(
            PredictOptions(
                output=output,
                exam=str(tmp_path / f"{place_of_right}.jsonl"),
                reader="closed-book",
                name="mute",
                model=folder,
                precision="float32",
            )
        )
        figures = summary.details
        assert figures["map_at_3"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
        assert figures["accuracy"] == pytest.approx(1 / 4)
        assert (figures["ties"], figures["questions"]) == (12, 12)
        assert figures["calibration_error"] == pytest.approx(0)
        assert "12 questions with ties among their first three" in summary.made
        answers = tables.read_table(f"{output}/answers/mute").to_pylist()
        assert len({row["prediction"] for row in answers}) > 3
    page = storage.read_bytes(report(ReportOptions(output=output, exam=str(tmp_path / "D.jsonl"))).path).decode()
    assert page.count('<span class="mark">=</span>') == 12


def test_options_in_unknown_signs_are_tied(tmp_path):
    folder = tiny_folder(tmp_path / "bert", "bert")
    transformers.AutoModelForMultipleChoice.from_pretrained(folder).save_pretrained(folder)
    signs = QUESTION | {"A": "𒀀", "B": "𒀁", "C": "𒀂", "D": "a word", "is_question": True}
    assert len(set(map(tuple, tiny_tokenizer("bert")([signs[letter] for letter in "ABCD"])["input_ids"]))) == 2
    for precision in ("float32", "bfloat16"):
        reader = ModelReader(tokens_per_batch=2048, style={}, rotations=1, name=folder, precision=precision)
        (scored,) = reader.score([signs], [({"context": "Some words."},)])
        assert len(set(scored.scores[:3])) == 1


@pytest.fixture(scope="module")
def nearness():
    return RetrievalReader({"model": "all-MiniLM-L6-v2", "threads": 1, "backend": "openvino"}, "", "")


def test_retrieval_keeps_the_option_of_a_question_that_is_longer_than_the_embedder_reads(nearness):
    passages = [{"passage_id": "p", "title": "Planets", "section": "", "text": "Jupiter is the largest planet."}]
    options = {"A": "Jupiter", "B": "a herring", "C": "a lawn", "D": "Mars", "answer": "A"}
    short = QUESTION | options | {"prompt": "Which planet is the largest?"}
    long = short | {"prompt": "Which planet is the largest? " + "Say which. " * 300}
    first, second = nearness.score([short, long], [({"passages": passages},)] * 2)
    assert (first.cut, second.cut) == (False, True)
    assert len(set(second.scores)) == 4
    for scored in (first, second):
        assert scored.scores.argmax() == 0
    # So long an option leaves no room for the question, and only its end is lost.
    huge = short | {"B": "a herring " * 300, "C": "a herring " * 290}
    (scored,) = nearness.score([huge], [({"passages": passages},)])
    assert scored.cut
    assert scored.scores[1] == scored.scores[2], "what was left of them is the same"
    assert score_metrics([scored_answer_row(huge | {"answer": "C"}, scored, "it")])["ties"] == 1


def test_a_question_without_passages_is_a_tie(nearness):
    (scored,) = nearness.score([QUESTION], [({"passages": []},)])
    assert scored.scores.tolist() == [0, 0, 0, 0]


FAR = np.array([-3.0, -900.0, -1000.5, -1000.0])


def test_a_cascade_keeps_an_answer_bit_for_bit_and_a_blend_of_one_its_ranking():
    row = scored_answer_row(QUESTION, ScoredAnswer(FAR, True), "it")
    assert row["probabilities"][1:] == [0, 0, 0]
    assert row["ranking"] == list("ABDC")
    cascade = CascadeReader.__new__(CascadeReader)
    cascade.table, cascade.doubt, cascade.least, cascade.reader = "t", lambda _: 0.0, 0.5, None
    assert scored_answer_row(QUESTION, cascade.score([QUESTION], [(row,)])[0], "it") == row
    (blended,) = BlendReader({"t": 1.0}).score([QUESTION], [(row,)])
    again = scored_answer_row(QUESTION, blended, "it")
    assert (again["ranking"], again["probabilities"]) == (row["ranking"], row["probabilities"])
    for weight in (0.001, 0.3, 7.0):
        (blended,) = BlendReader({"t": weight}).score([QUESTION], [(row,)])
        assert scored_answer_row(QUESTION, blended, "it")["ranking"] == row["ranking"]


GOOD = scored_answer_row(QUESTION, ScoredAnswer(np.array([0.3, 0.1, 1.0, -2.0])), "it")
BROKEN = {
    "a score is no number": ({"scores": [0.3, float("nan"), 1.0, -2.0]}, "column 'scores': .*nan"),
    "a probability is no number": ({"probabilities": [0.1, float("nan"), 0.1, 0.8]}, "column 'probabilities': .*nan"),
    "a probability is missing": ({"probabilities": [0.1, None, 0.1, 0.8]}, "column 'probabilities'"),
    "too few": (
        {"scores": [0.5, 0.5], "probabilities": [0.5, 0.5]},
        "column 'scores': 2 found, one for each of 4 options",
    ),
    "unlike numbers": ({"probabilities": [0.5, 0.5]}, "column 'probabilities': 2 found, one for each of 4"),
    "they do not sum to 1": ({"probabilities": [0.5, 0.5, 0.5, 0.5]}, "column 'probabilities': .* which sum to 2"),
    "no scores": ({"scores": None}, "column 'scores': none found, as in tables that an earlier version wrote"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_rows_of_earlier_answers_are_checked(change, said):
    row = GOOD | change
    cascade = CascadeReader.__new__(CascadeReader)
    cascade.table, cascade.doubt, cascade.least, cascade.reader = "run/answers/x", lambda _: 0.0, 0.5, None
    for reader in (BlendReader({"run/answers/x": 1.0}), cascade):
        with pytest.raises(InputError, match=rf"run/answers/x, question 'q7', {said}"):
            reader.score([QUESTION], [(row,)])


def test_tables_of_earlier_answers_are_checked_before_they_are_used(tmp_path, cluster, exam_file):
    options = {"output": str(tmp_path), "exam": exam_file, "reader": "closed-book"}
    folder = tiny_folder(tmp_path / "llama", "llama", initializer_range=0.2)
    predict(PredictOptions(**options, model=folder, name="first"))
    path = str(tmp_path / "answers" / "first" / "00000.parquet")
    rows = tables.read_table(path).to_pylist()
    rows[3]["probabilities"][0] = rows[3]["scores"][0] = float("nan")
    tables.write_table(path, pa.Table.from_pylist(rows, schema=tables.read_table(path).schema))
    said = rf"answers/first, question '{rows[3]['id']}', column 'scores'"
    for more in ({"cascade": "first"}, {"blend": ("first",)}, {"blend": ("first",), "blend_fit": str(tmp_path)}):
        with pytest.raises(InputError, match=said):
            predict(PredictOptions(**options, model=folder, **more, name="second"))
    with pytest.raises(InputError, match=said):
        report(ReportOptions(output=str(tmp_path), exam=exam_file))
