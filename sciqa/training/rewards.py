"""Examples and rewards of `--objective grpo`: exam questions, and what sampled answers to them earn.

Rewards are functions as TRL's GRPOTrainer calls them: with the messages of each answer, and the columns of its example.
"""

import re

from sciqa.exam.questions import options_of
from sciqa.models.prompt_format import Format
from sciqa.models.prompt_template import render_prompt, template_style
from sciqa.training.examples import check_example_answers
from sciqa.training.options import FinetuneOptions

Completion = list[dict[str, str]]


def read_exam_prompts(exam: str, options: FinetuneOptions) -> list[dict]:
    """Return the examples of an exam.

    Args:
        exam: packaged splits or files, as `sciqa exam --exam` takes them; a question's own `context` is read with it.
        options: how the exam is read, and the form of the prompt.

    Returns:
        By question the messages `prompt`, the `answer` (a letter), and the `letters` of its options.

    Raises:
        InputError: a bad exam, or a question without an answer.
    """
    table = options.read(exam).table
    check_example_answers(table, exam)
    style = Format(**{"prompt": "chat", "completion": "letter"} | template_style(options.template, "letter"))
    return [
        {
            "prompt": render_prompt(question | {"passages": []}, question.get("context") or "", style).messages(),
            "answer": question["answer"],
            "letters": "".join(options_of(question)),
        }
        for question in table.to_pylist()
    ]


def right_answer(completions: list[Completion], answer: list[str], letters: list[str], **_: object) -> list[float]:
    """Return 1 for each answer whose first letter of an option is the right one, else 0."""
    found = [first_letter(each[-1]["content"], known) for each, known in zip(completions, letters, strict=True)]
    return [float(letter == right) for letter, right in zip(found, answer, strict=True)]


def letter_alone(completions: list[Completion], letters: list[str], **_: object) -> list[float]:
    """Return 1 for each answer that is the letter of an option and nothing else, else 0."""
    texts = [each[-1]["content"].strip() for each in completions]
    return [float(len(text) == 1 and text in known) for text, known in zip(texts, letters, strict=True)]


def first_letter(text: str, letters: str) -> str | None:
    """Return the first of some letters that stands in a text as a word of its own."""
    found = re.search(rf"\b[{letters}]\b", text)
    return found[0] if found else None


#: Rewards by the names that `--rewards` takes.
REWARDS = {"answer": right_answer, "format": letter_alone}
