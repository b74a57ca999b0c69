"""Private interfaces of other packages: each is listed here with what it is needed for, and none that is not."""

import ast
import importlib
from functools import reduce

import pytest
from test_layout import MODULES, name_of

#: By what imports or reads it: (module or attribute, the version that it was seen with, why there is no public one).
PRIVATE = {
    "ray._private.utils.read_ray_address": "ray 2.60: the cluster that `ray start` left here, without waiting for it",
    "ray._private.grpc_utils.init_grpc_channel": "ray 2.60: a channel with the cluster's own token, to ask for deaths",
    "ray.experimental.internal_kv._internal_kv_get": "ray 2.60: what the autoscaler says of nodes on their way",
    "torch._subclasses.fake_tensor": "torch 2.13: tensors without content, to plan a step's memory",
    "torch.utils._python_dispatch.TorchDispatchMode": "torch 2.13: sees every tensor that a step makes",
    "torch.utils._pytree.tree_leaves": "torch 2.13: tensors within what an operation returns",
}
#: Attributes of objects, which only running tests can miss.
ATTRIBUTES = {"_cdata", "_keep_in_fp32_modules", "_attn_implementation"}
ATTRIBUTES |= {"_grouped_mm"}  # torch 2.13: has no formula for the operations of mixtures of experts
ATTRIBUTES |= {"_parameters", "_in_forward"}  # DeepSpeed 0.19: its dictionary of weights gathers those read elsewhere
#: Of this package's own objects, and of Python's.
OWN = {"_replace", "_asdict", "_fields", "_exit"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("sciqa"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if any(part.startswith("_") and not part.startswith("__") for part in full.split(".")):
                    yield full


def read(path):
    """Private attributes of what is neither `self`, nor a class, nor a module of the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.attr


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_imports_are_listed(path):
    assert set(imported(path)) <= PRIVATE.keys()


@pytest.mark.parametrize("name", PRIVATE)
def test_private_interfaces_are_there(name):
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        assert hasattr(importlib.import_module(module), attribute), f"{name} is gone; seen with {PRIVATE[name]}"


def test_private_attributes_are_listed():
    defined = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
    found = reduce(set.union, (set(read(path)) for path in MODULES))
    assert found - defined - OWN - ATTRIBUTES == set()
