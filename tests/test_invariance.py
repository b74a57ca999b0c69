"""No order changes an answer: of the options, of the questions, of the shards; nor who asks, nor who stands beside."""

import random

import pytest
import torch
import transformers
from conftest import write_jsonl
from tiny import mostly_slow, tiny_folder

from sciqa.ask import AskOptions, ask
from sciqa.core import tables
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of, rotate_answer_options
from sciqa.predict import PredictOptions, predict
from sciqa.predict.readers import READERS
from sciqa.predict.scored_answers import scored_answer_row
from sciqa.retrieval import RetrieveOptions, retrieve
from sciqa.retrieval.contexts import FindContexts
from sciqa.retrieval.index import read_index_manifest
from sciqa.retrieval.options import FindOptions
from sciqa.retrieval.search import LocalSearch

EMBED = {"model": "all-MiniLM-L6-v2", "threads": 2, "backend": "openvino"}
#: Arguments of `ModelReader` beside its model.
STYLES = {
    "llama": {},
    "llama letters": {"style": {"completion": "letter"}, "rotations": 26},
    "llama yes": {"style": {"completion": "yes"}},
    "t5": {},
    "bert": {},
}
#: Of what is found.
OTHERWISE = {"dense": ("options",), "words": ("options", "whole"), "context_sentences": 2}
READERS_TRIED = [*STYLES, "retrieval", "blend", "cascade"]


