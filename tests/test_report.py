"""The HTML page of a run: what it says of answers, what was read, and how it works in a browser."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_jsonl
from jinja2 import Environment, PackageLoader

from sciqa import run
from sciqa.audit import contamination as audited
from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.read_parts import split_read_parts
from sciqa.exam import ExamOptions, open_exam
from sciqa.exam.finished_answers import finished_answers_path
from sciqa.exam.metrics import metric_bootstrap_interval, score_metrics
from sciqa.predict import PredictOptions, predict
from sciqa.predict.results import METRICS, result_metrics_path
from sciqa.predict.scored_answers import ANSWERS_FORMAT, ScoredAnswer, scored_answer_inputs, write_scored_answers
from sciqa.report import ReportOptions, report
from sciqa.report.report import report_confusion
from sciqa.report.texts import report_formulas_as_html
from sciqa.retrieval import contexts as finding
from sciqa.run import RunExamOptions, run_exam

HOSTILE = "</script><script>window.broken = 1</script> \"quoted\" 'single' <b>& \u2028 end"
LONG = "ACGT" * 125
EXAM = [
    {"id": "q1", "prompt": "Which gas is light?", "A": "Helium", "B": "Argon", "C": "Xenon", "answer": "A"},
    {"id": "=2+3", "prompt": f"What of {HOSTILE}?", "A": HOSTILE, "B": "no", "C": "yes", "answer": "B"},
    {"id": "q3", "prompt": f"Of what is {LONG}?", "A": LONG, "B": "one", "C": "two", "answer": "C"},
    {"id": "q4", "prompt": "First line\nSecond, with $\\frac{a}{b}$ for $5 and $7", "A": "x", "B": "y", "answer": "A"},
    {"id": "q5", "prompt": "A long one. " * 120 + "End.", "A": "x", "B": "y", "C": "מים", "answer": None},
    {"id": "q6", "prompt": "And the last?", "A": "x", "B": "y", "C": "z", "answer": "C"},
]
SHARD = 4
TOPICS = ["Gases", "Code", "Code", "Gases", "-1", "Gases"]
SURE = [[5, 0, 0], [4, 0, 0], [0, 0, 3], [2, 0], [1, 0, 0], [0, 0, 0]]
UNSURE = [[0, 0.5, 0], [0, 0.4, 0], [0, 0.3, 0.2], [0.25, 0], [0, 0.1, 0], [0.05, 0, 0.06]]
HELIUM = "Helium is light. It is rare. It is a gas."
PASSAGES = [
    {
        "passage_id": "p1",
        "title": "Helium",
        "section": "",
        "text": "Helium is light. It is rare. It is a gas.",
        "score": 0.9,
    },
    {"passage_id": "p2", "title": "Argon", "section": "Use", "text": "Argon is <heavy>. It is rare.", "score": 0.5},
]
FOUND = {"format": finding.CONTEXTS_FORMAT, "context_passages": 1, "context_sentences": 2, "prefix": "query: "}


def make_run(folder, readers, rows=EXAM, topics=TOPICS, contexts=None, found=FOUND):
    """Write the tables of a run without a model.

    Args:
        folder: of the run.
        readers: by name, the scores of every question's options, and more of what its answers follow from.
        rows: of the exam.
        topics: of the questions.
        contexts: of each question its passages and what of them was read, if anything was found.
        found: what the contexts follow from.
    """
    output = str(folder / "run")
    rows = [row | {"topic": topic} for row, topic in zip(rows, topics, strict=True)]
    write_jsonl(folder / "exam.jsonl", rows)
    exam = open_exam(ExamOptions(output=output, exam=str(folder / "exam.jsonl"), shard_questions=SHARD))
    whole = exam.shard_questions
    shards = [exam.read_shard(part) for part in range(exam.shards)]
    found = found | {"exam": exam.sha256}
    if contexts:
        for part, questions in enumerate(shards):
            at = exam.first(part)
            each = [{"id": q["id"], **c} for q, c in zip(questions, contexts[at:], strict=False)]
            table = pa.Table.from_pylist(each, schema=finding.SCHEMA)
            tables.write_table(tables.table_part_path(f"{output}/contexts", part), table)
        tables.finish_table(f"{output}/contexts", {"format": finding.CONTEXTS_FORMAT, "inputs": found, "rows": whole})
    for name, (scores, inputs) in readers.items():
        path = finished_answers_path(output, name)
        if "contexts" in inputs:
            inputs = inputs | {"contexts": found}
        for part, questions in enumerate(shards):
            scored = [ScoredAnswer(np.array(each, float)) for each in scores[exam.first(part) :][: len(questions)]]
            found_rows = contexts and [(c,) for c in contexts[exam.first(part) :]]
            write_scored_answers(
                path, part, questions, scored, "the test", found_rows if "contexts" in inputs else None
            )
        inputs = {"format": ANSWERS_FORMAT, "exam": exam.sha256, "reader": name} | inputs
        tables.finish_table(path, {"format": ANSWERS_FORMAT, "inputs": inputs, "rows": whole, "seconds": 2.0})
        answers = tables.read_table(path).to_pylist()
        slices = {"all": answers} | {
            f"topic: {topic}": [row for row, own in zip(answers, topics, strict=True) if own == topic]
            for topic in dict.fromkeys(topics)
        }
        about = {"reader": name, "model": "some/model", "seconds": 2.0}
        figures = [(slice_, score_metrics(several)) for slice_, several in slices.items()]
        metrics = [{"slice": slice_} | about | each for slice_, each in figures if each]
        tables.write_table(result_metrics_path(output, name), pa.Table.from_pylist(metrics, schema=METRICS))
    return output


def evidence(*letters):
    """Return contexts whose evidence names each option's letter in its clause."""
    text = "Before, {} after."
    found = [
        {"passage_id": "p", "title": f"Article {each}", "sentence": text.format(each), "start": 8, "end": 9, "score": 0}
        for each in letters
    ]
    return context("Helium is light.") | {"evidence": found}


