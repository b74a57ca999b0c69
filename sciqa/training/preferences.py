"""Examples of `--objective dpo`: prompts with a better and a worse answer, from a file or from a run's own answers."""

import numpy as np

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.exam.files import read_exam_files
from sciqa.exam.metrics import scores_of
from sciqa.exam.question_table import QuestionTable
from sciqa.exam.questions import open_questions, options_of
from sciqa.exam.row import Row
from sciqa.models.prompt_format import Format
from sciqa.models.prompt_template import render_prompt
from sciqa.retrieval.contexts import open_contexts
from sciqa.training.examples import check_example_answers
from sciqa.training.instruct import Message, messages_of, text_of
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
        By pair the messages `prompt`, `chosen` and `rejected`.

    Raises:
        InputError: names file, row and column of what is missing, empty or no text.
    """
    if tables.is_finished_table(path):
        return _pairs_of_answers(storage.absolute(path), options)
    return [_pair(row) for row in read_exam_files(path)]


def most_believed_wrong(probabilities: list[float], gold: int) -> int:
    """Return the index of the wrong option with the highest probability, the first of several.

    Args:
        probabilities: by option.
        gold: index of the right option.
    """
    wrong = np.array(probabilities, dtype=float)
    wrong[gold] = -np.inf
    return int(wrong.argmax())


def _pair(row: Row) -> dict:
    pair = {name: _messages(row, name, role) for name, role in ROLE_OF.items()}
    if pair["chosen"] == pair["rejected"]:
        raise InputError(f"{row.place}, column 'rejected': the same as 'chosen', so that there is nothing to prefer")
    return pair


def _messages(row: Row, column: str, role: str) -> list[Message]:
    if isinstance(row.cells.get(column), list):
        return messages_of(row, column)
    return [{"role": role, "content": text_of(row, column)}]


def _pairs_of_answers(folder: str, options: FinetuneOptions) -> list[dict]:
    """Return a pair for every question of an answers table: its right option, and the most believed wrong one."""
    if options.completion == "yes":
        raise InputError(
            "--completion yes: the same answer for every option, so none is preferred; pass text or letter"
        )
    run, manifest = folder.rsplit("/", 2)[0], tables.read_manifest(folder, "predict")
    path = storage.join(run, "exam.parquet")
    exam = open_questions(options, path, path, write=False)
    questions = storage.read_table(path)
    check_example_answers(questions, path)
    if manifest["inputs"]["exam"] != exam.sha256:
        raise InputError(f"{folder}: answers to another exam than {path}; run `sciqa predict` on this one first")
    answers = QuestionTable(folder, manifest["rows"]).read_all(exam, ["scores", "probabilities"]).to_pylist()
    for question, answer in zip(questions.to_pylist(), answers, strict=True):
        scores_of(answer, question, folder)
    found: list[dict] = [{}] * len(answers)
    if "contexts" in manifest["inputs"]:
        contexts, made_from = open_contexts(storage.join(run, "contexts"), exam)
        if made_from != manifest["inputs"]["contexts"]:
            raise InputError(
                f"{folder}: answered from other contexts than those in {run}/contexts, which the pairs would have; run "
                "`sciqa predict` with these, or name a run that still has its contexts"
            )
        found = contexts.read_all(exam, ["context", "passages"]).to_pylist()
    style = Format(**{"prompt": "chat", "completion": options.completion} | options.template_style())
    pairs = []
    for question, answer, texts in zip(questions.to_pylist(), answers, found, strict=True):
        by_letter = options_of(question)
        given = list(by_letter if options.completion == "letter" else by_letter.values())
        gold = list(by_letter).index(question["answer"])
        wrong = most_believed_wrong(answer["probabilities"], gold)
        read = question | {"passages": texts.get("passages") or []}
        pairs.append(
            {"prompt": render_prompt(read, texts.get("context") or "", style).messages()}
            | {
                name: [{"role": "assistant", "content": given[at]}]
                for name, at in (("chosen", gold), ("rejected", wrong))
            }
        )
    return pairs
