"""Vectors are the embedding model's own, whatever computes them, or there is an error."""

import json
import multiprocessing
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Normalize, Router, StaticEmbedding
from tiny import mostly_slow
from tiny_embedders import MINILM, tiny_embedder, tiny_tokenizer
from tokenizers import Tokenizer

from sciqa.core import cache, tables
from sciqa.core.errors import InputError, QuestionError
from sciqa.core.model_files import find_model, model_file_sequence_length
from sciqa.corpus.chunking import titled_chunk
from sciqa.corpus.options import ChunkingOptions, CorpusOptions
from sciqa.corpus.passages import build_passages, check_passage_tokens
from sciqa.predict.readers import RetrievalReader
from sciqa.retrieval import IndexOptions, build_index
from sciqa.retrieval.embedder import OpenVinoEmbedder, TorchEmbedder
from sciqa.retrieval.index_shards import EmbedIndexShard
from sciqa.retrieval.load_embedder import load_embedder
from sciqa.retrieval.openvino_check import check_openvino
from sciqa.retrieval.queries import QueryRanker
from sciqa.retrieval.query_limit import QueryLimit
from sciqa.run import RunIndexOptions

BACKENDS = ("openvino", "torch")
TEXTS = [
    "Water",
    "Plants make sugar from light, water and carbon dioxide.",
    "Die Größe Σ(x²) ≈ 3 µm — 光合作用",
    " ".join(f"{number} cells divide Again" for number in range(120)),
    "It rains",
    "?",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def own_vectors(folder, texts, longest=None, **settings):
    """Return unit vectors as sentence-transformers computes them in float32, one text at a time, without a prompt."""
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})
    if longest:
        model.max_seq_length = longest
    if getattr(model.tokenizer, "pad_token", "") is None:
        model.tokenizer.pad_token = "[SEP]"  # which it would not even embed one text without
    return model.encode(texts, batch_size=1, normalize_embeddings=True, **{"prompt": ""} | settings)


def least_cosine(found, expected):
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-4)
    return (found * expected).sum(axis=1).min()


def assert_own(folder, longest=None):
    """Both backends give the model's own vectors, together and one at a time; return the class of the first."""
    expected = own_vectors(folder, TEXTS, longest)
    for backend in BACKENDS:
        embedder = load_embedder(folder, 2, backend)
        together = embedder.encode(TEXTS)
        assert least_cosine(together, expected) > 0.99
        alone = np.concatenate([embedder.encode([text]) for text in reversed(TEXTS)])[::-1]
        assert least_cosine(together, alone) > 0.999
    return type(load_embedder(folder, 2))


@pytest.mark.parametrize(
    ("family", "pooling", "longest", "kind"),
    [
        ("bert", "cls", None, OpenVinoEmbedder),
        pytest.param("mpnet", "mean", 94, OpenVinoEmbedder, marks=pytest.mark.slow),
        pytest.param("modernbert", "mean", None, OpenVinoEmbedder, marks=pytest.mark.slow),
        ("gemma3", "mean", None, TorchEmbedder),
        pytest.param("bert", "mean", None, OpenVinoEmbedder, marks=pytest.mark.slow),
        pytest.param("bert", "max", None, OpenVinoEmbedder, marks=pytest.mark.slow),
        pytest.param("bert", "weightedmean", None, OpenVinoEmbedder, marks=pytest.mark.slow),
        pytest.param("roberta", "mean", 95, OpenVinoEmbedder, marks=pytest.mark.slow),
        pytest.param("distilbert", "mean", None, OpenVinoEmbedder, marks=pytest.mark.slow),
        pytest.param("t5", "mean", None, OpenVinoEmbedder, marks=pytest.mark.slow),
    ],
)
def test_vectors_are_the_models_own(tmp_path, family, pooling, longest, kind):
    assert assert_own(tiny_embedder(tmp_path, family, pooling), longest) is kind


