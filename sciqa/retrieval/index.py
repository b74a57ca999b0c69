"""The `index` step: a pool of workers embeds shards of passages, and writes the FAISS and BM25 files of each."""

import time
from dataclasses import replace

from sciqa import __version__
from sciqa.core import cluster, hashes, model_workers, progress, storage, tables, worker_loss
from sciqa.core.errors import InputError
from sciqa.core.lock import lock
from sciqa.core.model_files import find_model, model_file_bytes, model_file_dimension
from sciqa.core.model_workers import model_worker_arguments
from sciqa.core.options import defaults_of
from sciqa.core.summary import Summary
from sciqa.corpus.passages import PASSAGES_FORMAT
from sciqa.retrieval.index_listing import IndexListing
from sciqa.retrieval.index_shards import (
    EmbedIndexShard,
    check_index_factory,
    empty_shards_index,
    index_shard_key,
    train_index_shards,
    write_index_shard,
)
from sciqa.retrieval.options import INDEX_FORMAT, VECTORS_FORMAT, IndexFolderOptions, IndexOptions

#: Records of an index: of all of it, written last, and of what its FAISS files are trained with.
MANIFEST, TRAINED = "manifest.json", "trained.json"
#: Options that an index is built with, by their names in its manifest.
BUILT_WITH = ("factory", "metric", "vector_type", "train_vectors")


def build_index(options: IndexOptions) -> Summary:
    """Embed every passage and write the index: a folder per shard, and `manifest.json` last.

    A shard holds `passages.parquet`, `vectors.npy` (one unit vector per passage), `index.faiss`, `words.arrow` and the
    records `embedded.json` and `shard.json`, each written after the files that it describes. A shard is kept if its
    records match the passages and options and its files match the records (see `IndexListing`). If some of its passages
    changed, the vectors of the others are kept.

    Raises:
        InputError: no passages, passages longer than the embedder reads, an existing index of another embedding model,
            or a factory that FAISS rejects.
    """
    started = time.monotonic()
    passages = tables.read_table_manifest(options.passages, "corpus", PASSAGES_FORMAT)
    check_index(options, options.overwrite)
    shards = passages["shards"]
    if not shards:
        raise InputError(f"{options.passages}: holds no passages; give `sciqa corpus` articles with text")
    embedding = options.embedding()
    building = options.building(embedding)
    built_of = {"passages": options.passages, "contents": [shard["content"] for shard in shards]}
    before = _check_format(options)
    trained = _trained_hash(options.index, building)
    files = IndexListing(options.index, MANIFEST, options.verify)
    finished: dict[str, dict | None] = {}
    if trained is not None:
        finished = files.read_records("shard.json", _keys(shards, trained), before.get("shards", ()))
    missing = [shard for shard in shards if not finished.get(shard["name"])]
    embedded = files.read_records("embedded.json", keys := _keys(missing, embedding))
    if missing:
        _check_passages(options, shards)
        with lock(options.index):
            storage.check_storage_writable(options.index)
            _delete_wrong_records(files, keys, embedded)
            storage.delete_path(storage.join_paths(options.index, MANIFEST))
            about = {"model": options.embedder, **built_of, **embedding}
            storage.write_json(storage.join_paths(options.index, "model.json"), about)
            cluster.connect_cluster(options)
            _embed([shard for shard in missing if not embedded[shard["name"]]], options, embedding)
            trained = trained or train_index_factory(options, shards, building)
            finished |= {record["name"]: record for record in build_faiss_and_bm25(missing, options, trained)}
    complete = [record for shard in shards if (record := finished[shard["name"]])]
    manifest = {
        "model": options.embedder,
        "dimension": complete[0]["dimension"],
        "normalised": True,
        "rows": sum(shard["rows"] for shard in complete),
        "shards": complete,
        "version": __version__,
        **built_of,
        **building,
    }
    made = _read_file(options.index, MANIFEST)
    if not made or index_identity(made) != index_identity(manifest):
        _check_passages(options, shards)
        storage.write_json(storage.join_paths(options.index, MANIFEST), manifest)
    kept = len(shards) - len(missing)
    said = f"{manifest['rows']:,} vectors of {manifest['dimension']} dimensions, {options.factory}; "
    said += f"{len(missing)} shards built, {kept} kept"
    return Summary("index", options.index, said, time.monotonic() - started, {"built": len(missing), "kept": kept})


def _read_file(index: str, name: str) -> dict:
    """Return the content of a JSON file of an index, or {} if there is none."""
    path = storage.join_paths(index, name)
    return storage.read_json(path) if storage.path_exists(path) else {}


def _delete_wrong_records(files: IndexListing, keys: dict[str, str], embedded: dict[str, dict | None]) -> None:
    """Delete the records of shards that are built again, unless the shard is embedded as they say.

    Without the manifest, only sizes are compared; so a build that goes on after a stop would take a wrong file for the
    one that was written. An `embedded.json` of another key stays: the vectors in its shard are hashed before use.
    """

    def delete(shard: str) -> None:
        if (finished := storage.join_paths(files.index, shard, "shard.json")) in files.found:
            storage.delete_path(finished)
        path = storage.join_paths(files.index, shard, "embedded.json")
        if not embedded[shard] and path in files.found and storage.read_json(path)["key"] == keys[shard]:
            storage.delete_path(path)

    storage.map_storage(delete, keys)


