"""Examples and rewards of `--objective grpo`: exam questions, and what sampled answers to them earn.

Rewards are functions as TRL's GRPOTrainer calls them: with the answers, and the columns of their examples.
"""

from sciqa.core import storage
from sciqa.core.adapter_files import adapter_hash
from sciqa.core.model_files import ADAPTER_CONFIG, find_model
from sciqa.exam.answer_options import answer_options_of
from sciqa.models.letters import read_letter
from sciqa.training.exam_prompts import (
    Text,
    exam_prompt,
    exam_prompt_style,
    is_answers_table,
    read_exam_prompt_questions,
)
from sciqa.training.examples import check_example_answers
from sciqa.training.options import FinetuneOptions


def read_reward_prompts(exam: str, options: FinetuneOptions) -> list[dict]:
    """Return the examples of an exam.

    Args:
        exam: packaged splits or files, as `sciqa exam --exam` takes them, where a question's own `context` is read with
            it; or the folder of a run's answers, RUN/answers/NAME, whose questions are read with the contexts there.
        options: how the exam is read, and the form of the prompt.

    Returns:
        By question the `prompt`, as messages or as text, the `answer` (a letter), and the `letters` and texts of its
        `options`.

    Raises:
        InputError: a bad exam, or a question without an answer.
    """
    style = exam_prompt_style(options, "letter")
    if is_answers_table(exam):
        asked = [(question, context) for question, context, _ in read_exam_prompt_questions(exam, options)]
    else:
        table = options.read(exam).table
        check_example_answers(table, exam)
        asked = [(row | {"passages": []}, row.get("context") or "") for row in table.to_pylist()]
    return [
        {
            "prompt": exam_prompt(question, context, style),
            "answer": question["answer"],
            "letters": "".join(answer_options_of(question)),
            "options": list(answer_options_of(question).values()),
        }
        for question, context in asked
    ]


def reward_hash(name: str) -> str:
    """Return what identifies one of `--rewards`: its name, or a hash of the model or adapter as it is here."""
    if name in REWARDS:
        return name
    is_adapter = storage.path_exists(storage.join_paths(name, ADAPTER_CONFIG))
    return adapter_hash(name) if is_adapter else find_model(name).revision


def right_answer(
    completions: list[Text], answer: list[str], letters: list[str], options: list[list[str]], **_: object
) -> list[float]:
    """Return 1 for each answer that names the letter of the right option, as `read_letter` finds it, else 0."""
    given = [dict(zip(known, texts, strict=True)) for known, texts in zip(letters, options, strict=True)]
    found = [read_letter(_text(each), known) for each, known in zip(completions, given, strict=True)]
    return [float(letter == right) for letter, right in zip(found, answer, strict=True)]


def letter_alone(completions: list[Text], letters: list[str], **_: object) -> list[float]:
    """Return 1 for each answer that is the letter of an option and nothing else, else 0."""
    texts = [_text(each).strip() for each in completions]
    return [float(len(text) == 1 and text in known) for text, known in zip(texts, letters, strict=True)]


def _text(completion: Text) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


#: Rewards by the names that `--rewards` takes.
REWARDS = {"answer": right_answer, "format": letter_alone}
