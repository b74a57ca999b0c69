"""Prompts of exam questions and answers to them, for objectives besides `rank`: of an exam, or of a run's answers."""

from sciqa.core import storage, tables
from sciqa.core.adapter_files import read_adapter_record
from sciqa.core.errors import InputError
from sciqa.core.model_files import find_model
from sciqa.exam.instructions import Message
from sciqa.exam.metrics import metric_scores
from sciqa.exam.open_exam import open_exam_table
from sciqa.exam.question_table import QuestionTable
from sciqa.models.prompt_format import Completion, PromptFormat
from sciqa.models.prompt_template import render_prompt
from sciqa.retrieval.contexts import open_contexts
from sciqa.training.examples import check_example_answers
from sciqa.training.options import FinetuneOptions

#: What TRL takes as a prompt or an answer: messages of a chat, or plain text.
Text = list[Message] | str


def is_answers_table(folder: str) -> bool:
    """Whether a folder holds what `sciqa predict` has finished."""
    folder = storage.absolute_path(folder)
    return tables.is_finished_table(folder) and _is_of_answers(tables.read_table_manifest(folder, "predict"))


def _is_of_answers(manifest: dict) -> bool:
    return "reader" in manifest.get("inputs", {})


def read_exam_prompt_questions(folder: str, options: FinetuneOptions) -> list[tuple[dict, str, list[float]]]:
    """Return the questions of an answers table, each with the context that its reader had.

    Args:
        folder: folder of the table, RUN/answers/NAME; exam and contexts are those in RUN.
        options: how the exam is read.

    Returns:
        By question the row of the exam, with `passages`, those that the context may be made of; the context; and the
        probabilities by option, as the reader gave them.

    Raises:
        InputError: a question without an answer, probabilities that are no numbers, or answers to another exam, or from
            other contexts, than those in the run.
    """
    folder = storage.absolute_path(folder)
    run, manifest = folder.rsplit("/", 2)[0], tables.read_table_manifest(folder, "predict")
    if not _is_of_answers(manifest):
        raise InputError(f"{folder}: a table, but not of answers; RUN/answers/NAME expected")
    if "answers" in manifest["inputs"]:
        raise InputError(
            f"{folder}: a blend, which read no contexts itself; pass the answers of one of its readers "
            f"({', '.join(manifest['inputs']['answers'])})"
        )
    path = storage.join_paths(run, "exam.parquet")
    exam = open_exam_table(options, path, path, write=False)
    table = tables.read_table(path)
    check_example_answers(table, path)
    if manifest["inputs"]["exam"] != exam.sha256:
        raise InputError(f"{folder}: answers to another exam than {path}; run `sciqa predict` on this one first")
    questions = table.to_pylist()
    answers = QuestionTable(folder, manifest["rows"]).read_all(exam, ["scores", "probabilities"]).to_pylist()
    for question, answer in zip(questions, answers, strict=True):
        metric_scores(answer, question, folder)
    found: list[dict] = [{}] * len(answers)
    if "contexts" in manifest["inputs"]:
        contexts, made_from = open_contexts(storage.join_paths(run, "contexts"), exam)
        if made_from != manifest["inputs"]["contexts"]:
            raise InputError(
                f"{folder}: answered from other contexts than those in {run}/contexts, which examples would have; run "
                "`sciqa predict` with these, or name a run that still has its contexts"
            )
        found = contexts.read_all(exam, ["context", "passages"]).to_pylist()
    return [
        (question | {"passages": texts.get("passages") or []}, texts.get("context") or "", answer["probabilities"])
        for question, answer, texts in zip(questions, answers, found, strict=True)
    ]


def exam_prompt_style(options: FinetuneOptions, completion: Completion) -> PromptFormat:
    """Return the form of exam questions' prompts.

    `--prompt auto` is the form that the model was fine-tuned with before, if it was, else a chat. A template that it
    was fine-tuned with is kept where the form is the same and `--template` gives no other.

    Raises:
        InputError: `--template` is missing, has an error, or is for another completion.
    """
    trained = read_adapter_record(find_model(options.model).folder).get("style") or {}
    prompt = options.prompt
    if prompt == "auto":
        prompt = trained.get("prompt", "chat") if options.objective != "reward" else "chat"
    form = {"prompt": prompt, "completion": completion}
    if form.items() <= trained.items():
        form |= {name: trained[name] for name in ("template", "template_name") if name in trained}
    return PromptFormat(**form | options.template_style(completion))


def exam_prompt(question: dict, context: str, style: PromptFormat) -> Text:
    """Return the prompt for a question; see `sciqa.models.prompt_template.render_prompt`."""
    prompt = render_prompt(question, context, style)
    return prompt.plain if style.prompt == "plain" else prompt.messages()


def exam_prompt_answer(text: str, style: PromptFormat) -> Text:
    """Return what follows the prompt for a question: an option's text or its letter."""
    return f" {text}" if style.prompt == "plain" else [{"role": "assistant", "content": text}]
