"""The house: which module may import which, as README's and CONTRIBUTING's layout says."""

import ast
import dataclasses
from collections import defaultdict
from pathlib import Path

import pytest

from sciqa.cli import STEPS

ROOT = Path(__file__).parent.parent / "sciqa"
#: Rooms from the bottom up: a module imports from its own room and from those before it.
ORDER = ["core", "corpus", "exam", "models", "retrieval", "training", "predict", "ask", "serve"]
ORDER += ["audit", "generate", "report", "planning", "run", "run_training", "cli_results", "cli", "__main__"]
#: Longest file, in lines, but for the rules by which wikitext is read.
LONGEST = 350
RULES = {"corpus/wikitext_templates.py", "corpus/wikitext.py", "corpus/table_text.py"}
#: Fields that mean something else in the options of these steps than in those of others.
ANOTHER_MEANING = {
    "AskAnswerOptions": {
        "context_passages",
        "context_sentences",
        "context_order",
    },  # by the form of the answer
    "AuditOptions": {"corpus", "passages", "index"},  # what questions are looked up in
    "EmbedderOptions": {"name", "method", "epochs"},  # training of another kind
    "FinetuneOptions": {"name", "prompt", "completion", "normalise"},  # chosen here, `auto` in readers
    "GenerateOptions": {"name", "template"},  # of what is generated; of a passage, not of a question
    "MergeOptions": {"output", "adapter", "precision"},  # of a model, not of a run
    "PromptOptions": {"show"},  # questions, not a reader
    "PlanOptions": {"exam", "num_workers", "price"},  # without a run or a cluster that could tell; of a GPU's hour
    "VolumeOptions": {"corpus"},
}
MODULES = sorted(path for path in ROOT.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {name_of(path) for path in MODULES}


def imports(path):
    """Yield (module, name) of what a module imports from the package, wherever in it, for types alone too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sciqa":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in NAMES else (node.module, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "sciqa")


def room(name):
    return name.split(".")[1] if "." in name else None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_from_below_and_nothing_private(path):
    own = room(name_of(path))
    for module, name in imports(path):
        assert not (name or module.rpartition(".")[2]).startswith("_") or name == "__version__", (module, name)
        if own and room(module):
            assert ORDER.index(room(module)) <= ORDER.index(own), f"{name_of(path)} imports {module}"


def test_no_circle():
    edges = defaultdict(set)
    for path in MODULES:
        # A room's own page imports its modules, and they must not import it; the package's own names them for types.
        if name_of(path) != "sciqa":
            edges[name_of(path)] |= {module for module, _ in imports(path)} - {name_of(path)}
    done, above = set(), []

    def visit(name):
        assert name not in above, " -> ".join([*above, name])
        if name in done:
            return
        above.append(name)
        for module in sorted(edges[name]):
            visit(module)
        above.pop()
        done.add(name)

    for name in sorted(edges):
        visit(name)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST or str(path.relative_to(ROOT)) in RULES, lines


def own_fields():
    """Yield (class, field, its type) of all options, as they are written down."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Options") and node.decorator_list:
                for field in node.body:
                    if isinstance(field, ast.AnnAssign):
                        yield node.name, ast.unparse(field.target), ast.unparse(field.annotation)


def test_an_option_is_defined_once_and_hidden_nowhere():
    defined = defaultdict(set)
    for kind, name, annotation in own_fields():
        assert "Suppress" not in annotation, (kind, name)
        defined[name].add(kind)
    assert {(kind, name) for kind, names in ANOTHER_MEANING.items() for name in names} <= {
        (kind, name) for name, kinds in defined.items() if len(kinds) > 1 for kind in kinds
    }
    for name, kinds in defined.items():
        assert len([kind for kind in kinds if name not in ANOTHER_MEANING.get(kind, ())]) <= 1, (name, kinds)


@pytest.mark.parametrize("step", STEPS)
def test_no_option_of_a_step_is_defined_anew(step):
    kind = STEPS[step].load()[1]
    names = [name for group in kind.__mro__ for name in vars(group).get("__annotations__", ())]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(kind))
