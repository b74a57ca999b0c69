"""Prompts from Jinja2 templates: the built-in forms, those that are shipped by name, and files of the user.

A template's text is the user's message; `{% block system %}` is the system message, and stands before all else where
there is no chat template. `{% set completion = "letter" %}` says what is scored after it. Templates run in Jinja2's
sandbox, and an unknown variable is an error.
"""

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple, get_args

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sciqa.core import storage
from sciqa.core.errors import InputError
from sciqa.corpus.read_parts import split_read_parts
from sciqa.exam.answer_options import answer_options_of
from sciqa.models.prompt_format import Completion, PromptFormat

#: The built-in forms `PROMPT-COMPLETION.jinja`, and templates that `--template` takes by name.
FOLDER = Path(__file__).with_name("templates")
BUILT_IN = re.compile(r"(plain|chat)-")
#: Variables of a template; `proposed` is set where a yes to an option is scored.
VARIABLES = ("question", "is_question", "options", "letters", "context", "passages", "examples", "proposed")
#: Columns of an exam that are variables too, empty where the exam has none.
COLUMNS = ("subject", "topic")
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
#: The variable that shows what a completion answers with; a text stands after any prompt.
SHOWN: dict[Completion, str] = {"letter": "options", "reasoned": "options", "yes": "proposed"}
#: What stands after an example's answer.
BETWEEN = "\n\n"
#: A passage to try templates on.
PASSAGE = {"title": "Title", "section": "Section", "text": "A sentence of a passage."}


class TemplatePrompt(NamedTuple):
    """A prompt, up to the option that is scored.

    Attributes:
        system: system message; it may be empty.
        turns: for each example, its question and its answer.
        user: the question.
    """

    system: str
    turns: list[tuple[str, str]]
    user: str

    @property
    def plain(self) -> str:
        """The prompt as one text."""
        return self.system + "".join(f"{asked} {answer}{BETWEEN}" for asked, answer in self.turns) + self.user

    def messages(self, clean: Callable[[str], str] = str) -> list[dict[str, str]]:
        """Return the prompt as messages for a chat template; every text passes through `clean`."""
        system = [("system", self.system.strip())] if self.system.strip() else []
        turns = [pair for asked, answer in self.turns for pair in (("user", asked), ("assistant", answer))]
        pairs = [*system, *turns, ("user", self.user)]
        return [{"role": role, "content": clean(text)} for role, text in pairs]


