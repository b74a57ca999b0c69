"""What is kept and what is made anew: the identity of models, adapters, exams, tables and indexes."""

import hashlib
import importlib
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from conftest import write_jsonl
from test_rerank import cross_encoder
from tiny import mostly_slow, tiny_folder

from sciqa.core import adapter_files, cache, storage, tables
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model
from sciqa.corpus.options import CorpusOptions
from sciqa.corpus.passages import build_passages
from sciqa.exam import ExamOptions, open_exam, read_exam
from sciqa.models.load import load_base, load_scorer
from sciqa.predict import PredictOptions, predict
from sciqa.predict.results import _slices
from sciqa.report import ReportOptions, report
from sciqa.retrieval import IndexOptions, RetrieveOptions, build_index, contexts, index, retrieve
from sciqa.retrieval import options as index_options
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.rerank import Reranker

READ = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model"),
    *("source.spm", "qwen.tiktoken", "bpe.codes"),
    *("chat_template.jinja", "additional_chat_templates/rag.jinja", "sciqa.json", "sentence_bert_config.json"),
    *("modules.json", "1_Pooling/config.json", "2_Dense/config.json"),
]
UNREAD = ["README.md", ".gitattributes", "picture.png", "consolidated.safetensors", "optimizer.safetensors"]
UNREAD += ["pytorch_model.bin", "onnx/config.json", "_manifest.json", "LICENSE.txt"]


@pytest.fixture
def model(tmp_path):
    """A folder with all kinds of files that a model can have."""
    folder = tmp_path / "model"
    for name in [*READ, *UNREAD, "model.safetensors", "2_Dense/model.safetensors"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"name": name}))
    return folder


def revision(folder):
    return find_model(str(folder)).revision


@pytest.mark.parametrize("name", [*READ, "model.safetensors", "2_Dense/model.safetensors"])
def test_every_file_that_is_loaded_makes_another_model(model, name):
    before = revision(model)
    (model / name).write_text(json.dumps({"name": "x" * len(name)}))
    changed = revision(model)
    assert changed != before
    (model / name).unlink()
    if name != "model.safetensors":
        assert revision(model) not in (before, changed)


@pytest.mark.parametrize("name", UNREAD)
def test_no_other_file_does(model, name):
    before = revision(model)
    (model / name).write_text("changed")
    assert revision(model) == before
    (model / name).unlink()
    assert revision(shutil.copytree(model, model.parent / "copy")) == before


