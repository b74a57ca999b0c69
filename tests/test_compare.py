"""Readers compared: figures, paired tests and their correction, which readers are taken, and what is refused."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from test_report import HOSTILE, make_run

from sciqa import cli
from sciqa.core import hashes, storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.metrics import average_precision_at_3
from sciqa.predict.results import METRICS
from sciqa.report.compare_readers import (
    CompareOptions,
    compare_readers,
    comparison_rows,
    holm,
    read_compared_readers,
    sign_flip_p_value,
)

QUESTIONS = 60
ROWS = [
    {
        "id": f"q{n}",
        "prompt": f"Which is {n}?",
        "A": f"a{n}",
        "B": f"b{n}",
        "C": f"c{n}",
        "D": f"d{n}",
        "answer": "ABCD"[n % 4],
    }
    for n in range(QUESTIONS)
]
DRAWN = np.random.default_rng(0).normal(size=(4, QUESTIONS, 4)).round(1)
RIGHT = np.eye(4)[np.arange(QUESTIONS) % 4]
#: By name, scores of all options and more of what the answers follow from; the best first.
READERS = {
    "good": ((DRAWN[0] + 2 * RIGHT).round(1), {"model": "a" * 40, "completion": "letter", "nf4": False}),
    "fair": ((DRAWN[0] + RIGHT).round(1), {"model": "a" * 40, "completion": "text"}),
    "weak": (
        (DRAWN[1] + 0.5 * RIGHT).round(1),
        {"model": "b" * 40, "completion": "text", "template": "0123456789abcdef"},
    ),
    "longest": (DRAWN[2], {"baseline": "longest"}),
}


def write_run(folder, readers=READERS, rows=ROWS):
    return make_run(
        folder, {name: (scores.tolist(), more) for name, (scores, more) in readers.items()}, rows, ["-"] * len(rows)
    )


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A run of all readers, and one of two of them; do not write to them."""
    root = tmp_path_factory.mktemp("runs")
    for name, readers in (("one", READERS), ("two", {name: READERS[name] for name in ("fair", "longest")})):
        (root / name).mkdir()
        write_run(root / name, readers)
    return root


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "comparison-here")


def compared(output, *runs, **options):
    path = compare_readers(CompareOptions(runs=tuple(map(str, runs)), output=output, **options)).path
    return tables.read_table(path).to_pylist()


def precisions(scores):
    """AP@3 of scores without the program's own ranking: the mean over all orders of tied options."""
    ranks = (scores > scores[RIGHT == 1][:, None]).sum(1) + 1
    tied = (scores == scores[RIGHT == 1][:, None]).sum(1)
    return average_precision_at_3(ranks, tied)


def test_figures_are_those_of_the_metrics_table_and_the_best_is_first(made_once, output):
    rows = compared(output, made_once / "one/run")
    assert [row["reader"] for row in rows] == ["good", "fair", "weak", "longest"]
    for row in rows:
        (metrics,) = [
            r
            for r in tables.read_table(f"{row['run']}/metrics/{row['name']}.parquet").to_pylist()
            if r["slice"] == "all"
        ]
        shared = (
            "questions",
            "ties",
            "map_at_3",
            "map_at_3_low",
            "map_at_3_high",
            "accuracy",
            "accuracy_low",
            "seconds",
        )
        assert [row[name] for name in shared] == [metrics[name] for name in shared]
    assert [row["reference"] for row in rows] == [True, False, False, False]
    assert [rows[0][name] for name in ("difference", "difference_low", "p_value", "p_holm")] == [None] * 4


def test_differences_are_those_of_a_bootstrap_over_questions(made_once, output):
    best, *others = compared(output, made_once / "one/run")
    drawn = np.random.default_rng(1).integers(0, QUESTIONS, (20_000, QUESTIONS))
    for row in others:
        differences = precisions(READERS[row["reader"]][0]) - precisions(READERS[best["reader"]][0])
        low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
        assert row["difference"] == pytest.approx(differences.mean(), abs=1e-12)
        assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high), abs=0.01)
        assert row["difference_low"] < row["difference"] < row["difference_high"]