def write_audit(output, rows, inputs):
    """Write the table of an audit of the run's exam, and what it follows from."""
    exam = open_exam(ExamOptions(output=output))
    table = pa.Table.from_pylist(rows, schema=audited.SCHEMA)
    tables.write_table(tables.table_part_path(f"{output}/audit", 0), table)
    about = {"format": audited.AUDIT_FORMAT, "inputs": {"exam": exam.sha256} | inputs, "rows": len(rows)}
    tables.finish_table(f"{output}/audit", about)


def page_of(output, **options):
    return Path(report(ReportOptions(output=output, **options)).path).read_text(encoding="utf-8")


def context(*texts, given=None):
    """Return contexts of which the first passage's texts were read."""
    lines = [given] if given else []
    lines += [titled_chunk("Helium", "", " ".join(texts))] if texts else []
    return {"passages": PASSAGES, "context": "\n".join(lines)}


READERS = {"sure": (SURE, {"contexts": {}, "model": "a"}), "unsure": (UNSURE, {"model": "b"})}


@pytest.fixture
def output(tmp_path):
    return make_run(tmp_path, READERS, contexts=[context("Helium is light.", "It is a gas.")] * 6)


def test_the_reader_asked_for_is_shown_and_others_can_be(output):
    best = page_of(output)
    assert '<option value="sure" selected' in best
    page = page_of(output, show="unsure")
    assert '<option value="unsure" selected' in page
    assert '<section data-reader="sure" hidden' in page
    assert '<section data-reader="unsure" aria' in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    for name in ("sure", "unsure"):
        answers = tables.read_table(f"{output}/answers/{name}").to_pylist()
        for row, (ranking, given, *_) in zip(answers, data["readers"][name]["rows"], strict=True):
            assert list(ranking) == row["ranking"]
            assert given == pytest.approx(sorted(row["probabilities"], reverse=True), abs=1e-6)
    assert [question["prompt"] for question in data["questions"]] == [row["prompt"] for row in EXAM]
    with pytest.raises(InputError, match=r"--show: no reader 'none' .* sure, unsure"):
        page_of(output, show="none")