def test_weights_in_several_files_are_those_of_the_index(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_text("second")
    with pytest.raises(InputError, match=r"none: no weights in .*index\.json"):
        find_model(str(shutil.copytree(model, model.parent / "none", ignore=lambda *_: ["2_Dense"])))
    about = {"weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(about))
    assert [path.name for path in find_model(str(model)).weights][:2] == sorted(about["weight_map"].values())
    before = revision(model)
    (model / "model-00002-of-00002.safetensors").write_text("SECOND")
    assert revision(model) != before
    (model / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"model-00001-of-00002.safetensors: weights that cannot be read"):
        revision(model)


def test_a_gguf_file_is_itself_and_the_template_beside_it(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF one")
    first = find_model(str(tmp_path / "model.gguf")).revision
    (tmp_path / "other.gguf").write_bytes(b"another in this folder")
    (tmp_path / "notes.json").write_text("{}")
    assert find_model(str(tmp_path / "model.gguf")).revision == first
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    second = find_model(str(tmp_path / "model.gguf")).revision
    (tmp_path / "model.gguf").write_bytes(b"GGUF two")
    assert len({first, second, find_model(str(tmp_path / "model.gguf")).revision}) == 3


@pytest.fixture
def reads(monkeypatch, tmp_path):
    """The names of files whose content was read for a hash, with a cache of the machine's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_hashes", {})
    read, digest = [], hashlib.file_digest

    def counted(stream, name):
        read.append(Path(stream.name).name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return read


def test_weights_are_read_once_per_machine(model, reads, monkeypatch):
    monkeypatch.setattr(cache, "TICK", -1)
    first = revision(model)
    assert sorted(reads) == ["model.safetensors"] * 2
    assert revision(model) == first
    cache._hashes.clear()  # as in another process
    assert revision(model) == first
    command = "import sys; from sciqa.core.model_files import find_model; print(find_model(sys.argv[1]).revision)"
    again = subprocess.run([sys.executable, "-c", command, model], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == first
    assert len(reads) == 2
    (model / "model.safetensors").write_text("others now")
    assert revision(model) != first
    assert len(reads) == 3


def test_processes_that_start_together_read_weights_once(model, reads, monkeypatch):
    monkeypatch.setattr(cache, "TICK", -1)
    command = "import sys; from sciqa.core import cache, model_files; cache.TICK = -1; "
    command += "print(model_files.find_model(sys.argv[1]).revision)"
    known = cache._known_hash
    made = []

    def first_made_by_another(*given):
        """The state of a process that has seen no record, and then waits for the lock."""
        if not made:
            made.append(subprocess.run([sys.executable, "-c", command, model], capture_output=True, check=True))
            return None
        return known(*given)

    monkeypatch.setattr(cache, "_known_hash", first_made_by_another)
    assert revision(model) == made[0].stdout.decode().strip()
    assert reads == []


def test_an_adapter_is_read_once_per_machine(model, reads, monkeypatch):
    monkeypatch.setattr(cache, "TICK", -1)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (model / name).write_text(name)
    first = adapter_files.adapter_hash(str(model))
    assert reads == ["adapter_config.json", "adapter_model.safetensors", "sciqa.json", "chat_template.jinja"]
    assert adapter_files.adapter_hash(str(model)) == first
    assert len(reads) == 4
    cache._hashes.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")  # which cannot be written
    assert adapter_files.adapter_hash(str(model)) == first


def test_a_file_that_has_just_been_written_is_read_again(tmp_path, reads):
    """Within a tick of the file system's clock it could be written twice and look the same."""
    for text in ("one", "two"):
        (tmp_path / "file").write_text(text)
        assert cache.cached_file_hash(tmp_path / "file") == hashlib.sha256(text.encode()).hexdigest()


def test_a_snapshot_of_the_hub_is_known_without_reading_its_weights(model, tmp_path, reads):
    local = revision(model)
    before = len(reads)
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    for path in (path for path in model.rglob("*") if path.is_file()):
        digest = hashlib.sha256(path.read_bytes())
        blob = repository / "blobs" / (digest.hexdigest() if path.suffix == ".safetensors" else digest.hexdigest()[:40])
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (tmp_path / "link").symlink_to(snapshot)
    assert revision(snapshot) == revision(tmp_path / "link") == local
    assert len(reads) == before


def test_a_model_that_is_replaced_at_its_address_is_copied_anew(model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = f"file://{model}"
    first = find_model(address)
    assert find_model(address).folder == first.folder != str(model)
    before = first.revision
    (model / "config.json").write_text(json.dumps({"name": "of another model"}))
    again = find_model(address)
    assert again.revision == revision(model) != before
    assert Path(first.folder, "config.json").read_text() != (model / "config.json").read_text()
    assert Path(adapter_files.local_adapter(address), "config.json").read_text() == (model / "config.json").read_text()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "sciqa.json"])
def test_every_file_of_an_adapter_counts(tmp_path, name):
    for each in ("adapter_config.json", "adapter_model.safetensors", "sciqa.json", "README.md"):
        (tmp_path / each).write_text(each)
    before = adapter_files.adapter_hash(str(tmp_path))
    (tmp_path / "README.md").write_text("changed")
    assert adapter_files.adapter_hash(str(tmp_path)) == before
    (tmp_path / name).write_text("changed")
    assert adapter_files.adapter_hash(str(tmp_path)) != before


def test_an_adapter_goes_with_its_base_however_it_was_described(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    formerly = hashlib.sha256()  # of every safetensors file in the folder, as earlier versions stored it
    for path in sorted(model.glob("*.safetensors")):
        formerly.update(hashlib.sha256(path.read_bytes()).digest())
    for about in (
        {"base": "it", "revision": formerly.hexdigest()[:16], "style": {}},
        adapter_files.describe_adapter_files(str(model)),
    ):
        (adapter / "sciqa.json").write_text(json.dumps(about))
        assert adapter_files.check_adapter_files(str(adapter), str(model)) is None
    (model / "README.md").write_text("changed")
    (model / "tokenizer.json").write_text("{}")
    said = adapter_files.check_adapter_files(str(adapter), str(model))
    assert "tokenizer.json" in said
    assert "changed since this adapter was trained" in said
    (model / "model.safetensors").write_text("of another model")
    with pytest.raises(InputError, match="an adapter for the base model"):
        adapter_files.check_adapter_files(str(adapter), str(model))


def test_an_adapter_of_another_program_says_what_it_is_for(model, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text("{}")
    for base, told in ((None, False), ("hub/model", False), ("/elsewhere/model/", False), ("hub/model-chat", True)):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        said = adapter_files.check_adapter_files(str(adapter), str(model))
        assert bool(said) == told
    assert "an adapter for hub/model-chat" in said


QUESTIONS = [
    {"id": str(number), "prompt": f"{prompt}?", "A": "iron", "B": "helium", "C": "a whale", "answer": "B"}
    for number, prompt in enumerate(["Which is a gas", "What fills balloons", "Which is lightest", "Which is noble"])
]


def write_exam(path, rows=QUESTIONS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_an_exam_is_its_rows(tmp_path):
    exams = {"jsonl": write_exam(tmp_path / "exam.jsonl")}
    turned = [dict(reversed(row.items())) for row in QUESTIONS]
    exams["turned"] = write_exam(tmp_path / "turned.jsonl", turned)
    table = read_exam(exams["jsonl"])
    exams["parquet"] = str(tmp_path / "exam.parquet")
    pq.write_table(table, exams["parquet"], compression="snappy", row_group_size=1)
    exams["wider"] = write_exam(tmp_path / "wider.jsonl", [row | {"D": None} for row in QUESTIONS])
    opened = {
        name: open_exam(ExamOptions(exam=path, output=str(tmp_path / name), shard_questions=size))
        for size, (name, path) in enumerate(exams.items(), 1)
    }
    assert len({exam.sha256 for exam in opened.values()}) == 1
    for exam in opened.values():
        read = [row for part in range(exam.shards) for row in exam.read_shard(part)]
        assert [row["id"] for row in read] == [row["id"] for row in QUESTIONS]
    for number, rows in enumerate((QUESTIONS[::-1], [*QUESTIONS[:3], QUESTIONS[3] | {"answer": "A"}], QUESTIONS[:3])):
        path = write_exam(tmp_path / "other.jsonl", rows)
        other = open_exam(ExamOptions(exam=path, output=str(tmp_path / f"other{number}")))
        assert other.sha256 != opened["jsonl"].sha256


@pytest.mark.parametrize(("questions", "most", "each"), [(40, 32, 20), (33, 32, 17), (8, 3, 3), (8, 6, 4), (8, 32, 8)])
def test_shards_are_as_equal_as_can_be(tmp_path, questions, most, each):
    write_jsonl(tmp_path / "exam.jsonl", read_exam("validation").slice(0, questions).to_pylist())
    exam = open_exam(ExamOptions(exam=str(tmp_path / "exam.jsonl"), output=str(tmp_path), shard_questions=most))
    assert exam.shard_questions == each
    assert sum(len(exam.read_shard(number)) for number in range(exam.shards)) == questions
    assert exam.shards == -(-questions // most)


def test_an_exam_written_over_while_it_is_read_is_noticed(tmp_path):
    exam = open_exam(ExamOptions(exam=write_exam(tmp_path / "exam.jsonl"), output=str(tmp_path)))
    others = [row | {"answer": "A"} for row in QUESTIONS]  # the same ids
    other = {"exam": write_exam(tmp_path / "other.jsonl", others), "output": str(tmp_path)}
    with pytest.raises(InputError, match=r"exam\.parquet: the run's exam is another exam than .*other\.jsonl"):
        open_exam(ExamOptions(**other))
    exam.read_shard(0)
    open_exam(ExamOptions(overwrite=True, **other))
    for read in (lambda: exam.read_shard(0), exam.read_ids, lambda: _slices(exam, [])):
        with pytest.raises(InputError, match=r"exam\.parquet: replaced by another exam"):
            read()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama", initializer_range=0.2)


def scores(path):
    return tables.read_table(path, ["id", "probabilities"]).to_pylist()


def change_template(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} So it is{% endfor %}")


def change_config(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))


def change_tokenizer(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    about = json.loads((folder / "tokenizer.json").read_text())
    about["normalizer"] = {"type": "Lowercase"} if not about.get("normalizer") else None
    about["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(about))
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template == template


@pytest.mark.parametrize("change", mostly_slow([change_template, change_config, change_tokenizer], change_template))
def test_a_changed_model_answers_anew(tmp_path, cluster, llama, change):
    folder = shutil.copytree(llama, tmp_path / "model")
    options = {"exam": write_exam(tmp_path / "exam.jsonl"), "model": str(folder), "reader": "closed-book"}
    options |= {"precision": "float32", "prompt": "chat"}
    first = predict(PredictOptions(output=str(tmp_path / "run"), **options))
    before = scores(first.path)
    (folder / "README.md").write_text("about it")
    assert "kept" in predict(PredictOptions(output=str(tmp_path / "run"), **options)).made
    change(folder)
    with pytest.raises(InputError, match=r"answers/closed-book-model: made from other inputs \(model: .*--overwrite"):
        predict(PredictOptions(output=str(tmp_path / "run"), **options))
    assert scores(first.path) == before
    again = predict(PredictOptions(output=str(tmp_path / "run"), overwrite=True, **options))
    assert "kept" not in again.made
    assert scores(again.path) != before
    fresh = predict(PredictOptions(output=str(tmp_path / "fresh"), **options))
    assert scores(again.path) == scores(fresh.path)


@pytest.mark.slow
def test_a_changed_adapter_answers_anew(tmp_path, cluster, llama):
    model, _ = load_base(llama, "causal", torch.float32)
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    options = {"exam": write_exam(tmp_path / "exam.jsonl"), "model": llama, "reader": "closed-book"}
    options |= {"precision": "float32", "adapter": str(tmp_path / "adapter"), "output": str(tmp_path / "run")}
    before = scores(predict(PredictOptions(**options)).path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(InputError, match=r"made from other inputs \(adapter: "):
        predict(PredictOptions(**options))
    again = predict(PredictOptions(overwrite=True, **options))
    assert "kept" not in again.made
    assert scores(again.path) != before


@pytest.fixture
def found(tmp_path, small_index, exam_file):
    """Options of a run with contexts in shards of three questions."""
    options = {"output": str(tmp_path / "run"), "exam": exam_file}
    retrieve(RetrieveOptions(index=f"{small_index}/index", shard_questions=3, **options))
    return options


def test_tables_of_any_shard_size_are_kept_and_read_right(tmp_path, found, small_index):
    exam = tables.read_table(f"{found['output']}/exam.parquet")
    pq.write_table(exam, f"{found['output']}/exam.parquet", compression="gzip", row_group_size=3)
    again = retrieve(RetrieveOptions(index=f"{small_index}/index", shard_questions=32, **found))
    assert again.made.endswith("kept")
    reader = {"reader": "retrieval", "embed_backend": "openvino"}
    predict(PredictOptions(shard_questions=5, name="same", **reader, **found))
    for size in (4, 32):
        made = predict(PredictOptions(shard_questions=size, name=f"by{size}", **reader, **found))
        one, other = scores(made.path), scores(f"{found['output']}/answers/same")
        assert [row["id"] for row in one] == [row["id"] for row in other] == exam["id"].to_pylist()
        for row, same in zip(one, other, strict=True):
            np.testing.assert_allclose(row["probabilities"], same["probabilities"], atol=0.02)
        kept = predict(PredictOptions(shard_questions=7, name=f"by{size}", **reader, **found))
        assert kept.made.endswith("kept")
    blended = predict(PredictOptions(shard_questions=5, blend=("by4", "by32"), **found))
    for row, same in zip(scores(blended.path), scores(f"{found['output']}/answers/by4"), strict=True):
        np.testing.assert_allclose(row["probabilities"], same["probabilities"], atol=0.02)
    page = storage.read_bytes(report(ReportOptions(shard_questions=3, **found)).path).decode()
    assert page.count("gold article") >= 1


def test_a_half_finished_table_goes_on_with_its_own_shards(found, small_index):
    path = Path(found["output"], "contexts")
    whole = tables.read_table(str(path)).to_pylist()
    Path(tables.table_records_path(str(path), tables.MANIFEST)).unlink()
    (path / "00001.parquet").unlink()
    written = (path / "00002.parquet").stat().st_mtime_ns
    again = retrieve(RetrieveOptions(index=f"{small_index}/index", shard_questions=2, **found))
    assert "kept" not in again.made
    rows = tables.read_table(str(path)).to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in whole]
    assert [row["context"] for row in rows] == [row["context"] for row in whole]
    assert (path / "00002.parquet").stat().st_mtime_ns == written
    assert sorted(file.name for file in path.glob("*.parquet")) == ["00000.parquet", "00001.parquet", "00002.parquet"]


def test_a_table_begun_without_a_shard_takes_the_size_asked_for(found, small_index):
    path = Path(found["output"], "contexts")
    Path(tables.table_records_path(str(path), tables.MANIFEST)).unlink()
    for file in ("00000.parquet", "00001.parquet", "00002.parquet"):
        (path / file).unlink()
    retrieve(RetrieveOptions(index=f"{small_index}/index", shard_questions=6, **found))
    assert sorted(file.name for file in path.glob("*.parquet")) == ["00000.parquet", "00001.parquet"]


def test_shards_of_another_exam_are_refused(found):
    path = f"{found['output']}/contexts/00001.parquet"
    tables.write_table(path, tables.read_table(f"{found['output']}/contexts/00000.parquet"))
    with pytest.raises(InputError, match=r"contexts, row 4: the row of question '.*' where that of question '.*' is"):
        predict(PredictOptions(reader="retrieval", **found))
    tables.write_table(path, tables.read_table(path).slice(0, 2))
    with pytest.raises(InputError, match=r"contexts, row \d+: "):
        predict(PredictOptions(reader="retrieval", **found))


def test_a_newer_program_replaces_what_it_computes_otherwise_only_when_told(found, small_index, monkeypatch):
    monkeypatch.setattr(contexts, "CONTEXTS_FORMAT", contexts.CONTEXTS_FORMAT + 1)
    with pytest.raises(
        InputError, match=r"contexts: made by another version of sciqa.*run `sciqa retrieve --overwrite`"
    ):
        predict(PredictOptions(reader="retrieval", **found))
    options = RetrieveOptions(index=f"{small_index}/index", **found)
    with pytest.raises(InputError, match=r"contexts: made by another version of sciqa.*--overwrite to replace it"):
        retrieve(options)
    assert "kept" not in retrieve(replace(options, overwrite=True)).made


def test_an_option_that_came_later_leaves_tables_as_they_are(found, small_index):
    path = f"{found['output']}/_contexts/inputs.json"
    begun = storage.read_json(path)
    del begun["inputs"]["context_order"]  # as a version without that option would have stored it
    storage.write_json(path, begun)
    options = {"index": f"{small_index}/index", **found}
    assert retrieve(RetrieveOptions(**options)).made.endswith("kept")
    other = RetrieveOptions(context_order="nearest", context_sentences=2, **options)
    with pytest.raises(InputError, match=r"contexts: made from other inputs \(context_order: text there, nearest now"):
        retrieve(other)
    assert "kept" not in retrieve(RetrieveOptions(**vars(other) | {"overwrite": True})).made


def change_json(folder, name, **fields):
    path = Path(folder, name)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_pooling(folder):
    about = json.loads(Path(folder, "1_Pooling/config.json").read_text())
    if "pooling_mode" in about:
        change_json(folder, "1_Pooling/config.json", pooling_mode="cls")
    else:
        fields = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
        change_json(folder, "1_Pooling/config.json", **fields)


def change_length(folder):
    change_json(folder, "sentence_bert_config.json", max_seq_length=32)


@pytest.mark.parametrize("change", mostly_slow([change_pooling, change_length], change_pooling))
def test_an_embedder_whose_files_changed_is_another_one(tmp_path, indexed, change):
    change(indexed["embedder"])
    options = IndexOptions(**indexed)
    for step in (build_index, retrieve):
        asked = options if step is build_index else RetrieveOptions(exam="test", **indexed)
        with pytest.raises(InputError, match=r"manifest\.json: this index was built with the embedding model"):
            step(asked)
    other = IndexOptions(index=str(tmp_path / "other"), **indexed)
    assert build_index(other).details["built"] == 2
    before, after = (np.load(Path(each.index, "00000-00000", "vectors.npy")) for each in (options, other))
    same = np.allclose(before, after, atol=1e-3)
    assert same == (change is change_length), "no text is so long that its vector would be another"


def test_an_index_is_kept_when_the_same_passages_are_written_anew(tmp_path, indexed):
    shutil.rmtree(tmp_path / "run" / "passages")
    articles = tmp_path / "articles.jsonl"
    articles.rename(tmp_path / "moved.jsonl")
    corpus = CorpusOptions(corpus=(str(tmp_path / "moved.jsonl"),), shard_passages=2, **indexed)
    build_passages(corpus)
    for path in Path(corpus.passages).glob("*.parquet"):  # as another version of pyarrow would write it
        pq.write_table(pq.read_table(path), path, compression="snappy")
    about = storage.read_json(tables.table_records_path(corpus.passages, tables.MANIFEST))
    for shard in about["shards"]:
        shard["sha256"] = hashlib.sha256(Path(corpus.passages, f"{shard['name']}.parquet").read_bytes()).hexdigest()
    storage.write_json(tables.table_records_path(corpus.passages, tables.MANIFEST), about)
    assert build_index(IndexOptions(**indexed)).details == {"built": 0, "kept": 2}


def test_a_shard_of_another_factory_is_not_taken_for_a_finished_one(indexed):
    """A run that was killed after its factory was set, and before any shard was built by it."""
    options = IndexOptions(factory="HNSW4", **indexed)
    passages = tables.read_table_manifest(options.passages, "corpus")
    index.train_index_factory(options, passages["shards"], options.building(options.embedding()))
    assert build_index(options).details == {"built": 2, "kept": 0}
    assert build_index(options).details == {"built": 0, "kept": 2}


def test_a_newer_program_embeds_anew_only_when_told(indexed, monkeypatch):
    for module in (index_options, index):
        monkeypatch.setattr(module, "INDEX_FORMAT", index.INDEX_FORMAT + 1)
    with pytest.raises(
        InputError, match=r"manifest\.json: made by another version of sciqa.*run `sciqa index --overwrite`"
    ):
        retrieve(RetrieveOptions(exam="test", **indexed))
    with pytest.raises(InputError, match=r"manifest\.json: made by another version of sciqa.*--overwrite to build"):
        build_index(IndexOptions(**indexed))
    assert build_index(IndexOptions(overwrite=True, **indexed)).details == {"built": 2, "kept": 0}
    assert build_index(IndexOptions(**indexed)).details == {"built": 0, "kept": 2}


def test_passages_follow_from_the_tokenizer_and_not_from_the_weights(tmp_path, indexed):
    corpus = CorpusOptions(corpus=(str(tmp_path / "articles.jsonl"),), shard_passages=2, **indexed)
    build_passages(replace(corpus, overwrite=True))
    change_pooling(indexed["embedder"])
    assert build_passages(corpus).made.endswith("kept")
    change_json(indexed["embedder"], "tokenizer.json", version="1.0", truncation=None, padding=None, added_tokens=[])
    with pytest.raises(InputError, match=r"passages: made from other inputs \(tokenizer: "):
        build_passages(corpus)
    assert not build_passages(replace(corpus, overwrite=True)).made.endswith("kept")


def copied(folder, name, file="config.json"):
    """A copy of a model's folder in which a file has changed."""
    made = Path(shutil.copytree(folder, Path(folder).parent / name))
    about = json.loads((made / file).read_text())
    (made / file).write_text(json.dumps(about | {"changed": 1}))
    return str(made)


def test_a_worker_refuses_another_model_than_the_command_has(tmp_path, indexed, monkeypatch):
    """As of a node with an older copy of the same name."""
    model = tiny_folder(tmp_path / "llama", "llama")
    options = PredictOptions(model=model, reader="closed-book", **indexed)
    reader, embed = options.reader_arguments("cpu", 1), options.embed_on("cpu", 1) | {"backend": "torch"}
    plain = {name: reader[name] for name in ("name", "revision", "threads")}
    other = rf": other files on {socket.gethostname()} than where the command was given"
    for load, given, name in (
        (load_scorer, plain, "name"),
        (load_embedder, embed, "model"),
        (Reranker, {"name": cross_encoder(tmp_path / "pairs"), "device": "cpu"}, "name"),
    ):
        recorded = {"revision": find_model(given[name]).revision}
        load(**given | recorded)
        with pytest.raises(InputError, match=f"{given[name]}-older{other}"):
            load(**given | recorded | {name: copied(given[name], f"{Path(given[name]).name}-older")})


def test_a_worker_refuses_another_adapter_than_the_command_has(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    digest = adapter_files.adapter_hash(str(folder))
    assert adapter_files.local_adapter(str(folder), digest) == str(folder)
    (folder / "adapter_model.safetensors").write_text("other")
    with pytest.raises(InputError, match="adapter: other files on"):
        adapter_files.local_adapter(str(folder), digest)


def test_stages_tell_their_workers_which_models_are_on_record(tmp_path, indexed, monkeypatch):
    asked = {}

    def run(options, worker, arguments, parts, pool):
        asked[worker.__name__] = arguments
        raise InputError("asked")

    def mapped(worker, arguments, pool):
        run(None, worker, arguments, None, pool)

    monkeypatch.setattr("sciqa.core.model_workers.run_model_workers", run)
    monkeypatch.setattr(importlib.import_module("sciqa.predict.predict"), "run_model_workers", run)
    monkeypatch.setattr("sciqa.retrieval.index.model_worker_arguments", mapped)
    write_jsonl(
        tmp_path / "exam.jsonl", [{"id": "1", "prompt": "Which rusts?", "A": "iron", "B": "helium", "answer": "A"}]
    )
    given = {"exam": str(tmp_path / "exam.jsonl"), "rerank": cross_encoder(tmp_path / "pairs")} | indexed
    model = tiny_folder(tmp_path / "llama", "llama")
    for step in (
        lambda: retrieve(RetrieveOptions(**given)),
        lambda: build_index(IndexOptions(index=str(tmp_path / "other"), **indexed)),
        lambda: predict(PredictOptions(reader="closed-book", model=model, exam=given["exam"], **indexed)),
    ):
        with pytest.raises(InputError, match="asked"):
            step()
    revisions = {name: find_model(name).revision for name in (indexed["embedder"], given["rerank"], model)}
    assert asked["FindContexts"]["rerank"] == revisions[given["rerank"]]
    assert {asked[name]["embed"]["revision"] for name in ("FindContexts", "EmbedIndexShard")} == {
        revisions[indexed["embedder"]]
    }
    assert asked["PredictShard"]["work"].arguments["revision"] == revisions[model]