def test_p_values_are_those_of_scipy_and_of_all_signs():
    rng = np.random.default_rng(2)
    for size, shift in ((10, 0.0), (12, 0.2), (9, -0.4)):
        differences = rng.choice([-1, -1 / 2, -1 / 3, 0, 1 / 6, 1 / 2, 2 / 3], size) + rng.choice([0, shift], size)
        sums = np.array([np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=size)])
        exact = (np.abs(sums) >= abs(differences.sum()) - 1e-9).mean()
        assert sign_flip_p_value(differences) == pytest.approx(exact, abs=0.015)
        pair = (differences, np.zeros(size))
        by_scipy = stats.permutation_test(
            pair, lambda a, b: (a - b).mean(), permutation_type="samples", n_resamples=10_000
        )
        assert sign_flip_p_value(differences) == pytest.approx(by_scipy.pvalue, abs=0.015)
    assert sign_flip_p_value(np.zeros(8)) == 1
    assert sign_flip_p_value(np.ones(60)) == 1 / 10_001


def test_p_values_depend_on_neither_the_order_of_questions_nor_that_of_the_readers():
    differences = precisions(READERS["fair"][0]) - precisions(READERS["weak"][0])
    shuffled = np.random.default_rng(3).permutation(differences)
    assert sign_flip_p_value(differences) == sign_flip_p_value(shuffled) == sign_flip_p_value(-differences)


def test_equal_readers_are_seldom_called_different():
    rng = np.random.default_rng(4)
    values = [sign_flip_p_value(rng.choice([-1, 0, 0.5, 1, -0.5], 40)) for _ in range(300)]
    assert 0.01 < np.mean(np.array(values) < 0.05) < 0.09


def test_holm_multiplies_in_rising_order_and_never_falls():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.7, 0.6])).tolist() == [1, 1]
    assert holm(np.array([0.2])).tolist() == [0.2]


def test_without_a_baseline_every_pair_counts_and_with_one_the_others_do(made_once, output, tmp_path):
    run = made_once / "one/run"
    rows = compared(output, run)
    assert {row["comparisons"] for row in rows} == {6}
    each = {name: precisions(scores) for name, (scores, _) in READERS.items()}
    pairs = list(itertools.combinations(READERS, 2))
    adjusted = dict(zip(pairs, holm(np.array([sign_flip_p_value(each[a] - each[b]) for a, b in pairs])), strict=True))
    assert [row["p_holm"] for row in rows[1:]] == [adjusted["good", row["reader"]] for row in rows[1:]]
    based = compared(str(tmp_path / "based"), run, baseline="weak")
    assert [row["reader"] for row in based] == [row["reader"] for row in rows], "in the order of MAP@3 still"
    assert [row["reader"] for row in based if row["reference"]] == ["weak"]
    assert {row["comparisons"] for row in based} == {3}
    others = [row for row in based if not row["reference"]]
    assert [row["p_holm"] for row in others] == holm(np.array([row["p_value"] for row in others])).tolist()
    assert others[0]["difference"] == pytest.approx((each["good"] - each["weak"]).mean())


def test_the_order_of_runs_and_names_changes_nothing_and_names_tell_runs_apart(made_once, output, tmp_path):
    runs = [made_once / "one/run", made_once / "two/run"]
    rows = compared(output, *runs, names=("good", "longest", "fair"))
    assert rows == compared(str(tmp_path / "turned"), *reversed(runs), names=("fair", "longest", "good"))
    assert [row["reader"] for row in rows] == [
        "good",
        "one/run/fair",
        "two/run/fair",
        "one/run/longest",
        "two/run/longest",
    ]
    assert [row["run"] for row in rows] == [str(runs[n]) for n in (0, 0, 1, 0, 1)]
    assert (rows[2]["difference"], rows[2]["p_value"]) == (rows[1]["difference"], rows[1]["p_value"])
    based = compared(str(tmp_path / "based"), *runs, names=("fair",), baseline="two/run/fair")
    assert (based[0]["difference"], based[0]["p_value"], based[0]["p_holm"]) == (0, 1, 1)