@pytest.mark.parametrize(
    ("family", "side"),
    [
        pytest.param("qwen3", "left", marks=pytest.mark.slow),
        pytest.param("qwen3", "right", marks=pytest.mark.slow),
        ("mistral", "left"),
        pytest.param("mistral", "right", marks=pytest.mark.slow),
    ],
)
def test_the_last_token_is_pooled_whatever_side_is_padded(tmp_path, family, side):
    folder = tiny_embedder(tmp_path, family, "lasttoken", tokenizer=tiny_tokenizer(padding_side=side))
    assert_own(folder)


@pytest.mark.slow
def test_a_model_that_puts_texts_into_a_chat_is_computed_by_torch_and_says_so(tmp_path):
    chat = "{% for message in messages %}the user said {{ message['content'] }}{% endfor %}"
    folder = tiny_embedder(tmp_path, "qwen3", "lasttoken", tokenizer=tiny_tokenizer(chat_template=chat))
    assert assert_own(folder) is TorchEmbedder
    (note,) = load_embedder(folder, 2).notes
    assert "PyTorch" in note
    assert "differ from the model's own" in note


def test_a_trace_that_gives_other_vectors_is_not_used(tmp_path, monkeypatch):
    folder = tiny_embedder(tmp_path)
    real = OpenVinoEmbedder._forward

    def wrong(self, tokens):  # as a trace that is wrong for what is padded
        vectors = real(self, tokens)
        return np.where([[len(row) < max(map(len, tokens))] for row in tokens], np.nan, vectors)

    monkeypatch.setattr(OpenVinoEmbedder, "_forward", wrong)
    assert assert_own(folder) is TorchEmbedder


@pytest.mark.slow
def test_texts_longer_than_the_proof_are_not_given_to_the_trace(tmp_path):
    folder = tiny_embedder(tmp_path, "modernbert")
    embedder = load_embedder(folder, 2)
    long = " ".join(["cell wall"] * 300)  # 602 of 900 tokens
    assert least_cosine(embedder.encode([long, "Water"]), own_vectors(folder, [long, "Water"])) > 0.99
    assert "more than 512 tokens" in embedder.notes[0]


def test_a_model_that_is_replaced_after_it_was_loaded_embeds_nothing_more(tmp_path):
    folder = tiny_embedder(tmp_path)
    embedder = load_embedder(folder, 2, revision=find_model(folder).revision)
    embedder.about["proven_tokens"] = 4
    change_weights(folder, lambda weights: weights[min(weights)].add_(1))
    with pytest.raises(InputError, match="or replaced since"):
        embedder.encode(["Water flows down."])


def test_no_trace_is_kept_of_a_model_that_is_replaced_while_it_is_traced(tmp_path, monkeypatch):
    folder = tiny_embedder(tmp_path)
    monkeypatch.setattr(
        "sciqa.retrieval.openvino_check._prove", lambda *_: Path(folder, "config.json").write_text("{}")
    )
    with pytest.raises(InputError, match="or replaced since"):
        check_openvino(folder, 2)
    assert not list(tmp_path.glob("cache/sciqa/embedder-*"))


@pytest.mark.slow
def test_a_tokenizer_without_padding_and_modules_behind_the_pooling(tmp_path):
    tokenizer = tiny_tokenizer(pad_token=None, eos_token="[SEP]", truncation_side="left")
    dense = Dense(32, 24, activation_function=torch.nn.Tanh())
    folder = tiny_embedder(tmp_path, more=(dense, Normalize()), tokenizer=tokenizer)
    assert assert_own(folder) is OpenVinoEmbedder
    assert load_embedder(folder, 2).encode(["Water"]).shape == (1, 24)


@pytest.mark.slow
def test_case_is_lowered_where_the_model_says_so(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = None  # one that keeps case
    folder = tiny_embedder(tmp_path, tokenizer=tokenizer)
    about = Path(folder, "sentence_bert_config.json")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"do_lower_case": True, "max_seq_length": 40}))
    assert assert_own(folder) is OpenVinoEmbedder
    for backend in BACKENDS:
        one, other = load_embedder(folder, 2, backend).encode(["WATER Rains", "water rains"])
        assert one @ other > 0.9999


