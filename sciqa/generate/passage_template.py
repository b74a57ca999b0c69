"""Templates of the prompts that ask a model for a question or an instruction about a passage."""

import string
from pathlib import Path
from typing import ClassVar

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.generate.options import Kind
from sciqa.models.prompt_template import PromptTemplate, TemplatePrompt

#: The built-in templates, `KIND.jinja`.
FOLDER = Path(__file__).with_name("templates")


class PassageTemplate(PromptTemplate):
    """A template whose text is the user's message about one passage; `{% block system %}` is the system message.

    Raises:
        InputError: a syntax error, a variable that does not exist, or no use of the passage's text.
    """

    variables: ClassVar[tuple[str, ...]] = ("title", "section", "text", "choices", "letters")

    def __post_init__(self) -> None:
        """Compile the template and check its names."""
        super().__post_init__()
        if "text" not in self._names:
            raise self._error("no {{ text }} in it, where the text of a passage belongs; write it into the template")

    def render_passage(self, passage: dict, choices: int) -> TemplatePrompt:
        """Return the prompt for a row of the passages table; a question has `choices` options."""
        variables = {name: passage[name] or "" for name in ("title", "section", "text")}
        letters = list(string.ascii_uppercase[:choices])
        system, user = self._parts(variables | {"choices": choices, "letters": letters})
        return TemplatePrompt(system, [], user.strip())


def read_passage_template(path: str | None, kind: Kind) -> PassageTemplate:
    """Return the template in a file, or the built-in one of a kind.

    Raises:
        InputError: there is no such file, it has an error, or it does not render a passage.
    """
    if path is None:
        path = str(FOLDER / f"{kind}.jinja")
    elif not storage.path_exists(path):
        raise InputError(f"--template {path}: no such file; the path of a Jinja2 file expected")
    try:
        text = storage.read_bytes(path, None).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"--template {path}: not UTF-8 ({error})") from error
    template = PassageTemplate(text, path.rpartition("/")[2])
    template.render_passage({"title": "Title", "section": "Section", "text": "A sentence."}, 4)
    return template
