"""Packages that only some steps need: declared, imported no earlier than needed, and asked for by the step."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from test_layout import MODULES, ROOT, name_of

from sciqa.cli import STEPS, main
from sciqa.core.extras import EXTRAS

PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = {name for names in EXTRAS.values() for name in names}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements):
    return {plain(re.match(r"[\w.-]+", each)[0]) for each in requirements}


CORE = declared(PROJECT["dependencies"])


def nodes_at_import(path):
    """Nodes that run when a module is imported: none within functions, or for types alone."""
    stack = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        stack += ast.iter_child_nodes(node)


def roots(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_every_imported_package_is_declared():
    known = packages_distributions()
    optional = {extra: declared(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS}
    for path in MODULES:
        for root in set(roots(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))) - sys.stdlib_module_names:
            if root in OPTIONAL:
                for extra in (extra for extra, names in EXTRAS.items() if root in names):
                    assert plain(root) in optional[extra], f"{root} of {path} in {extra}"
            elif root != "sciqa":
                assert {plain(name) for name in known[root]} & CORE, f"{root} of {path}"


def test_no_step_imports_an_extra_before_it_is_asked_for():
    paths = {name_of(path): path for path in MODULES}
    reached, waiting = set(), ["sciqa.__main__", *(step.module for step in STEPS.values())]
    while waiting:
        if (name := waiting.pop()) in reached or name not in paths:
            continue
        reached.add(name)
        nodes = list(nodes_at_import(paths[name]))
        assert not set(roots(nodes)) & OPTIONAL, name
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        waiting.append(name.rpartition(".")[0])
    assert "sciqa.training.finetune" in reached


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("pypdf", "pdf", ["corpus", "--corpus", "page.pdf"]),
        ("selectolax", "html", ["corpus", "--corpus", "page.html"]),
        ("mwparserfromhell", "wikipedia", ["corpus", "--corpus", "dump.xml"]),
        ("openvino", "openvino", ["index", "--embed-backend", "openvino"]),
        ("deepspeed", "train", ["finetune"]),
        ("trl", "align", ["finetune", "--objective", "instruct"]),
        ("peft", "train", ["merge", "--adapter", "adapter", "--output", "merged"]),
        ("peft", "train", ["plan"]),
        ("peft", "train", ["exam", "--adapter", "adapter"]),
        ("bitsandbytes", "train", ["exam", "--nf4"]),
        ("vllm", "vllm", ["exam", "--engine", "vllm"]),
        ("fastapi", "serve", ["serve"]),
        ("rouge_score", "rouge", ["evaluate"]),
        ("llguidance", "json", ["generate"]),
        ("openai", "openai", ["exam", "--engine", "openai", "--base-url", "http://localhost:1/v1"]),
    ],
)
def test_a_step_names_the_extra_that_it_lacks(missing, extra, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("page.pdf", "page.html", "dump.xml"):
        Path(name).write_text("<mediawiki>", encoding="utf-8")
    before = sorted(Path().rglob("*"))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert f"{missing} not installed; run `pip install 'sciqa[{extra}]'`" in said
    assert sorted(Path().rglob("*")) == before


def test_vectors_are_computed_by_pytorch_without_openvino(monkeypatch):
    from sciqa.retrieval import IndexOptions

    assert IndexOptions().embed_on("cpu", 1)["backend"] == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert IndexOptions().embed_on("cpu", 1)["backend"] == "torch"