def exam(split="direct-validation", number=10):
    """Questions of two to six options, one of them longer than the embedder reads."""
    rows = read_exam(split).to_pylist()[:number]
    rows[0] |= {"E": "Some fifth thing"}
    rows[1] |= {"D": None}
    rows[2] |= {"E": "A fifth option", "F": "A sixth one"}
    rows[3] |= {"C": None, "D": None}
    rows[3]["answer"] = "A"
    rows[1]["answer"] = "B"
    rows[4]["prompt"] = "Consider what follows with care. " * 60 + rows[4]["prompt"]
    return [{name: value for name, value in row.items() if name != "context"} | {"context": None} for row in rows]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models, by family."""
    folders = {}
    for family in ("llama", "t5", "bert"):
        folders[family] = tiny_folder(tmp_path_factory.mktemp(family), family, initializer_range=0.2)
    torch.manual_seed(0)
    head = transformers.AutoModelForMultipleChoice.from_pretrained(folders["bert"])
    head.save_pretrained(folders["bert"])
    return folders


@pytest.fixture(scope="module")
def finder(small_index):
    """A function that gives questions their rows of the contexts table, with options of what is found."""

    def find(**settings):
        options = FindOptions(output=small_index, **settings)
        index = LocalSearch(options.index, read_index_manifest(options.index))
        worker = FindContexts(None, options, index, EMBED, options)
        return lambda these: [(row,) for row in worker.find(these)]

    return find


@pytest.fixture(scope="module")
def reader_of(models):
    """A function from the name of a reader to a function that answers questions with what was found for each."""

    def arguments(name):
        common = {"tokens_per_batch": 512, "style": {}, "rotations": 1, "precision": "float32", "threads": 1}
        return common | {"name": models[name.split()[0]]} | STYLES[name]

    def rows(read, questions, found):
        return [scored_answer_row(*pair, "it") for pair in zip(questions, read(questions, found), strict=True)]

    def make(name):
        if name in STYLES:
            return READERS["model"](**arguments(name)).score
        weak = READERS["retrieval"](EMBED, "", "").score
        if name == "retrieval":
            return weak
        strong = READERS["model"](**arguments("llama")).score
        blend = READERS["blend"]({"weak": 0.3, "strong": 0.9})
        cascade = READERS["cascade"]("weak", "margin", 0.85, "model", arguments("llama"))

        def score(questions, found):
            before = rows(weak, questions, found)
            if name == "blend":
                return blend.score(questions, list(zip(before, rows(strong, questions, found), strict=True)))
            doubts = [cascade.doubt(row["probabilities"]) for row in before]
            assert len(before) < 10 or min(doubts) < 0.85 <= max(doubts), "some are kept and some are read"
            return cascade.score(questions, [(*each, row) for each, row in zip(found, before, strict=True)])

        return score

    def answering(name):
        score = make(name)
        return lambda questions, found: rows(score, questions, found)

    return answering


def texts_of(question, row):
    """What was answered without letters: the options in their ranking, and the probability of each."""
    options = answer_options_of(question)
    return [options[letter] for letter in row["ranking"]], dict(
        zip(options.values(), row["probabilities"], strict=True)
    )


def assert_same(these, others, atol=1e-5):
    for key, (ranking, probabilities) in these.items():
        assert others[key][0] == ranking, key
        assert others[key][1] == pytest.approx(probabilities, abs=atol), key


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in READERS_TRIED if name != "cascade"),
        pytest.param("cascade", {}, marks=pytest.mark.slow),
        ("llama", OTHERWISE),
        pytest.param("retrieval", OTHERWISE, marks=pytest.mark.slow),
    ],
)
def test_orders_change_nothing(finder, reader_of, name, settings):
    find, read = finder(**settings), reader_of(name)
    questions = exam()

    def answers(questions, sizes):
        made = {}
        for size in sizes:
            part, questions = questions[:size], questions[size:]
            made |= {q["id"]: texts_of(q, row) for q, row in zip(part, read(part, find(part)), strict=True)}
        return made

    together = answers(questions, [10])
    shuffled = random.Random(0).sample(questions, 10)
    for by in (1, 2):
        turned = [rotate_answer_options(q, by % len(answer_options_of(q))) for q in questions]
        assert_same(together, answers(turned, [10]))
    assert_same(together, answers(shuffled, [10]))
    assert_same(together, answers(questions, [3, 3, 3, 1]))


def test_a_question_asks_its_own_options_whatever_stands_beside_it(finder):
    questions = exam()
    for settings in ({"words": ("options",), "dense": ()}, {"words": (), "dense": ("options",)}):
        find = finder(**settings, top_k=10)
        together = find(questions)
        for question, (row,) in zip(questions, together, strict=True):
            ((alone,),) = find([question])
            assert [(p["passage_id"], p["score"]) for p in row["passages"]] == [
                (p["passage_id"], p["score"]) for p in alone["passages"]
            ]


def run(tmp_path, small_index, name, questions, settings, **how):
    """Answers of a run through Ray, without letters."""
    write_jsonl(tmp_path / f"{name}.jsonl", questions)
    common = {"output": str(tmp_path / name), "exam": str(tmp_path / f"{name}.jsonl")} | how
    retrieve(RetrieveOptions(**common, index=f"{small_index}/index"))
    predict(PredictOptions(**common, **settings, name="it"))
    rows = tables.read_table(f"{common['output']}/answers/it").to_pylist()
    return {q["id"]: texts_of(q, row) for q, row in zip(questions, rows, strict=True)}


@pytest.mark.parametrize("reader", mostly_slow(["open-book", "retrieval"], "open-book"))
def test_one_worker_or_two_and_one_question_asked(tmp_path, small_index, models, reader):
    settings = {"reader": reader, "model": models["llama"], "precision": "float32"}
    questions = exam(number=6)
    one = run(tmp_path, small_index, "one", questions, settings, num_workers=1, shard_questions=6)
    two = run(tmp_path, small_index, "two", questions, settings, num_workers=2, shard_questions=1)
    assert_same(one, two)
    for question in questions[:2] if reader == "open-book" else []:
        options = tuple(answer_options_of(question).values())
        asked = AskOptions(
            question=question["prompt"],
            options=options[1:] + options[:1],
            output=small_index,
            model=models["llama"],
            precision="float32",
        )
        if question["is_question"]:
            ranking = ask(asked).details["ranking"]
            assert_same(
                {question["id"]: one[question["id"]]}, {question["id"]: ([o for o, _ in ranking], dict(ranking))}
            )


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["open-book", "retrieval"])
def test_the_packaged_validation_split(tmp_path, small_index, models, reader):
    settings = {"reader": reader, "model": models["llama"], "precision": "float32"}
    questions = [row | {"context": None} for row in read_exam("direct-validation").to_pylist()]
    plain = run(tmp_path, small_index, "plain", questions, settings, shard_questions=32)
    shuffled = [
        rotate_answer_options(q, n % 4) for n, q in enumerate(random.Random(1).sample(questions, len(questions)))
    ]
    assert_same(plain, run(tmp_path, small_index, "other", shuffled, settings, num_workers=2, shard_questions=7))
    if reader == "retrieval":
        figures = [
            tables.read_table(f"{tmp_path}/{name}/metrics/it.parquet").to_pylist()[0] for name in ("plain", "other")
        ]
        for name in ("questions", "ties", "map_at_3", "map_at_3_low", "map_at_3_high", "accuracy", "log_loss"):
            assert figures[0][name] == pytest.approx(figures[1][name], abs=1e-12), name
        assert figures[0]["calibration_error"] == pytest.approx(figures[1]["calibration_error"], abs=1e-9)