@pytest.mark.parametrize(
    ("objective", "rows", "titles"),
    [
        (
            "dpo",
            [
                {"step": 0, "validation_loss": 0.7, "validation_rewards/margins": 0.0},
                {"step": 1, "loss": 0.7, "rewards/margins": -0.5},
                {"step": 2, "loss": 0.5, "rewards/margins": 0.25},
                {"step": 2, "validation_loss": 0.6, "validation_rewards/margins": 0.5},
            ],
            {"Loss of x by step": ("0.7", "0"), "Reward of chosen less rejected answers of x by step": ("0.5", "-0.5")},
        ),
        (
            "grpo",
            [
                {"step": 0, "validation_loss": 0.0, "validation_reward": 0.5},
                {"step": 1, "loss": -0.01, "reward": 1.5, "kl": 0.0},
                {"step": 2, "loss": 0.02, "reward": 2.0, "kl": 0.125},
                {"step": 2, "validation_loss": 0.0, "validation_reward": 1.0},
            ],
            {
                "Loss of x by step": ("0.02", "-0.01"),
                "Reward of sampled answers of x by step": ("2", "0"),
                "KL divergence from the reference, per token of x by step": ("0.12", "0"),
            },
        ),
    ],
)
def test_rewards_and_divergence_of_objectives_are_drawn(output, objective, rows, titles):
    folder = f"{output}/trained/x"
    tables.write_table(f"{folder}/metrics.parquet", pa.Table.from_pylist(rows, schema=schema_of(rows)))
    measure = "validation_reward" if objective == "grpo" else "validation_loss"
    figures = {"measure": measure, measure: 0.6, f"{measure}_untrained": 0.7, "best_step": 2}
    tables.finish_table(folder, figures | {"inputs": {"objective": objective}})
    charts = re.findall(r'aria-label="([^"]+ by step)">(.*?)</svg>', page_of(output), re.DOTALL)
    assert {title: tuple(re.findall(r'"end">([^<]+)<', chart)) for title, chart in charts} == titles
    for _, chart in charts:
        points = [float(y) for line in re.findall(r'points="([^"]+)"', chart) for y in re.findall(r",(\S+)", line)]
        assert points
        assert all(10 <= y <= 160 for y in points)


def schema_of(rows):
    """The schema of a history: whole steps, and figures that some rows lack."""
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([(name, pa.int64() if name == "step" else pa.float64()) for name in names])