@dataclass(frozen=True)
class PromptTemplate:
    """The text of a template, and the name of its file for messages.

    Raises:
        InputError: a syntax error, a variable that does not exist, or an unknown completion.
    """

    text: str
    name: str
    variables: ClassVar[tuple[str, ...]] = (*VARIABLES, *COLUMNS)

    def __post_init__(self) -> None:
        """Compile the template and check its names."""
        self._compiled  # noqa: B018 (syntax errors show when it is compiled)
        for name in sorted(self._names - set(self.variables)):
            line = next((node.lineno for node in self._tree.find_all(nodes.Name) if node.name == name), None)
            raise self._error(f"no variable {name!r}; there are {', '.join(self.variables)}", line)
        if (given := self.completion) and given not in get_args(Completion):
            raise self._error(f"completion {given!r} given, one of {', '.join(get_args(Completion))} expected")

    @cached_property
    def completion(self) -> Completion | None:
        """What is scored after this prompt, if the template says so."""
        found = [
            node.node.value
            for node in self._tree.find_all(nodes.Assign)
            if isinstance(node.target, nodes.Name)
            and node.target.name == "completion"
            and isinstance(node.node, nodes.Const)
        ]
        return found[-1] if found else None

    @property
    def reads_context(self) -> bool:
        """Whether the prompt has what is read with a question."""
        return "context" in self._names or self.reads_passages

    @property
    def reads_passages(self) -> bool:
        """Whether the prompt has the passages one by one."""
        return "passages" in self._names

    def shows_answers(self, completion: Completion) -> bool:
        """Whether the prompt has what a completion answers with: the options, or the one that a yes is asked for."""
        return completion not in SHOWN or SHOWN[completion] in self._names

    def render(
        self, question: dict, context: str, completion: Completion, proposed: str | None = None
    ) -> TemplatePrompt:
        """Return the prompt for a question.

        Args:
            question: row of the exam table. It may also have `passages`, rows that the context may be made of, and
                `examples`, rows of other questions with answers.
            context: text that is read with it; it may be empty.
            completion: what is scored after the prompt.
            proposed: the option that a yes is asked for.

        Raises:
            InputError: names the line and the variable.
        """
        examples = list(self._examples(question.get("examples") or [], completion))
        variables = self._variables(question, context, proposed)
        system, user = self._parts(variables | {"examples": [variables for variables, _ in examples]})
        if "examples" in self._names:
            return TemplatePrompt(system, [], user)
        turns = [(self._parts(each | {"examples": []})[1], answer) for each, answer in examples]
        return TemplatePrompt(system, turns, user)

    def _examples(self, rows: list[dict], completion: Completion) -> Iterator[tuple[dict, str]]:
        """Yield the variables and the answer of each example; every second proposal is a wrong one."""
        for number, row in enumerate(rows):
            letters, right = list(answer_options_of(row)), row["answer"]
            proposed = letters[(letters.index(right) + number % 2) % len(letters)]
            answers = {"text": row[right], "letter": right, "yes": "Yes" if proposed == right else "No"}
            answers["reasoned"] = f"Answer: {right}"
            variables = self._variables(row, row.get("context") or "", row[proposed] if completion == "yes" else None)
            yield variables | {"answer": answers[completion]}, answers[completion]

    def _variables(self, question: dict, context: str, proposed: str | None) -> dict:
        options = answer_options_of(question)
        found = {
            "question": question["prompt"],
            "is_question": question["is_question"],
            "options": list(options.values()),
            "letters": list(options),
            "context": context,
            **{name: question.get(name) or "" for name in COLUMNS},
        }
        if proposed is not None:
            found["proposed"] = proposed
        if self.reads_passages:
            found["passages"] = list(_passages(question, context))
        return found

    def _parts(self, variables: dict) -> tuple[str, str]:
        """Return the system message and all the rest."""
        context = self._compiled.new_context(variables)
        blocks = context.blocks.pop("system", [])
        context.blocks["system"] = [lambda _: iter(())]  # renders nothing
        try:
            user = "".join(self._compiled.root_render_func(context))
            return "".join(part for block in blocks[:1] for part in block(context)), user
        except Exception as error:  # a template can raise anything
            raise self._error(str(error), self._line(error)) from error

    @cached_property
    def _tree(self) -> nodes.Template:
        return ENVIRONMENT.parse(self.text)

    @cached_property
    def _names(self) -> set[str]:
        return meta.find_undeclared_variables(self._tree)

    @cached_property
    def _compiled(self) -> Template:
        try:
            return ENVIRONMENT.from_string(self.text)
        except TemplateSyntaxError as error:
            raise self._error(error.message or "not a template", error.lineno) from error

    def _line(self, error: Exception) -> int | None:
        """Return the line of the template in which an error was raised."""
        frames = reversed([*traceback.walk_tb(error.__traceback__)])
        own = (at for frame, at in frames if frame.f_globals.get("__jinja_template__") is self._compiled)
        return next(map(self._compiled.get_corresponding_lineno, own), None)

    def _error(self, what: str, line: int | None = None) -> InputError:
        if line is None:
            return InputError(f"{self.name}: {what}")
        return InputError(f"{self.name}, line {line}: {what}, in {self.text.splitlines()[line - 1].strip()!r}")


def _passages(question: dict, context: str) -> Iterator[dict]:
    """Yield the passages that a context has parts of, with these parts as their text."""
    passages = question.get("passages") or []
    for passage, parts in zip(passages, split_read_parts(passages, context, question.get("context")), strict=True):
        if text := "".join(text for text, read in parts if read).strip():
            yield {"title": passage["title"] or "", "section": passage["section"] or "", "text": text}


@lru_cache(64)
def compiled_template(text: str, name: str) -> PromptTemplate:
    """Return a template, compiled once in each process."""
    return PromptTemplate(text, name)


