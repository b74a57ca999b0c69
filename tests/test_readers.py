"""What readers make of each other's answers and of the order of options: blends, cascades, rotations, resuming."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from conftest import QUESTIONS
from tiny import tiny_folder

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam import read_exam
from sciqa.exam.answer_options import rotate_answer_options
from sciqa.exam.finished_answers import finished_answers_path
from sciqa.predict import PredictOptions, predict, uncertainty
from sciqa.predict.blend import blend_weights
from sciqa.predict.readers import ModelReader
from sciqa.predict.scored_answers import ANSWERS_FORMAT, scored_answer_inputs
from sciqa.predict.work import check_work_fit
from sciqa.retrieval import RetrieveOptions, retrieve


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("llama"), "llama", initializer_range=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_index, exam_file):
    """A run folder with contexts and the answers of the retrieval reader."""
    output = str(tmp_path_factory.mktemp("run"))
    options = {"output": output, "exam": exam_file, "shard_questions": 5}
    retrieve(RetrieveOptions(**options, index=f"{small_index}/index"))
    predict(PredictOptions(**options, reader="retrieval"))
    return options


def answers(run, name):
    return tables.read_table(f"{run['output']}/answers/{name}").to_pylist()


def test_a_submission_in_the_competitions_form(run):
    path = Path(run["output"], "submissions", "retrieval.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"id": row["id"], "prediction": row["prediction"]} for row in answers(run, "retrieval")]


def test_rotations_average_over_the_orders_of_the_options(run, llama):
    style = {"completion": "letter"}
    common = {"tokens_per_batch": 2048, "style": style, "name": llama, "precision": "float32"}
    question = read_exam("direct-validation").to_pylist()[0]
    plain, turned = ModelReader(rotations=1, **common), ModelReader(rotations=4, **common)
    found = [({"context": "Some context."},)]
    each = []
    for by in range(4):
        scores = plain.score([rotate_answer_options(question, by)], found)[0].scores
        each.append(np.roll(np.exp(scores) / np.exp(scores).sum(), -by))
    assert np.ptp(np.array(each), axis=0).max() > 0.01, "this reader does favour some letters"
    once = turned.score([question], found)[0].scores
    np.testing.assert_allclose(np.exp(once) / np.exp(once).sum(), np.mean(each, axis=0), atol=1e-5)
    # So the order in which the options are given changes nothing any more.
    again = turned.score([rotate_answer_options(question, 1)], found)[0].scores
    np.testing.assert_allclose(np.roll(again, -1), once, atol=1e-4)
    with pytest.raises(InputError, match=r"--rotations 4: .* order changes nothing"):
        predict(PredictOptions(**run, model=llama, rotations=4))


def test_rotated_questions_keep_their_right_option():
    question = read_exam("direct-validation").to_pylist()[0]
    for by in range(4):
        turned = rotate_answer_options(question, by)
        assert turned[turned["answer"]] == question[question["answer"]]
    assert rotate_answer_options(question | {"answer": None}, 1)["answer"] is None


def test_doubt_is_the_second_option_beside_the_first_or_entropy():
    assert uncertainty.DOUBT["margin"]([0.2, 0.5, 0.3]) == pytest.approx(0.6)
    assert uncertainty.entropy([0.25] * 4) == pytest.approx(1)
    sure, torn = [0.5, 0.2, 0.15, 0.15], [0.45, 0.45, 0.05, 0.05]
    assert uncertainty.DOUBT["margin"](sure) < uncertainty.DOUBT["margin"](torn)
    assert uncertainty.DOUBT["entropy"](sure) > uncertainty.DOUBT["entropy"](torn)


@pytest.mark.parametrize("by", ["margin", "entropy"])
def test_a_cascade_reads_what_is_least_certain(run, llama, by):
    strong = {"model": llama, "precision": "float32"}  # what is read again is batched otherwise
    predict(PredictOptions(**run, **strong, name="strong"))
    cascade = {"cascade": "retrieval", "cascade_share": 0.25, "cascade_by": by}
    summary = predict(PredictOptions(**run, **strong, **cascade, name=by))
    assert f"{QUESTIONS // 4} of them read" in summary.made
    first, strong, both = (answers(run, name) for name in ("retrieval", "strong", by))
    order = sorted(range(len(first)), key=lambda number: -uncertainty.DOUBT[by](first[number]["probabilities"]))
    for number, row in enumerate(both):
        expected = strong if number in order[: QUESTIONS // 4] else first
        assert row["ranking"] == expected[number]["ranking"]
        np.testing.assert_allclose(row["probabilities"], expected[number]["probabilities"], atol=1e-5)
    seconds = [tables.read_table_manifest(f"{run['output']}/answers/{n}", "")["seconds"] for n in ("retrieval", by)]
    assert summary.details["seconds"] == seconds[1] > seconds[0]
    with pytest.raises(InputError, match="absent"):
        predict(PredictOptions(**run, model=llama, cascade="absent"))


def test_a_blend_is_the_log_linear_pool(run, llama):
    predict(PredictOptions(**run, model=llama, reader="closed-book", name="closed"))
    blend = PredictOptions(**run, blend=("retrieval", "closed"))
    even = predict(blend)
    fitted = predict(PredictOptions(**run, blend=blend.blend, blend_fit=run["output"], name="fitted"))
    assert fitted.details["log_loss"] <= even.details["log_loss"] + 1e-6
    assert f"cross-validated on {QUESTIONS} questions: MAP@3" in fitted.made
    assert "; fitted on this exam itself, " in fitted.made
    for first, second, pooled in zip(*(answers(run, name) for name in (*blend.blend, "blend")), strict=True):
        product = np.sqrt(np.array(first["probabilities"]) * second["probabilities"])
        np.testing.assert_allclose(pooled["probabilities"], product / product.sum(), atol=1e-9)
    with pytest.raises(InputError, match="absent"):
        predict(PredictOptions(**run, blend=("absent",)))


def write_table(output, name, score=0.5, **inputs):
    folder = finished_answers_path(output, name)
    tables.write_table(tables.table_part_path(folder, 0), pa.table({"id": ["1"], "scores": [[score, 0.1]]}))
    tables.finish_table(folder, {"format": ANSWERS_FORMAT, "inputs": inputs, "rows": 1})


def test_a_blend_is_fitted_on_answers_to_one_exam(tmp_path):
    output = str(tmp_path)
    for name, exam in (("one", "a"), ("two", "a"), ("other", "b")):
        write_table(output, name, exam=exam)
    found = scored_answer_inputs(output, ("one", "two"))
    assert found.keys() == {"one", "two"}
    with pytest.raises(InputError, match=r"answers/other: answers to another exam than those of one, the same exam"):
        scored_answer_inputs(output, ("one", "two", "other"))
    write_table(output, "two", score=0.7, exam="a")  # drawn anew
    again = scored_answer_inputs(output, ("one", "two"))
    assert (again["one"] == found["one"], again["two"] == found["two"]) == (True, False)


def test_a_blend_is_fitted_on_answers_of_the_same_readers(tmp_path):
    options = PredictOptions(output=str(tmp_path / "here"), blend=("one",), blend_fit=str(tmp_path / "there"))
    write_table(options.output, "one", exam="a", completion="text", contexts={"exam": "a"}, server="http://here")
    write_table(options.blend_fit, "one", exam="b", completion="text", contexts={"exam": "b"}, server="http://there")
    check_work_fit(options)
    write_table(options.blend_fit, "one", exam="b", completion="letter")
    with pytest.raises(InputError, match=r"there/.*/one: .* than .*here/.*: completion 'letter' there, 'text' here"):
        check_work_fit(options)


def test_one_reader_in_a_blend_is_calibrated_by_its_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 4))
    golds = np.array([rng.choice(4, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    overconfident = [row[None] - np.log(np.exp(row).sum()) for row in 3 * logits]
    (weight,) = blend_weights(overconfident, golds)
    assert 1 / weight == pytest.approx(3, rel=0.1), "the temperature by which it was made too sure"
    useless = [np.vstack([row, rng.normal(size=4)]) for row in overconfident]
    weights = blend_weights(useless, golds)
    assert weights[1] == pytest.approx(0, abs=0.05)


def test_contexts_cut_to_the_models_limit_are_counted(run, llama, tmp_path):
    short = shutil.copytree(llama, tmp_path / "short")
    config = storage.read_json(str(short / "config.json"))
    storage.write_json(str(short / "config.json"), config | {"max_position_embeddings": 140})
    summary = predict(PredictOptions(**run, model=str(short), name="short"))
    cut = sum(row["context_cut"] for row in answers(run, "short"))
    assert 0 < cut < 12
    assert f"{cut} contexts cut to the model's limit" in summary.made
    assert not any(row["context_cut"] for row in answers(run, "retrieval"))


def test_corrupt_weights_and_missing_tokenizers_are_refused(run, llama, tmp_path):
    broken = shutil.copytree(llama, tmp_path / "broken")
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(InputError, match="broken: not a whole causal model"):
        predict(PredictOptions(**run, model=str(broken)))
    mute = shutil.copytree(llama, tmp_path / "mute", ignore=shutil.ignore_patterns("*token*", "*.jinja"))
    with pytest.raises(InputError, match=r"mute: .* tokenizer"):
        predict(PredictOptions(**run, model=str(mute)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cluster):
    """Closed-book answers to the validation split in 21 shards."""
    options = {"output": str(tmp_path_factory.mktemp("undisturbed")), "exam": "direct-validation", "shard_questions": 6}
    predict(PredictOptions(**options, reader="closed-book"))
    return answers(options, "closed-book")


def finished(output):
    return {path: path.stat().st_mtime_ns for path in Path(output).glob("answers/closed-book/*.parquet")}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, undisturbed):
    command = [sys.executable, "-m", "sciqa", "predict", "--output", str(tmp_path), "--exam", "direct-validation"]
    command += ["--reader", "closed-book", "--shard-questions", "6", "--num-cpus", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not finished(tmp_path):
            assert driver.poll() is None
            time.sleep(0.02)
        driver.send_signal(signal.SIGKILL)
    kept = finished(tmp_path)
    assert 0 < len(kept) < 21
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    # A worker may have finished its shard after the driver was gone.
    assert len(kept) <= int(re.search(r"(\d+) of 21 shards kept", again.stdout)[1]) < 21
    assert kept.items() <= finished(tmp_path).items()
    assert answers({"output": tmp_path}, "closed-book") == undisturbed


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path, cluster, undisturbed):
    killed = []

    def kill() -> None:
        while not finished(tmp_path):
            time.sleep(0.02)
        for process in psutil.Process(os.getpid()).children(recursive=True):
            if "PredictShard" in " ".join(process.cmdline()):
                killed.append((len(finished(tmp_path)), process.kill()))
                return

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    options = {"output": str(tmp_path), "exam": "direct-validation", "shard_questions": 6}
    predict(PredictOptions(**options, reader="closed-book"))
    thread.join(timeout=10)
    assert killed[0][0] < 21
    assert answers(options, "closed-book") == undisturbed
    # Another run, killed after its last shard and before its manifest.
    (tmp_path / "answers" / "_closed-book" / tables.MANIFEST).unlink()
    predict(PredictOptions(**options, reader="closed-book", num_workers=2))
    assert answers({"output": tmp_path}, "closed-book") == undisturbed