def test_a_run_shows_the_reader_that_it_answered_with(monkeypatch, tmp_path):
    seen = []
    for step in ("check_predict_model", "prepare_run_index", "retrieve", "predict"):
        monkeypatch.setattr(run, step, lambda *_, **__: [])
    monkeypatch.setattr(run, "report", lambda options: seen.append(options.show))
    run_exam(RunExamOptions(output=str(tmp_path), reader="closed-book", compare=True))
    run_exam(RunExamOptions(output=str(tmp_path), name="mine"))
    run_exam(RunExamOptions(output=str(tmp_path), name="mine", show="retrieval", compare=True))
    assert seen == ["closed-book", "mine", "retrieval"]
    with pytest.raises(InputError, match=r"--show: no reader 'retrieval' .* mine"):
        run_exam(RunExamOptions(output=str(tmp_path), name="mine", show="retrieval"))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"blend": ("a", "b"), "blend_fit": "other"}, "blend"),
        ({"cascade": "a", "cascade_share": 0.3}, "a-then-open-book"),
    ],
)
def test_readers_compared_with_a_blend_or_a_cascade_answer_alone_and_before_it(monkeypatch, tmp_path, given, name):
    asked = []
    for step in ("check_predict_model", "check_run_mixed", "prepare_run_index", "retrieve", "report"):
        monkeypatch.setattr(run, step, lambda *_, **__: [])
    monkeypatch.setattr(run, "predict", asked.append)
    run_exam(RunExamOptions(output=str(tmp_path), compare=True, baselines=False, **given))
    assert [each.name for each in asked] == [*run.COMPARED, name]
    assert [each.reader for each in asked] == [*run.COMPARED, "open-book"]
    assert not any(each.blend or each.blend_fit or each.cascade for each in asked[:-1])
    for each in asked:
        each.check_effects()
    asked.clear()
    run_exam(RunExamOptions(output=str(tmp_path), compare=False, **given))
    assert [each.name for each in asked] == ["overlap", "overlap-gold", "longest", "majority", name]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"blend": ("open-book", "oopen-book")},
            "--blend: no reader 'oopen-book' in .* run: open-book, closed-book,",
        ),
        ({"cascade": "typo"}, "--cascade: no reader 'typo' in"),
        ({"blend": ("open-book",), "blend_fit": "away"}, "away/answers/open-book"),
        ({"seed": 3}, "--seed: has no effect without --completion reasoned"),
    ],
)
def test_what_a_run_would_refuse_at_its_end_is_refused_before_it(monkeypatch, tmp_path, given, said):
    for step in ("check_predict_model", "prepare_run_index", "retrieve", "predict", "report"):
        monkeypatch.setattr(run, step, lambda *_, **__: [])
    run_exam(RunExamOptions(output=str(tmp_path), compare=True, blend=("retrieval", "longest")))
    with pytest.raises(InputError, match=said):
        run_exam(RunExamOptions(output=str(tmp_path), compare=True, **given))


@pytest.mark.parametrize("name", ["closed-book", "longest"])
def test_two_readers_of_a_run_do_not_have_one_name(monkeypatch, tmp_path, name):
    for step in ("check_predict_model", "prepare_run_index", "retrieve", "predict", "report"):
        monkeypatch.setattr(run, step, lambda *_, **__: [])
    with pytest.raises(InputError, match=rf"--name: '{name}' is another reader of this run too; pass another --name"):
        run_exam(RunExamOptions(output=str(tmp_path), compare=True, name=name))


@pytest.mark.parametrize("given", [{"blend": ("sure", "unsure")}, {"cascade": "sure"}])
def test_answers_are_not_replaced_by_what_reads_them(tmp_path, given):
    output = make_run(tmp_path, READERS)
    before = {path: path.read_bytes() for path in Path(output).rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"--name: 'sure' is also what is read; .* pass another --name"):
        predict(PredictOptions(output=output, name="sure", reader="longest", overwrite=True, **given))
    assert {path: path.read_bytes() for path in Path(output).rglob("*") if path.is_file()} == before
    with pytest.raises(InputError, match="--blend: 'a' given twice"):
        PredictOptions(blend=("a", "b", "a"))
    with pytest.raises(InputError, match="--name: 'blend' is also what is read"):
        PredictOptions(output=output, blend=("blend", "sure"))


def test_confusion_counts_letters_that_are_first_and_ties_in_part():
    rows = [
        {"answer": "A", "scores": [2, 1, 0]},
        {"answer": "A", "scores": [0, 1, 1]},
        {"answer": "C", "scores": [0, 0, 0]},
        {"answer": "C", "scores": [0, 3]},
    ]
    third = pytest.approx(1 / 3)
    assert report_confusion(rows) == {"A": [1, 0.5, 0.5], "C": [third, pytest.approx(4 / 3), third]}
    assert report_confusion([]) == {}
    amount = Environment(loader=PackageLoader("sciqa.report", ".")).get_template("figures.html.j2").module.amount
    assert [amount(number) for number in (14_042.0, 4 / 3, 0.1 + 0.2 + 0.7)] == ["14,042", "1.33", "1"]


def marked(parts):
    return "".join(f"[{text}]" if read else text for text, read in parts)