def _check_passages(options: IndexOptions, shards: list[dict]) -> None:
    """Raise `InputError` if the existing index was built or begun from another table without a shard in common."""
    contents = {shard["content"] for shard in shards}
    for name in (MANIFEST, "model.json"):
        about = _read_file(options.index, name)
        made, held = about.get("passages", options.passages), about.get("contents", contents)
        known = options.overwrite or bool(contents & set(held))
        if not known and not storage.is_same_path(made, options.passages):
            raise InputError(
                f"{options.index}: made from other inputs (passages: {made} there, {options.passages} now); "
                "pass another --index, or --overwrite to replace it"
            )


def finished_index(options: IndexOptions) -> dict | None:
    """Return the manifest of an index that can be used unchanged, whatever passages and factory it was built from.

    Return None if there is no finished index, if another version of the program built it, or if it was built from the
    passages of these options and they have changed since, or are being made anew. Passages beside the index are its
    own: a run that was copied or moved has another path than the manifest says.

    Raises:
        InputError: the index was built with another embedding model, or with another value of a given option.
    """
    check_index(options)
    manifest = _read_file(options.index, MANIFEST)
    if not _is_current(manifest):
        return None
    check_index_built_as(options, manifest)
    beside = storage.is_same_path(*(path.rpartition("/")[0] for path in (options.passages, options.index)))
    own = beside or storage.is_same_path(manifest.get("passages", options.passages), options.passages)
    return None if own and _have_changed(options.passages, manifest["contents"]) else manifest


def check_index_built_as(options: IndexOptions, manifest: dict) -> None:
    """Raise `InputError` if an index was built with another passage prefix, or another value of a given option."""
    defaults = defaults_of(IndexOptions)
    for name in BUILT_WITH:
        if name in manifest and (wanted := getattr(options, name)) not in (defaults[name], manifest[name]):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{options.index}: built with {flag} {manifest[name]}, not {wanted}; "
                f"leave {flag} out, or run `sciqa index` with it"
            )
    check_index_prefix(options, manifest)


def _have_changed(passages: str, contents: list[str]) -> bool:
    """Whether passages are begun and not finished, or have other contents; deleted ones have not changed."""
    if tables.is_finished_table(passages):
        shards = tables.read_table_manifest(passages, "corpus")["shards"]
        return [shard.get("content") for shard in shards] != contents
    begun, finished = (tables.table_records_path(passages, name) for name in (tables.INPUTS, tables.MANIFEST))
    return storage.path_exists(begun) and not storage.path_exists(finished)


def read_index_manifest(index: str) -> dict:
    """Return the manifest of a finished index, or raise `InputError`."""
    manifest = _read_file(index, MANIFEST)
    if not manifest:
        raise InputError(f"{index}: no finished index; run `sciqa index` with the same --output first")
    if not _is_current(manifest):
        raise InputError(f"{storage.join_paths(index, MANIFEST)}: {tables.OTHERWISE}; run `sciqa index --overwrite`")
    return manifest


def check_index_unchanged(options: IndexFolderOptions, manifest: dict) -> None:
    """Raise `InputError` if a file of the index is not the one that was written; see `IndexListing`."""
    IndexListing(options.index, MANIFEST, options.verify).check(manifest["shards"])


def check_index_prefix(options: IndexFolderOptions, made: dict) -> None:
    """Raise `InputError` if passages get another prefix than those of the index, of which `made` is a record."""
    if (wanted := options.prefix("passage")) != made["prefix"]:
        raise InputError(
            f"{options.index}: built with --passage-prefix {made['prefix']!r}, not {wanted!r}; "
            f"pass --passage-prefix {made['prefix']!r}, or run `sciqa index` with another"
        )


def _is_current(manifest: dict) -> bool:
    return (manifest.get("format"), manifest.get("index_format")) == (VECTORS_FORMAT, INDEX_FORMAT)


def _check_format(options: IndexOptions) -> dict:
    """Return the manifest of the existing index, or {} if there is none that this version of the program built.

    Raises:
        InputError: another version built it, and `overwrite` is off.
    """
    manifest = _read_file(options.index, MANIFEST)
    if manifest and not _is_current(manifest) and not options.overwrite:
        path = storage.join_paths(options.index, MANIFEST)
        raise InputError(f"{path}: {tables.OTHERWISE}; pass another --index, or --overwrite to build it anew")
    return manifest if _is_current(manifest) else {}


def index_identity(manifest: dict) -> str:
    """Return a hash of everything that determines an index: passages, embedding model, factory, formats."""
    return hashes.fingerprint([shard["key"] for shard in manifest["shards"]])


