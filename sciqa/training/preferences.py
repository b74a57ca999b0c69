"""Examples of `--objective dpo`: prompts with a better and a worse answer, from a file or from a run's own answers."""

import numpy as np

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.exam_files import read_exam_files
from sciqa.exam.instructions import Message, instruction_messages, instruction_text
from sciqa.exam.row import Row
from sciqa.training.exam_prompts import exam_prompt, exam_prompt_answer, exam_prompt_style, read_exam_prompt_questions
from sciqa.training.options import FinetuneOptions

#: Columns of a pair, and who says what stands there as text.
ROLE_OF = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def read_preferences(path: str, options: FinetuneOptions) -> list[dict]:
    """Return the preference pairs in a file, or those that an answers table gives.

    Args:
        path: a file with the columns `prompt`, `chosen` and `rejected`, each text or a list of messages; or the folder
            of an answers table, RUN/answers/NAME.
        options: form of the prompt, for an answers table.

    Returns:
        By pair `prompt`, `chosen` and `rejected`, as messages or, of answers in the plain form, as text.

    Raises:
        InputError: names file, row and column of what is missing, empty or no text.
    """
    if tables.is_finished_table(storage.absolute_path(path)):
        return _pairs_of_answers(path, options)
    return [_pair(row) for row in read_exam_files(path)]


def preference_rejected(probabilities: list[float], gold: int, texts: list[str]) -> int | None:
    """Return the index of the wrong option with the highest probability, the first of several; `gold` is right.

    An option with the text of the right one is not wrong; if all have it, the result is None.
    """
    wrong = np.array(probabilities, dtype=float)
    wrong[[text == texts[gold] for text in texts]] = -np.inf
    return int(wrong.argmax()) if np.isfinite(wrong).any() else None


def _pair(row: Row) -> dict:
    pair = {name: _messages(row, name, role) for name, role in ROLE_OF.items()}
    if pair["chosen"] == pair["rejected"]:
        raise InputError(f"{row.place}, column 'rejected': the same as 'chosen', so that there is nothing to prefer")
    return pair


def _messages(row: Row, column: str, role: str) -> list[Message]:
    if isinstance(row.cells.get(column), list):
        messages = instruction_messages(row, column)
        if role == "assistant" != messages[0]["role"]:  # as in files whose answers repeat the prompt
            raise row.error(
                column, f"begins with a message of the {messages[0]['role']}; leave out what stands in 'prompt'"
            )
        return messages
    return [{"role": role, "content": instruction_text(row, column)}]


def _pairs_of_answers(folder: str, options: FinetuneOptions) -> list[dict]:
    """Return a pair for every question of an answers table: its right option, and the most believed wrong one."""
    if options.completion == "yes":
        raise InputError(
            "--completion yes: the same answer for every option, so none is preferred; pass text or letter"
        )
    style = exam_prompt_style(options, options.completion)
    pairs = []
    for question, context, probabilities in read_exam_prompt_questions(folder, options):
        by_letter = answer_options_of(question)
        given = list(by_letter if options.completion == "letter" else by_letter.values())
        gold = list(by_letter).index(question["answer"])
        wrong = preference_rejected(probabilities, gold, list(by_letter.values()))
        if wrong is None:
            raise InputError(
                f"{folder}, question {question['id']!r}: all options have the text of the right one, so that there is "
                "nothing to prefer; leave it out of the exam"
            )
        pair = {
            "prompt": exam_prompt(question, context, style),
            "chosen": exam_prompt_answer(given[gold], style),
            "rejected": exam_prompt_answer(given[wrong], style),
        }
        pairs.append(pair)
    return pairs