@pytest.mark.parametrize(
    ("texts", "read", "expected"),
    [
        (["One. Two. One more."], "T. One. One more.", ["[One. ]Two. [One more.]"]),
        (["It is. Where it is. No."], "T. Where it is.", ["It is. [Where it is. ]No."]),
        (
            ["Same one. Ours.", "Same one. Theirs."],
            "T. Same one.\nT. Theirs.",
            ["[Same one. ]Ours.", "Same one. [Theirs.]"],
        ),
        (["Same one.", "Same one."], "T. Same one.\nT. Same one.", ["[Same one.]", "[Same one.]"]),
        (["Whole. With\nlines.", "Second."], "T. Whole. With\nlines.", ["[Whole. With\nlines.]", "Second."]),
        (["One. Two."], "given", ["One. Two."]),
        (["One. Two."], "given\nT. Two.", ["One. [Two.]"]),
    ],
)
def test_what_was_read_is_marked(texts, read, expected):
    passages = [{"title": "T", "section": "", "text": text} for text in texts]
    found = split_read_parts(passages, read, "given" if read.startswith("given") else None)
    assert [marked(parts) for parts in found] == expected
    assert ["".join(text for text, _ in parts) for parts in found] == texts


def test_passages_say_whether_they_were_read(output):
    page = page_of(output)
    assert page.count("<mark>Helium is light. </mark>It is rare. <mark>It is a gas.</mark>") == len(EXAM)
    assert page.count("· read in part") == page.count("· found, not read") == len(EXAM)
    assert len(re.findall('class="q right( long)? marks"', page)) == 3
    assert "marks" not in re.findall(r'class="(q [^"]*)"', page_of(output, show="unsure"))[0]
    assert "Answered without a context: nothing that stands here was read." in page_of(output, show="unsure")


def test_the_context_that_an_exam_gives_is_shown_as_what_was_read(tmp_path):
    rows = [row | {"context": "Given <here>."} for row in EXAM]
    own = [{"passages": [], "context": "Given <here>."}] * 6
    readers = {"own": (SURE, {"contexts": {}, "model": "a"}), "alone": (UNSURE, {"model": "a"})}
    page = page_of(make_run(tmp_path, readers, rows, contexts=own, found={"context": "given"}), show="own")
    assert page.count("<mark>Given &lt;here&gt;.</mark>") == 6
    assert page.count("<span>It read the context that the exam gives.</span>") == 6