@pytest.mark.parametrize("backend", mostly_slow(BACKENDS, "torch"))
def test_only_the_prefix_that_is_given_is_put_before_a_text(tmp_path, backend):
    folder = tiny_embedder(tmp_path)
    about = Path(folder, "config_sentence_transformers.json")
    prompts = {"prompts": {"query": "search for the words: "}, "default_prompt_name": "query"}
    about.write_text(json.dumps(json.loads(about.read_text()) | prompts))
    embedder = load_embedder(folder, 2, backend)
    assert least_cosine(embedder.encode(TEXTS), own_vectors(folder, TEXTS)) > 0.99
    prefixed = embedder.encode(TEXTS, prefix="search for the words: ", kind="query")
    assert least_cosine(prefixed, own_vectors(folder, TEXTS, prompt_name="query", prompt=None)) > 0.99
    assert least_cosine(embedder.encode(TEXTS[:1]), prefixed[:1]) < 0.99


@pytest.mark.parametrize("backend", mostly_slow(BACKENDS, "torch"))
def test_a_prefix_that_the_model_does_not_pool_is_not_pooled(tmp_path, backend):
    folder = tiny_embedder(tmp_path, include_prompt=False)
    prefix = "instruction to the reader of texts: "
    vectors = load_embedder(folder, 2, backend).encode(TEXTS, prefix=prefix)
    assert least_cosine(vectors, own_vectors(folder, TEXTS, prompt=prefix)) > 0.99


@pytest.mark.parametrize("backend", mostly_slow(BACKENDS, "torch"))
def test_modules_that_are_no_transformer(tmp_path, backend):
    tokenizer = Tokenizer.from_file(f"{find_model(MINILM).folder}/tokenizer.json")
    torch.manual_seed(0)
    static = StaticEmbedding(tokenizer, embedding_dim=16)
    other = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static]).save(str(tmp_path / "static"))
    vectors = load_embedder(str(tmp_path / "static"), 2, backend).encode(TEXTS)
    assert least_cosine(vectors, own_vectors(str(tmp_path / "static"), TEXTS)) > 0.99
    router = Router.for_query_document(query_modules=[static], document_modules=[other])
    SentenceTransformer(modules=[router]).save(str(tmp_path / "router"))
    shutil.copy(tmp_path / "static" / "model.safetensors", tmp_path / "router")
    embedder = load_embedder(str(tmp_path / "router"), 2, backend)
    for kind, task in (("query", "query"), ("passage", "document")):
        expected = own_vectors(str(tmp_path / "router"), TEXTS, task=task)
        assert least_cosine(embedder.encode(TEXTS, kind=kind), expected) > 0.99


@pytest.mark.parametrize("backend", mostly_slow(BACKENDS, "torch"))
def test_no_texts_have_no_vectors(backend, tmp_path):
    assert load_embedder(tiny_embedder(tmp_path), 2, backend).encode([]).shape == (0, 32)


def spoil(value):
    def edit(model):
        model.get_input_embeddings().weight.data[2300] = value  # a token of its own: "water"

    return edit


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_vector_that_is_not_finite_is_refused_with_the_texts_name(tmp_path, backend):
    folder = tiny_embedder(tmp_path, edit=spoil(float("nan")))
    embedder = load_embedder(folder, 2, backend)
    names = ["passage a", "passage b", "passage c"]
    assert np.isfinite(embedder.encode(["Cells divide", "It rains", "Iron"], names=names)).all()
    with pytest.raises(InputError, match=r"model: its vector of passage b is not finite"):
        embedder.encode(["Cells divide", "Green water", "Iron"], names=names)
    with pytest.raises(InputError, match=r"the text 'Green water'"):
        embedder.encode(["Green water"])