def test_the_same_inputs_give_the_same_file(made_once, output):
    compared(output, made_once / "one/run")
    written = Path(output, "comparison/00000.parquet").read_bytes()
    compared(output, made_once / "one/run")
    assert Path(output, "comparison/00000.parquet").read_bytes() == written


def test_options_are_named_in_which_readers_differ(made_once):
    readers = read_compared_readers((str(made_once / "one/run"),), ())
    rows, same = comparison_rows(readers)
    options = {row["reader"]: row["options"] for row in rows}
    assert options == {
        "good": {"completion": "letter", "model": f"some/model ({'a' * 12})"},
        "fair": {"completion": "text", "model": f"some/model ({'a' * 12})"},
        "weak": {"completion": "text", "model": f"some/model ({'b' * 12})", "template": "0123456789abcdef"},
        "longest": {"baseline": "longest"},
    }
    assert dict(same) == {"format": str(readers["good"].inputs["format"])}


def test_options_of_contexts_count_among_readers_that_have_contexts(tmp_path):
    from sciqa.models.prompt_template import built_in_template

    given = {
        "model": "m",
        "contexts": {"k": 3, "prefix": "a"},
        "template": hashes.fingerprint(built_in_template("arc").text),
    }
    readers = {"one": (DRAWN[0], given), "two": (DRAWN[1], given | {"shots": 2}), "three": (DRAWN[2], {"model": "m"})}
    rows, same = comparison_rows(read_compared_readers((write_run(tmp_path, readers),), ()))
    assert {row["reader"]: row["options"] for row in rows} == {
        "one": {"contexts": "yes", "template": "arc"},
        "two": {"contexts": "yes", "shots": "2", "template": "arc"},
        "three": {},
    }
    assert {"contexts: context_passages", "format", "model"} <= dict(same).keys()


def test_no_reader_takes_the_place_of_the_names_of_options(tmp_path, output):
    readers = {"option": (DRAWN[0], {"answers": {"a": "1", "A": "2"}}), "b": (DRAWN[1], {"answers": {"a": "3"}})}
    details = compare_readers(CompareOptions(runs=(write_run(tmp_path, readers),), output=output)).details
    printed = details["Options in which the readers differ"]
    assert printed == [
        {"option / reader": "answers: A", "option": "2", "b": "–"},
        {"option / reader": "answers: a", "option": "1", "b": "3"},
    ]
    page = Path(output, "comparison.html").read_text(encoding="utf-8")
    assert all(f"<td>{row['option / reader']}</td>" in page for row in printed)