def test_every_kind_of_reader_says_how_it_came_to_an_answer(tmp_path):
    half = [SURE[0], *UNSURE[1:]]
    kinds = {
        "sure": READERS["sure"],
        "nearest": (UNSURE, {"contexts": {}, "embedder": "e"}),
    }
    output = make_run(tmp_path, kinds, contexts=[context("It is rare.")] * 6)
    made_from = scored_answer_inputs(output, ("sure", "nearest"))
    cascades = {
        "pool": (SURE, {"answers": made_from}),
        "old pool": (SURE, {"answers": made_from | {"nearest": "of other answers", "gone": "1"}}),
        "then": (half, {"contexts": {}, "model": "a", "cascade": {"nearest": made_from["nearest"]}}),
        "lost": (half, {"contexts": {}, "model": "a", "cascade": {"nearest": "of other answers"}}),
    }
    make_run(tmp_path, cascades, contexts=[context("It is rare.")] * 6)
    other = tables.read_table_manifest(f"{output}/answers/lost", "predict")
    other["inputs"] = other["inputs"] | {"contexts": {"other": True}, "reader": "away"}
    del other["inputs"]["cascade"]
    shutil.copytree(f"{output}/answers/lost", f"{output}/answers/away")
    shutil.copy(result_metrics_path(output, "lost"), result_metrics_path(output, "away"))
    tables.finish_table(f"{output}/answers/away", other)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page_of(output), re.DOTALL)[1])["readers"]
    said = {
        name: [(way["said"], way["marks"]) for row in each["rows"] for way in [each["ways"][row[4]]]]
        for name, each in data.items()
    }
    whole = "It compared the options with every passage as a whole."
    assert said["sure"] == [("It read what is marked.", True)] * 6
    assert said["nearest"] == [(whole, False)] * 6
    assert said["pool"] == [("Pooled from the answers of nearest, sure, without reading anew.", False)] * 6
    assert {each for each, _ in said["old pool"]} == {
        "Pooled from the answers of gone, nearest, sure, without reading anew. Since then, those of gone, nearest were "
        "replaced or deleted."
    }
    assert said["then"] == [("It read what is marked.", True)] + [(f"Kept as nearest answered. {whole}", False)] * 5
    assert {each for each, _ in said["lost"]} == {
        "It read only where nearest was least certain; whether it did here is not known."
    }
    assert said["away"] == [("It read other contexts than these.", False)] * 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"so $\frac{a}{b}$ and $$x^2$$", "so a/b and x^2"),
        (r"\(\alpha\) or \[ \beta \]", "α or β"),
        ("$5 and $7, $5-$7, US$3/US$4", "$5 and $7, $5-$7, US$3/US$4"),
        ("between $5 and 10$ each", "between $5 and 10$ each"),
        (r"a \$5 note, the $n$th", r"a \$5 note, the n th".replace("n th", "nth")),
        ("no end $x", "no end $x"),
        ("$$", "$$"),
        (r"cut off: $n\operatorname$", "cut off: n operatorname"),
        ("<i>$a<b$</i>", "&lt;i&gt;a&lt;b&lt;/i&gt;"),
    ],
)
def test_formulas_are_written_as_text_and_money_stays(text, shown):
    assert re.sub(r'<span class="formula" title="[^"]*">|</span>', "", str(report_formulas_as_html(text))) == shown


def test_hostile_text_stays_text(output):
    page = page_of(output)
    assert page.count("<script>") == 1
    assert page.count("</script>") == 2
    assert "\u2028" not in re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", page)


def test_the_head_says_when_by_what_and_how(output):
    page = page_of(output)
    assert re.search(
        r"6 questions of \S+exam\.parquet\. This page was made \d{4}-\d\d-\d\d \d\d:\d\d UTC by sciqa \d", page
    )
    assert "<tr><td>contexts: prefix</td><td>query: </td></tr>" in page
    assert "by chance 0.639, n&nbsp;=&nbsp;5" in page
    slices = re.findall(r'<tr><td dir="auto">(topic: [^<]*)</td><td>(\d)</td>', page)
    assert slices[:2] == [("topic: Gases", "3"), ("topic: Code", "2")]


@pytest.mark.parametrize("answered", [0, 1])
def test_exams_with_few_answers_have_a_page(tmp_path, answered):
    rows = [row | {"answer": row["answer"] if n < answered else None} for n, row in enumerate(EXAM)]
    page = page_of(make_run(tmp_path, {name: (scores, {}) for name, (scores, _) in READERS.items()}, rows))
    assert page.count('<details class="q') == 6
    assert ("no question has an answer, so nothing is scored" in page) == (answered == 0)
    assert ("Confusion of letters" in page) == (answered == 1)


def test_intervals_do_not_depend_on_what_was_asked_before():
    values = np.random.default_rng(3).integers(0, 3, 50) / 2
    first = metric_bootstrap_interval(values)
    metric_bootstrap_interval(np.append(values, 7.0))
    drawn = np.random.default_rng(0).multinomial(50, np.unique(values, return_counts=True)[1] / 50, 10_000)
    assert (
        first
        == metric_bootstrap_interval(values[::-1])
        == pytest.approx(np.percentile(drawn @ np.unique(values) / 50, [2.5, 97.5]))
    )


