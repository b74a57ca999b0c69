"""Pages: the messages that docs/troubleshooting.md explains are those of the program."""

import ast
import re

import pytest
from test_layout import MODULES, ROOT

PAGES = sorted((ROOT.parent / "docs").glob("*.md"))
#: What others print: Ray, the operating system, S3 and pip's placeholder.
OTHERS = {
    "pip install 'sciqa[train]'",
    "Version mismatch",
    "No space left on device",
    "ACCESS_DENIED",
    "AWS Error",
    "Ties",
}
TEXTS = [
    node.value
    for path in MODULES
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
]


def symptoms():
    for line in (ROOT.parent / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| what"):
            yield from re.findall(r"`([^`]+)`", line.split(" | ")[0])


@pytest.mark.parametrize("said", [text for text in symptoms() if " " in text and text not in OTHERS])
def test_explained_messages_are_the_programs(said):
    assert any(said in text for text in TEXTS)


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT.parent / "README.md", ROOT.parent / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
