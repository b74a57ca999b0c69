"""What `import sciqa` offers: names that are there, the same objects as in their modules, and imported late."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from test_layout import ROOT

import sciqa
from sciqa.cli import STEPS

DOCS = (ROOT.parent / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


def typed():
    """(name, module, name there) of what the package imports for type checkers."""
    (block,) = (node for node in ast.parse(inspect.getsource(sciqa)).body if isinstance(node, ast.If))
    for node in block.body:
        yield from ((alias.asname or alias.name, node.module, alias.name) for alias in node.names)


def test_names_are_what_type_checkers_see():
    names = [name for name, _, _ in typed()]
    assert sorted([*names, "__version__"]) == sorted(sciqa.__all__)
    assert set(sciqa.__all__) <= set(dir(sciqa))
    for name, module, inner in typed():
        assert getattr(sciqa, name) is getattr(importlib.import_module(module), inner)


def test_every_step_of_the_command_line_is_there():
    offered = {getattr(sciqa, name) for name in sciqa.__all__ if name != "__version__"}
    for step in (step for name, step in STEPS.items() if name != "retrieve"):  # which also evaluates
        assert set(step.load()) <= offered, step.about


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'sciqa' has no attribute 'answer'"):
        sciqa.answer  # noqa: B018


def test_heavy_packages_are_imported_when_a_name_is_used():
    code = "import sciqa, sys; dir(sciqa); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "sciqa" in loaded
    assert not {"ray", "torch", "transformers", "pyarrow", "numpy", "sciqa.run"} & set(loaded)


def test_the_driver_of_an_exam_does_without_what_only_its_workers_need():
    code = "import sciqa.run, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ray" in loaded
    assert not {"torch", "transformers", "ray.data", "ray.train", "ray.tune", "faiss", "pandas"} & set(loaded)


def test_every_step_is_in_the_docs():
    steps = {name for name in sciqa.__all__ if name[0].islower()}
    assert steps | {name for name in sciqa.__all__ if name.endswith("Options")} <= set(re.findall(r"`(\w+)`", DOCS))


@pytest.mark.parametrize("block", BLOCKS)
def test_code_of_the_docs_names_what_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "sciqa":
            assert node.attr in sciqa.__all__
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).endswith("Options"):
            known = {field.name for field in dataclasses.fields(getattr(sciqa, name.removeprefix("sciqa.")))}
            assert {each.arg for each in node.keywords} <= known