@pytest.fixture(scope="module", params=[1280, 390])
def browser_page(request):
    """A page of Chromium that notes what goes wrong in it; no network is there."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": request.param, "height": 900}, offline=True, accept_downloads=True
        )
        page = context.new_page()
        page.failures = []
        page.on("console", lambda said: said.type in ("error", "warning") and page.failures.append(said.text))
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        yield page
        browser.close()


def ids(page):
    """Return the ids of the questions that are listed."""
    return [text.split(" · ")[0] for text in page.locator(".q:visible .asked small").all_inner_texts()]


def no_scrollbar(page):
    return page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")


def test_the_page_works_in_a_browser(output, browser_page):
    page, order = browser_page, [row["id"] for row in EXAM]
    page.goto(Path(report(ReportOptions(output=output)).path).as_uri())
    assert no_scrollbar(page)
    folded = [page.locator(".prompt").nth(number).bounding_box()["height"] for number in (3, 4)]
    assert folded[1] == pytest.approx(6 * 24, abs=2)
    page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert no_scrollbar(page)
    assert page.locator(".prompt").nth(4).bounding_box()["height"] > folded[1] + 24
    assert page.locator(".prompt").nth(3).inner_text() == "First line\nSecond, with a/b for $5 and $7"
    assert folded[0] >= 2 * 24 - 1
    assert ids(page) == order
    assert page.locator(".q:visible .mark").all_inner_texts() == ["✓", "=", "✓", "✓", "·", "="]
    assert page.locator(".marks blockquote mark").count() == 12
    assert page.locator(".map:visible").inner_text() == "0.806"

    page.select_option("#reader", "unsure")
    answers = tables.read_table(f"{output}/answers/unsure").to_pylist()
    assert page.locator(".q:visible .mark").all_inner_texts() == ["=", "✓", "2", "✓", "·", "✓"]
    assert page.locator(".map:visible").inner_text() == f"{score_metrics(answers)['map_at_3']:.3f}"
    assert page.locator(".marks blockquote mark").count() == 0
    assert page.locator(".q:visible").first.locator(".option b").all_inner_texts() == answers[0]["ranking"]
    assert page.locator("tr.shown td").first.inner_text().startswith("unsure")

    page.select_option("#slice", "topic: Code")
    assert ids(page) == order[1:3]
    page.select_option("#slice", "")
    page.fill("#search", "second, with a/b")
    assert ids(page) == ["q4"]
    page.fill("#search", "frac{a}")
    assert ids(page) == ["q4"]
    page.fill("#search", "nothing of this")
    assert "No question matches" in page.inner_text("#count")
    assert page.locator("#download").is_disabled()
    page.fill("#search", "")

    page.select_option("#order", "unsure")
    sureness = {row["id"]: max(row["probabilities"]) for row in answers}
    assert ids(page) == sorted(order, key=sureness.get)
    page.select_option("#order", "wrong")
    page.click("button[data-state=wrong]")
    wrong = ids(page)
    assert wrong == sorted(wrong, key=sureness.get, reverse=True)
    assert wrong == ["q1", "q3"]
    page.click("button[data-state='']")
    page.select_option("#order", "exam")
    assert not page.failures
    assert page.evaluate("window.broken") is None


def test_the_list_downloads_as_csv(output, browser_page, tmp_path):
    page, kinds = browser_page, ["near", "clean", "exact", "clean", "same article", "clean"]
    found = {"nearest": "t1", "nearest_source": "train", "cosine": 1.0, "question_run": 9}
    inputs = {"against": {"train": ""}, "texts": None, "ngram": 8, "similarity": 0.9, "share": 0.8, "texts_name": None}
    rows = [{"id": row["id"], "kind": kind} | found for row, kind in zip(EXAM, kinds, strict=True)]
    write_audit(output, rows, inputs)
    page.goto(Path(report(ReportOptions(output=output)).path).as_uri())
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    with (tmp_path / "list.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines))
    answers = tables.read_table(f"{output}/answers/sure").to_pylist()
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in EXAM]
    assert [row["id"] for row in rows] == ["q1", "'=2+3", "q3", "q4", "q5", "q6"]
    assert [row["topic"] for row in rows] == [f"{chr(39) * (topic == '-1')}{topic}" for topic in TOPICS]
    assert [row["contamination"] for row in rows] == kinds
    for row, answer in zip(rows, answers, strict=True):
        assert row["prediction"] == answer["prediction"]
        assert row["answer"] == (answer["answer"] or "")
        assert float(row["probability"]) == pytest.approx(max(answer["probabilities"]), abs=1e-6)
        assert row["reader"] == "sure"
    assert [(row["rank"], row["tied"]) for row in rows] == [
        ("1", "1"),
        ("2", "2"),
        ("1", "1"),
        ("1", "1"),
        ("", ""),
        ("1", "3"),
    ]
    page.select_option("#slice", "topic: Code")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "code.csv")
    with (tmp_path / "code.csv").open(encoding="utf-8-sig", newline="") as lines:
        assert [row["id"] for row in csv.DictReader(lines)] == ["'=2+3", "q3"]
    page.select_option("#slice", "contamination: clean")
    assert ids(page) == ["=2+3", "q4", "q6"]
    page.select_option("#slice", "")
    page.fill("#search", "exact: train")
    assert ids(page) == ["q3"]
    assert no_scrollbar(page)
    assert not page.failures


def test_twenty_six_letters_scroll_inside_their_panel(tmp_path, browser_page):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    texts = {letter: f"{letter} {'word' * 40}" for letter in letters}
    rows = [{"id": str(n), "prompt": f"Number {n}?", **texts, "answer": letters[n]} for n in range(6)]
    scores = np.random.default_rng(0).normal(size=(6, 26)).tolist()
    page = browser_page
    page.goto(Path(report(ReportOptions(output=make_run(tmp_path, {"one": (scores, {})}, rows))).path).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    assert no_scrollbar(page)
    assert page.locator(".letters tbody tr").count() == 6
    assert page.locator(".letters thead th").count() == 28
    assert not page.failures


def test_a_page_without_scripts_has_the_reader_shown(output, browser_page):
    context = browser_page.context.browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(Path(report(ReportOptions(output=output, show="unsure")).path).as_uri())
    assert page.locator(".q:visible .mark").all_inner_texts() == ["=", "✓", "2", "✓", "·", "✓"]
    assert page.locator(".tools").is_hidden()
    assert page.locator(".map:visible").count() == 1
    context.close()


def test_the_step_needs_neither_ray_nor_pytorch(output):
    code = (
        "import sys; from sciqa.cli import main; main(sys.argv[1:]); assert not {'ray', 'torch'} & sys.modules.keys()"
    )
    command = [sys.executable, "-c", code, "report", "--output", str(output)]
    subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.parametrize("browser_page", [1280], indirect=True)
def test_the_evidence_of_the_first_option_is_shown_for_each_reader(tmp_path, browser_page):
    letters = [[letter for letter in "ABCDEF" if letter in row] for row in EXAM]
    first = [[10.0, *range(len(each) - 1)] for each in letters]
    last = [list(range(len(each))) for each in letters]
    readers = {"one": (first, {"contexts": {}}), "two": (last, {"contexts": {}}), "three": (first, {})}
    output = make_run(tmp_path, readers, contexts=[evidence(*each) for each in letters])
    page = browser_page
    page.goto(Path(report(ReportOptions(output=output, show="one")).path).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(node => node.open = true)")
    shown = page.locator(".evidence:visible")
    assert shown.count() == len(EXAM)
    assert page.locator(".evidence mark").nth(0).inner_text() == "A"
    page.select_option("#reader", "two")
    assert page.locator(".evidence mark").all_inner_texts() == [each[-1] for each in letters]
    assert page.locator(".evidence b").nth(0).inner_text() == f"Article {letters[0][-1]}"
    assert page.locator(".evidence q").nth(0).inner_text() == f"Before, {letters[0][-1]} after."
    page.select_option("#reader", "three")
    assert shown.count() == 0