def is_same_index(index: str, identity: str) -> bool:
    """Whether a folder still holds the index of an identity, and it is not being built anew."""
    manifest = _read_file(index, MANIFEST)
    return _is_current(manifest) and index_identity(manifest) == identity


def options_of_index(options: IndexOptions) -> IndexOptions:
    """Return the options, with defaults replaced by the values that an index was built with.

    While it is built anew it has no manifest, and the record of its trained index says them.

    Raises:
        InputError: as `check_index_prefix`.
    """
    made = _read_file(options.index, MANIFEST) or _read_file(options.index, TRAINED).get("building", {})
    if not _is_current(made):
        return options
    check_index_prefix(options, made)
    defaults = defaults_of(IndexOptions)
    names = [name for name in BUILT_WITH if name in made]
    return replace(options, **{n: made[n] for n in names if getattr(options, n) == defaults[n]})


def check_index(options: IndexOptions, replaced: bool = False) -> None:
    """Raise `InputError` as `check_index_embedder` does, or if the factory makes no index that passages can fill."""
    check_index_embedder(options, replaced)
    check_index_factory(options.factory)
    if options.factory != "Flat" and (dimension := model_file_dimension(options.embedder)):
        empty_shards_index(options.factory, dimension, options.metric)


def check_index_embedder(options: IndexFolderOptions, replaced: bool = False) -> None:
    """Raise `InputError` if the index was built or begun with another embedding model, unless it may be `replaced`."""
    for name in (MANIFEST, "model.json"):
        if made := _read_file(options.index, name):
            files = find_model(options.embedder)
            # Earlier versions kept a hash of the weights alone.
            revision = files.revision if made.get("format") else files.weights_hash
            if made.get("revision") != revision and not replaced:
                path = storage.join_paths(options.index, name)
                raise InputError(
                    f"{path}: this index was built with the embedding model {made.get('model')} "
                    f"(revision {made.get('revision')}), not {options.embedder} as it is now ({revision}: weights, "
                    "configuration, tokenizer, pooling); pass that model as --embedder, another folder as --index, "
                    "or --overwrite to build it anew"
                )


def _keys(shards: list[dict], about: dict) -> dict[str, str]:
    return {shard["name"]: index_shard_key(shard, about) for shard in shards}


def _embed(shards: list[dict], options: IndexOptions, embedding: dict) -> None:
    if not shards:
        return
    workers = cluster.num_cluster_workers(options, len(shards))
    embed = options.embed_arguments(workers) | {"revision": embedding["revision"]}
    arguments = {"options": options, "embed": embed, "embedding": embedding}
    pool = model_workers.model_worker_pool(options, workers, len(shards), model_file_bytes(options.embedder))
    rows = cluster.cluster_dataset(shards).map(**model_worker_arguments(EmbedIndexShard, arguments, pool))
    total = sum(shard["rows"] for shard in shards)
    for _ in progress.rows_with_progress(rows, "index", total, "passages", lambda row: row["rows"]):
        pass


def _trained_hash(index: str, building: dict) -> dict | None:
    """Return `building` with the hash of the existing trained index, or None if other settings trained it."""
    made = _read_file(index, TRAINED)
    return building | {"trained": made["sha256"]} if made.get("building") == building else None


def train_index_factory(options: IndexOptions, shards: list[dict], building: dict) -> dict:
    """Train the factory's index once for all shards, which are embedded, if it needs training.

    `building` is everything that determines the index, except the sample.

    Returns:
        `building` with `trained`, the sha256 of the trained index, or "" if the factory needs no training.
    """
    digest = ""
    dimension = storage.read_json(storage.join_paths(options.index, shards[0]["name"], "embedded.json"))["dimension"]
    storage.delete_path(storage.join_paths(options.index, TRAINED))
    if options.factory != "Flat" and not empty_shards_index(options.factory, dimension, options.metric).is_trained:
        rows = cluster.cluster_dataset([shards]).map(
            train_index_shards, fn_kwargs={"options": options}, num_cpus=1, max_retries=worker_loss.MOST
        )
        total = min(options.train_vectors, sum(shard["rows"] for shard in shards))
        for row in progress.rows_with_progress(rows, "training", total, "vectors", lambda row: row["rows"]):
            digest = row["sha256"]
    storage.write_json(storage.join_paths(options.index, TRAINED), {"building": building, "sha256": digest})
    return building | {"trained": digest}


def build_faiss_and_bm25(shards: list[dict], options: IndexOptions, trained: dict) -> list[dict]:
    """Write the FAISS and BM25 files of embedded shards, and return their records."""
    # FAISS and PyTorch each bring an OpenMP runtime, so they run in different processes.
    arguments = {"options": options, "trained": trained}
    rows = cluster.cluster_dataset(shards).map(
        write_index_shard, fn_kwargs=arguments, num_cpus=1, max_retries=worker_loss.MOST
    )
    return [row["record"] for row in progress.rows_with_progress(rows, "index", len(shards), "shards", lambda row: 1)]