@lru_cache(64)
def built_in_template(name: str) -> PromptTemplate:
    """Return the template with that name in the package's folder."""
    return compiled_template((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), f"{name}.jinja")


def prompt_template_names() -> list[str]:
    """Return the names that `--template` takes besides files."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja") if not BUILT_IN.match(path.stem))


def prompt_template_path(name: str) -> str:
    """Return the value of `--template` with an absolute path, unless it is the name of a template of the package."""
    return name if name in prompt_template_names() else storage.absolute_path(name)


def read_template(path: str) -> PromptTemplate:
    """Return the template in a file, or the package's of that name.

    Raises:
        InputError: there is no such file, or it is no template.
    """
    if path in prompt_template_names():
        return built_in_template(path)
    if not storage.path_exists(path):
        raise InputError(
            f"--template {path}: no such file, and none of the package's names: {', '.join(prompt_template_names())}"
        )
    try:
        text = storage.read_bytes(path, None).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--template {path}: not UTF-8 ({error})") from error
    return compiled_template(text, path.rpartition("/")[2])


def template_style(path: str | None, completion: str = "auto") -> dict:
    """Return the fields of `PromptFormat` that a template sets, given its file or name; None sets nothing.

    What is scored is `completion`, as the options say; `auto` takes what the template says, if it does.

    Raises:
        InputError: the template is for another completion.
    """
    if path is None:
        return {}
    template = read_template(path)
    style = {"template": template.text, "template_name": template.name}
    if template.completion is None:
        return style
    if completion not in ("auto", template.completion):
        raise InputError(
            f"--completion {completion}: {template.name} is for {template.completion} (its `set completion`); pass "
            f"--completion {template.completion}, or change the template"
        )
    return style | {"completion": template.completion}


def render_prompt(question: dict, context: str, style: PromptFormat, proposed: str | None = None) -> TemplatePrompt:
    """Return the prompt for a question in the template of a format, or in the built-in form; see `render`."""
    template = built_in_template(f"{style.prompt}-{style.completion}")
    if style.template is not None:
        template = compiled_template(style.template, style.template_name)
    return template.render(question, context, style.completion, proposed)


def template_prompt_text(question: dict, context: str, style: PromptFormat | None = None) -> str:
    """Return the prompt for a question as one text, as for a model without a chat template."""
    return render_prompt(question, context, replace(style or PromptFormat(), prompt="plain")).plain


def check_template(style: PromptFormat, question: dict | None = None) -> None:
    """Raise `InputError` unless the template of a format, if it has one, is for its completion and renders a question.

    None for the question does not try to render one; one without options is answered in words.
    """
    if style.template is None:
        return
    template = compiled_template(style.template, style.template_name)
    own = template.completion
    if own not in (None, style.completion):
        raise InputError(
            f"--completion {style.completion}: {style.template_name}, the template of the prompts, is for {own} (its "
            f"`set completion`); pass --completion {own}, or another --template"
        )
    ranks = question is None or bool(answer_options_of(question))
    if ranks and not template.shows_answers(style.completion):
        raise InputError(
            f"{style.template_name}: names no `{SHOWN[style.completion]}`, so --completion {style.completion} would be "
            "asked for what the model does not see; name it in the template (only --completion text goes without)"
        )
    if question is None:
        return
    proposed = next(iter(answer_options_of(question).values()), None) if style.completion == "yes" else None
    for context, passages in (("", []), ("Title. Section. A sentence of a passage.", [PASSAGE])):
        render_prompt(question | {"context": None, "passages": passages}, context, style, proposed)


def check_template_context(style: PromptFormat, instead: str) -> None:
    """Raise `InputError` if the template of a format leaves out what is read with a question.

    Args:
        style: format of the prompts; the built-in ones have the context.
        instead: what else the user may pass, for the message.
    """
    if style.template is None:
        return
    if not compiled_template(style.template, style.template_name).reads_context:
        raise InputError(
            f"{style.template_name}: the template names neither `context` nor `passages`, so nothing that is found "
            f"for a question would be read; pass {instead}, or a --template that has one of them"
        )
