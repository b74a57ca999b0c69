"""Packaged models: one in split parts is unpacked whole or not at all, and only if it is what was pinned."""

import hashlib
import importlib
import io
import zipfile
from pathlib import Path

import pytest

from sciqa.core import packaged
from sciqa.core.cache import cache_root
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model, local_model_path
from sciqa.core.packaged import PACKAGED, Packaged, is_packaged_installed, packaged_path

NAME = "split-model"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 40,
    "1_Pooling/config.json": b"{}",
}
PARTS = tuple((f"split-model-part_00{number}", f"input/split-model.zip.00{number}") for number in (1, 2, 3))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages with the parts of a model's zip; the cache is empty."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(f"{NAME}/{name}", content)
    whole = stream.getvalue()
    third = -(-len(whole) // 3)
    for number, (package, inner) in enumerate(PARTS):
        path = tmp_path / "site" / package / inner
        path.parent.mkdir(parents=True)
        (tmp_path / "site" / package / "__init__.py").write_text("raise ImportError('never imported')")
        path.write_bytes(whole[number * third : (number + 1) * third])
    monkeypatch.setitem(PACKAGED, NAME, Packaged(PARTS, "split.txt", hashlib.sha256(whole).hexdigest()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return tmp_path / "site"


def unpacked():
    """Names in the cache, but for locks."""
    return [path.name for path in cache_root().iterdir() if path.suffix != ".lock"]


def test_a_split_model_is_unpacked_once_and_found_by_its_name(site):
    assert is_packaged_installed(NAME)
    folder = packaged_path(NAME)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert [path.name for path in folder.parent.iterdir()] == [NAME]  # no joined zip is left
    (site / PARTS[1][0] / PARTS[1][1]).unlink()
    assert packaged_path(NAME) == folder  # what is unpacked needs no parts
    assert find_model(NAME).weights == (folder / "model.safetensors",)
    assert local_model_path(NAME) == NAME


def test_other_parts_are_refused_and_leave_nothing(site):
    part = site / PARTS[2][0] / PARTS[2][1]
    whole = part.read_bytes()
    part.write_bytes(whole[:-1] + b"\0" + whole[-1:])
    with pytest.raises(InputError, match=r"split-model: .* sha256 .* is expected; .*-r split\.txt"):
        packaged_path(NAME)
    assert unpacked() == []
    part.write_bytes(whole)
    assert packaged_path(NAME).is_dir()


def test_an_unpacking_that_stops_leaves_nothing(site, monkeypatch):
    class Stopped(zipfile.ZipFile):
        def extractall(self, path):
            self.extract(self.namelist()[0], path)
            raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "ZipFile", Stopped)
    with pytest.raises(KeyboardInterrupt):
        packaged_path(NAME)
    assert unpacked() == []


def test_a_missing_part_is_named(site):
    (site / PARTS[1][0] / PARTS[1][1]).unlink()
    with pytest.raises(InputError, match=r"split-model-part-002 .* is not installed; .*-r split\.txt"):
        packaged_path(NAME)
    assert unpacked() == []


def test_every_packaged_name_is_pinned():
    root = Path(__file__).parent.parent
    for name, each in PACKAGED.items():
        pinned = (root / each.requirements).read_text()
        for package, _ in each.files:
            assert f"\n{package.replace('_', '-')}==" in pinned, name
    lines = [line for file in ("demo.txt", "mpnet.txt", "bench.txt") for line in (root / file).read_text().splitlines()]
    assert all("==" in line and "--hash=sha256:" in line for line in lines if line and not line.startswith("#"))