def test_what_answers_took_is_copied_from_the_metrics(tmp_path, output, capsys):
    run = write_run(tmp_path, {name: READERS[name] for name in ("good", "weak")})
    path = f"{run}/metrics/weak.parquet"
    figures = {"tokens_in": 12_345, "tokens_out": 150, "no_letter": 3, "cost": 0.25, "seconds": 7.5}
    rows = [row | figures for row in tables.read_table(path).to_pylist()]
    tables.write_table(path, pa.Table.from_pylist(rows, schema=METRICS))
    cli.main(["compare", run, "--output", output])
    written = {row["reader"]: row for row in tables.read_table(f"{output}/comparison").to_pylist()}
    assert {name: written["weak"][name] for name in figures} == figures
    assert written["good"]["tokens_in"] is None
    shown = capsys.readouterr().out
    assert "12,345" in shown
    assert "1 comparison (every pair, since the best is chosen by the same figures)" in shown
    assert f"{written['weak']['difference']:+.3f} [{written['weak']['difference_low']:+.3f}," in shown
    page = Path(output, "comparison.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("12,345", "0.2500", "7.5", f"{written['weak']['p_holm']:.4f}", "letter"))


def test_a_page_shows_names_as_text(tmp_path, output):
    name = HOSTILE.replace("/", "")
    compared(output, write_run(tmp_path, {name: READERS["good"], "weak": READERS["weak"]}))
    page = Path(output, "comparison.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;window.broken" in page


def change_exam(run):
    """Record another exam for the answers of a reader."""
    path = tables.table_records_path(f"{run}/answers/fair", tables.MANIFEST)
    manifest = storage.read_json(path)
    storage.write_json(path, manifest | {"inputs": manifest["inputs"] | {"exam": "0" * 64}})


def drop_row(run):
    path = sorted(Path(run, "answers/fair").glob("*.parquet"))[0]
    tables.write_table(str(path), tables.read_table(str(path)).slice(1))


@pytest.mark.parametrize(
    ("change", "arguments", "parts"),
    [
        (lambda run: None, ["absent"], ["absent: no answers in this folder", "--output"]),
        (lambda run: None, ["run", "--names", "longest", "none"], ["no reader 'none' in", "fair, longest"]),
        (lambda run: None, ["run", "--names", "none"], ["run: none of the readers none", "fair, longest"]),
        (lambda run: None, ["run", "--names", "longest"], ["one reader, longest, at least two expected"]),
        (lambda run: None, ["run", "run"], ["run: given twice"]),
        (lambda run: None, ["--names", "fair", "a/run"], ["--names: 'a/run' given", "folders of runs before --names"]),
        (lambda run: None, ["run", "--baseline", "none"], ["--baseline: no reader 'none'", "fair, longest"]),
        (
            lambda run: Path(run, "answers/_fair/manifest.json").unlink(),
            ["run"],
            ["answers/fair: not there, or not finished"],
        ),
        (change_exam, ["run"], ["answers/longest: answers to another exam than those in", "answers/fair"]),
        (drop_row, ["run"], ["answers/longest: rows of other questions than in", "answers/fair"]),
        (lambda run: Path(run, "metrics/longest.parquet").unlink(), ["run"], ["metrics/longest.parquet: no such file"]),
    ],
    ids=[
        "no answers",
        "no name",
        "no name at all",
        "one reader",
        "twice",
        "a run after names",
        "baseline",
        "unfinished",
        "exam",
        "row",
        "metrics",
    ],
)
def test_bad_input_exits_2_and_writes_nothing(made_once, tmp_path, monkeypatch, capsys, change, arguments, parts):
    change(str(shutil.copytree(made_once / "two/run", tmp_path / "run")))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", *arguments, "--output", "there"])
    said = capsys.readouterr().err.splitlines()
    assert (ended.value.code, len(said)) == (2, 2)
    assert all(part in said[1] for part in parts), said[1]
    assert not Path("there").exists()


def test_an_exam_without_answers_has_nothing_to_compare(tmp_path, output):
    run = write_run(tmp_path, rows=[row | {"answer": None} for row in ROWS])
    with pytest.raises(InputError, match=r"answers/fair: no question of this exam has a known answer"):
        compared(output, run)


def test_another_comparison_is_replaced_only_where_that_is_asked_for(made_once, output):
    run = made_once / "one/run"
    compared(output, run, names=("good", "weak"))
    before = {
        path: path.read_bytes() for path in Path(output).rglob("*.*") if path.is_file() and path.suffix != ".lock"
    }
    with pytest.raises(InputError, match=r"comparison: made from other inputs \(readers: fair.*--overwrite"):
        compared(output, run)
    assert {path: path.read_bytes() for path in before} == before
    assert len(compared(output, run, overwrite=True)) == 4


def test_runs_in_a_bucket_are_compared_there(made_once, s3, tmp_path):
    bucket = f"s3://bucket/{tmp_path.name}"
    storage.copy_files(str(made_once / "two/run"), f"{bucket}/run")
    rows = compared(f"{bucket}/run", f"{bucket}/run/")
    local = compared(str(tmp_path / "local"), made_once / "two/run")
    assert [row | {"run": ""} for row in rows] == [row | {"run": ""} for row in local]
    assert b"Comparison of 2 readers" in storage.read_bytes(f"{bucket}/run/comparison.html")


def test_the_step_needs_neither_ray_nor_pytorch(made_once, output):
    code = "import sys; from sciqa.cli import main; main(sys.argv[1:])\n"
    code += "assert not {'ray', 'torch', 'transformers'} & sys.modules.keys()"
    command = [sys.executable, "-c", code, "compare", str(made_once / "one/run"), "--output", output]
    subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