@pytest.mark.parametrize("backend", mostly_slow(BACKENDS, "torch"))
def test_a_vector_of_zeros_is_refused(tmp_path, backend):
    def edit(model):
        for parameter in model.parameters():
            parameter.data.zero_()

    embedder = load_embedder(tiny_embedder(tmp_path, edit=edit), 2, backend)
    with pytest.raises(InputError, match=rf"^{tmp_path}.*: its vector of the text 'Iron' is zero"):
        embedder.encode(["Iron"])
    with pytest.raises(QuestionError, match=r"^model: its vector of question 'asked' is zero"):
        embedder.encode(["Iron"], kind="query", names=["question 'asked'"])


def change_weights(folder, change):
    path = Path(folder, "model.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_a_file_lacks_are_refused_by_name(tmp_path, backend):
    folder = tiny_embedder(tmp_path)
    change_weights(folder, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))
    with pytest.raises(InputError, match=r"BertModel: no weights in its files for encoder.layer.1.output.dense.weight"):
        load_embedder(folder, 2, backend)


def test_layers_that_the_configuration_has_not_are_refused_by_name(tmp_path):
    folder = tiny_embedder(tmp_path)
    about = json.loads(Path(folder, "config.json").read_text())
    Path(folder, "config.json").write_text(json.dumps(about | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"has no layers for: encoder\.layer\.1\..* and \d+ more"):
        load_embedder(folder, 2, "torch")


def test_a_pooler_that_is_not_used_may_be_missing_and_other_heads_there(tmp_path):
    folder = tiny_embedder(tmp_path)
    expected = own_vectors(folder, TEXTS)

    def change(weights):
        for name in [name for name in weights if name.startswith("pooler.")]:
            weights["cls.predictions." + name] = weights.pop(name)

    change_weights(folder, change)
    assert least_cosine(load_embedder(folder, 2, "torch").encode(TEXTS), expected) > 0.99


def test_what_is_no_embedding_model_is_refused(tmp_path):
    folder = Path(tiny_embedder(tmp_path))
    about = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about | {"model_type": "CrossEncoder"}))
    with pytest.raises(InputError, match="a CrossEncoder by its config_sentence_transformers"):
        load_embedder(str(folder), 2)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace("Pooling", "Nothing"))
    with pytest.raises(InputError, match="no whole SentenceTransformer that can be loaded"):
        load_embedder(str(folder), 2)
    with pytest.raises(InputError, match="a GGUF file"):
        load_embedder("SmolLM2-135M-Instruct", 2, "torch")


def build_slowly(root, built):
    def build(folder):
        with built.get_lock():
            built.value += 1
        time.sleep(0.5)
        (folder / "file").write_text("whole")

    assert (cache.cached_folder("made", build) / "file").read_text() == "whole"


def test_two_workers_at_once_build_a_cached_folder_once(tmp_path):
    context = multiprocessing.get_context("fork")
    built = context.Value("i", 0)
    workers = [context.Process(target=build_slowly, args=(tmp_path, built)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert built.value == 1


@pytest.mark.parametrize(("family", "longest"), [("bert", 96), ("roberta", 95)])
def test_the_limit_in_the_files_is_the_one_that_texts_are_cut_at(tmp_path, family, longest):
    folder = tiny_embedder(tmp_path, family)
    assert "max_seq_length" not in json.loads(Path(folder, "sentence_bert_config.json").read_text())
    assert model_file_sequence_length(folder) == load_embedder(folder, 2, "torch").longest == longest
    file = Path(folder, "sentence_bert_config.json")
    about = json.loads(file.read_text())
    for more, limit in [
        ({"max_seq_length": 200}, longest),
        ({"max_seq_length": 40, "processor_kwargs": {"model_max_length": 30}}, 30),
        ({"max_seq_length": 40, "tokenizer_args": {"model_max_length": 20}}, 20),
    ]:
        file.write_text(json.dumps(about | more))
        assert model_file_sequence_length(folder) == load_embedder(folder, 2, "torch").longest == limit
    file.rename(file.with_name("sentence_roberta_config.json"))
    assert model_file_sequence_length(folder) == load_embedder(folder, 2, "torch").longest == limit
    file.write_text(json.dumps(about))
    model = SentenceTransformer(folder, device="cpu")
    model.max_seq_length = 40
    model.save(str(tmp_path / "short"))
    assert model_file_sequence_length(str(tmp_path / "short")) == 40
    with pytest.raises(InputError, match=r"--passage-tokens: 256 given, but .*short reads no more than 40"):
        check_passage_tokens(ChunkingOptions(embedder=str(tmp_path / "short")))
    check_passage_tokens(ChunkingOptions(embedder=str(tmp_path / "short"), passage_tokens=40))
    about = tmp_path / "short" / "config_sentence_transformers.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"prompts": {"document": "passage: "}}))
    with pytest.raises(InputError, match=r"--passage-tokens: 40 given, but .*short reads no more than 3\d after the"):
        check_passage_tokens(ChunkingOptions(embedder=str(tmp_path / "short"), passage_tokens=40))
    check_passage_tokens(RunIndexOptions(embedder=str(tmp_path / "short"), passage_tokens=40, passage_prefix=""))


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
@pytest.mark.parametrize(
    ("own", "tokenizer", "config", "longest"),
    [
        ({"max_seq_length": 40}, {"model_max_length": 20}, {"max_position_embeddings": 30}, 40),
        ({"max_seq_length": 40}, {}, {"model_type": "bert", "max_position_embeddings": 30}, 30),
        ({"max_seq_length": None}, {"model_max_length": 512}, {"max_position_embeddings": 8192}, 512),
        ({}, {"model_max_length": 10**30}, {"max_position_embeddings": 8192}, 8192),
        ({}, {"model_max_length": 1e30}, {"max_position_embeddings": -1}, None),
        (
            {},
            {"model_max_length": 514},
            {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1},
            512,
        ),
        ({}, {}, {}, None),
    ],
)
def test_the_limit_of_an_embedder_is_its_own_or_the_least_of_its_parts(
    tmp_path, inner, own, tokenizer, config, longest
):
    (tmp_path / inner).mkdir(exist_ok=True)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": inner, "type": "sentence_transformers.models.Transformer"}])
    )
    about = {"sentence_bert_config.json": own, "tokenizer_config.json": tokenizer, "config.json": config}
    for name, fields in about.items():
        (tmp_path / inner / name).write_text(json.dumps(fields))
    assert model_file_sequence_length(str(tmp_path)) == longest


def test_the_packaged_model_is_computed_by_openvino():
    embedder = load_embedder(MINILM, 2)
    assert type(embedder) is OpenVinoEmbedder
    assert embedder.notes == []


def of(folder, backend):
    return {"model": folder, "threads": 2, "backend": backend, "device": "cpu"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_name_the_passage_or_question_that_has_no_vector(tmp_path, small_index, backend):
    folder = tiny_embedder(tmp_path, edit=spoil(float("inf")), max_position_embeddings=512)
    options = IndexOptions(output=str(tmp_path / "run"), passages=f"{small_index}/passages", embedder=folder)
    for shard in tables.read_table_manifest(options.passages, "corpus")["shards"]:
        wet = [
            row["passage_id"]
            for row in tables.read_table(f"{options.passages}/{shard['name']}.parquet").to_pylist()
            if "water" in re.findall(r"\w+", titled_chunk(row["title"], row["section"], row["text"]).lower())
        ]
        if wet:
            break
    with pytest.raises(InputError, match=rf"{folder}: its vector of passage '{wet[0]}' of .* is not finite"):
        EmbedIndexShard(options, of(folder, backend), options.embedding())({"part": shard})
    assert not Path(options.index, shard["name"], "embedded.json").exists()

    questions = [{"id": name, "prompt": f"What is {name}?", "A": "air", "B": "rain"} for name in ("iron", "water")]
    finder = QueryRanker(None, options, None, of(folder, backend))
    finder.take(questions)
    with pytest.raises(InputError, match="its vector of question 'water' is not finite"):
        finder.vectors("mean")

    reader = RetrievalReader(of(folder, backend), "", "")
    found = {"passages": [{"passage_id": "p1", "title": "Rain", "section": "", "text": "It is water."}]}
    with pytest.raises(InputError, match="its vector of question 'water' with option A is not finite"):
        reader.score(questions[1:], [(found,)])
    with pytest.raises(InputError, match="its vector of passage 'p1' is not finite"):
        reader.score(questions[:1], [(found,)])


def test_the_options_of_a_long_question_are_embedded(tmp_path):
    folder = tiny_embedder(tmp_path)
    options = IndexOptions(output=str(tmp_path / "run"), embedder=folder, query_prefix="query: ")
    finder = QueryRanker(None, options, None, of(folder, "torch"))
    short = {"id": "1", "prompt": "What is iron?", "A": "air", "B": "rain"}
    finder.take([short])
    np.testing.assert_array_equal(finder.vectors("whole")[0], finder.embed(["What is iron? air rain"], "query"))
    assert finder.embedder.notes == []
    assert "tokenizer" not in vars(finder.limit)  # short texts are not measured
    finder.embedder.revision = "that of other files"
    with pytest.raises(InputError, match="or replaced since"):
        finder.limit.fits("iron " * 100)
    finder.embedder.revision = None
    finder.take([short | {"prompt": "What is iron and " * 200}])
    one, other = finder.vectors("options")
    assert not np.array_equal(one, other)
    assert not np.array_equal(finder.vectors("prompt")[0], finder.vectors("whole")[0])
    (note,) = finder.embedder.notes
    assert (
        note
        == f"{folder} reads no more than {finder.limit.tokens} tokens: longer questions are cut before their options"
    )
    query, is_cut = finder.limit.cut("What is iron and " * 200, " air rain")
    assert is_cut
    assert finder.limit.tokens - 5 < len(finder.limit.tokenizer.encode(f"query: {query}").ids) <= finder.limit.tokens
    assert query.startswith("What is iron and What")
    assert query.endswith(" air rain")


def test_as_much_of_a_question_without_spaces_is_embedded_as_fits():
    limit = QueryLimit(SimpleNamespace(model=MINILM, longest=256, revision=None), "")
    asked = "土星是太阳系中的一颗气态巨行星" * 30
    for prompt, end in ((asked, " 土星"), ("问题： " + asked, ""), (asked[:30] + " " + asked, "")):
        query, is_cut = limit.cut(prompt, end)
        assert is_cut
        assert query == prompt[: len(query) - len(end)] + end
        assert len(limit.tokenizer.encode(query).ids) == 256
    assert limit.cut(" ", "水" * 300) == ("水" * 300, True)


@pytest.mark.slow
def test_an_index_says_what_computes_its_vectors(tmp_path, cluster, capsys):
    (tmp_path / "articles.jsonl").write_text('{"title": "Iron", "text": "Iron is a metal. It rusts."}\n')
    chat = "{% for message in messages %}the user said {{ message['content'] }}{% endfor %}"
    folder = tiny_embedder(tmp_path, tokenizer=tiny_tokenizer(chat_template=chat))
    output = str(tmp_path / "run")
    build_passages(CorpusOptions(output=output, corpus=(str(tmp_path / "articles.jsonl"),)))
    build_index(IndexOptions(output=output, embedder=folder))
    assert "is computed by PyTorch" in " ".join(capsys.readouterr().err.split())
    (row,) = tables.read_table(f"{output}/passages/00000-00000.parquet").to_pylist()
    text = titled_chunk(row["title"], row["section"], row["text"])
    assert least_cosine(np.load(f"{output}/index/00000-00000/vectors.npy"), own_vectors(folder, [text])) > 0.99
