"""Questions of a report page: the readers' answers, the passages found, and the parts of them that were read."""

from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from sciqa.core import storage, tables
from sciqa.core.errors import InputError
from sciqa.corpus.read_parts import split_read_parts
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.chain_table import read_chain_table
from sciqa.exam.finished_answers import finished_answers_fingerprint, finished_answers_path
from sciqa.exam.metrics import answer_rank_range
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_table import QuestionTable

#: Most characters of a chain on the page.
CHAIN_CHARACTERS = 4000
SLICES = ("topic", "subject", "kind")
#: How baselines answer that do not read what is marked.
SHALLOW = {
    "overlap-gold": "It counted each option's words in the passages of the gold article.",
    "longest": "It took the longest option.",
    "majority": "It took the letter that is most often right in this exam.",
}


class ReportQuestionNote(NamedTuple):
    """How a reader came to an answer.

    Attributes:
        said: text for the page.
        marks: whether the reader read the marked parts of the passages.
    """

    said: str
    marks: bool = False


class ReportQuestionContexts(NamedTuple):
    """The contexts that a page shows.

    Attributes:
        table: the contexts table.
        inputs: inputs recorded in its manifest.
    """

    table: QuestionTable
    inputs: dict


def report_questions(
    output: str, exam: Exam, readers: dict[str, dict], shown: str, most: int
) -> tuple[list[dict], dict[str, dict]]:
    """Return the questions that a page lists, at most so many, and each reader's answers to them.

    The readers are those of `sciqa.exam.finished_answers.readers_of_finished_answers`; where there are several tables
    of contexts, those of the reader `shown` are shown.

    Returns:
        The questions with `options` by letter, `slices`, and `passages` in `parts`; and for each reader its `ways` and
        `rows`. A row answers one question: ranking, probabilities in that order, first rank of the right option and the
        number of options that share it, index of the way, whether the text was truncated, and the evidence.
    """
    contexts = _contexts(output, exam, readers[shown])
    questions: list[dict] = []
    for part in range(exam.shards):
        if len(questions) >= most:
            break
        rows = exam.read_shard(part)
        empty: list[dict] = [{"passages": [], "context": None}] * len(rows)
        found = contexts.table.read(rows, exam.first(part), ["passages", "context"]) if contexts else empty
        questions += [_question(*pair, contexts) for pair in zip(rows, found, strict=True)]
    return questions[:most], {name: _answers(name, readers, contexts, most) for name in readers}


def report_question_chains(output: str, readers: Iterable[str], most: int) -> dict[str, dict[str, list[dict]]]:
    """Return what readers wrote before their answers to the first questions: rows of chains by question and reader.

    A text longer than `CHAIN_CHARACTERS` loses its middle.
    """
    found: dict[str, dict[str, list[dict]]] = {}
    for name in readers:
        for question, chains in read_chain_table(finished_answers_path(output, name), questions=most).items():
            found.setdefault(question, {})[name] = [chain | {"text": _shortened(chain["text"])} for chain in chains]
    return found


def _shortened(text: str) -> str:
    half = CHAIN_CHARACTERS // 2
    return text if len(text) <= CHAIN_CHARACTERS else f"{text[:half]}\n[…]\n{text[-half:]}"


def _contexts(output: str, exam: Exam, reader: dict) -> ReportQuestionContexts | None:
    """Return the contexts that a reader read, else those of the run, or None if neither exists for this exam."""
    for folder in filter(None, (reader["contexts"], storage.join_paths(output, "contexts"))):
        there = False
        with suppress(InputError):  # a reader's own folder may be unreachable from here
            there = tables.is_finished_table(folder)
        if there and (manifest := tables.read_table_manifest(folder, "retrieve"))["inputs"]["exam"] == exam.sha256:
            return ReportQuestionContexts(QuestionTable(folder, manifest["rows"]), manifest["inputs"])
    return None


def _question(question: dict, found: dict, contexts: ReportQuestionContexts | None) -> dict:
    """Return a question with its passages; those that may be in the context are split into read and unread parts."""
    passages, given, gold = found["passages"] or [], question.get("context"), question.get("title")
    most = contexts.inputs.get("context_passages", 1) if contexts else 0
    parts = split_read_parts(passages[:most], found["context"] or "", given)
    parts += [[(passage["text"], False)] for passage in passages[most:]]
    return question | {
        "options": answer_options_of(question),
        "slices": [f"{name}: {question[name]}" for name in SLICES if question.get(name) is not None],
        "given": given,
        "given_read": bool(given) and (found["context"] or "").startswith(given or ""),
        "passages": [
            passage | {"parts": each, "read": _share(each), "gold": bool(gold) and passage["title"] == gold}
            for passage, each in zip(passages, parts, strict=True)
        ],
    }


def _share(parts: list[tuple[str, bool]]) -> str:
    """Return a text that says how much of a passage was read."""
    read = [read for text, read in parts if text.strip()]
    return "read" if read and all(read) else "read in part" if any(read) else "found, not read"


def _answers(name: str, readers: dict[str, dict], contexts: ReportQuestionContexts | None, most: int) -> dict:
    ways = _ways(name, readers, contexts)
    numbers = {way: number for number, way in enumerate(dict.fromkeys(ways))}
    rows = []
    for row, way in zip(readers[name]["answers"][:most], ways, strict=False):
        given = [round(row["probabilities"][ord(letter) - ord("A")], 6) for letter in row["ranking"]]
        place = answer_rank_range(row) if row["answer"] else (None, None)
        rows.append(["".join(row["ranking"]), given, *place, numbers[way], bool(row["context_cut"]), _evidence(row)])
    return {"ways": [way._asdict() for way in numbers], "rows": rows}


def _evidence(row: dict) -> list[str] | None:
    """Return the evidence for the option ranked first: text before the deciding clause, clause, text after, title."""
    if not (found := row.get("evidence")):
        return None
    text, start, end = found["sentence"], found["start"], found["end"]
    return [text[:start], text[start:end], text[end:], found["title"]]


def _ways(name: str, readers: dict[str, dict], contexts: ReportQuestionContexts | None) -> list[ReportQuestionNote]:
    """Return how a reader came to each answer; an answer that a cascade kept has the way of the earlier reader."""
    inputs, answers = readers[name]["inputs"], readers[name]["answers"]
    if "answers" in inputs:
        return [_blend_way(inputs["answers"], readers)] * len(answers)
    own = _way(inputs, contexts)
    if "cascade" not in inputs:
        return [own] * len(answers)
    ((before, _),) = inputs["cascade"].items()
    if _replaced(inputs["cascade"], readers):
        return [
            ReportQuestionNote(f"It read only where {before} was least certain; whether it did here is not known.")
        ] * len(answers)
    kept = zip(answers, readers[before]["answers"], _ways(before, readers, contexts), strict=True)
    return [
        ReportQuestionNote(f"Kept as {before} answered. {way.said}", way.marks)
        if row["scores"] == other["scores"]
        else own
        for row, other, way in kept
    ]


def _replaced(made_from: dict[str, str], readers: dict[str, dict]) -> list[str]:
    """Return the readers whose answers are not those any more, by fingerprint, that others were made from."""
    now = {name: finished_answers_fingerprint(reader["inputs"], reader["answers"]) for name, reader in readers.items()}
    return [name for name, recorded in made_from.items() if now.get(name) != recorded]


def _blend_way(made_from: dict[str, str], readers: dict[str, dict]) -> ReportQuestionNote:
    said = f"Pooled from the answers of {', '.join(made_from)}, without reading anew."
    if replaced := _replaced(made_from, readers):
        said += f" Since then, those of {', '.join(replaced)} were replaced or deleted."
    return ReportQuestionNote(said)


def _way(inputs: dict, contexts: ReportQuestionContexts | None) -> ReportQuestionNote:
    if (baseline := inputs.get("baseline")) in SHALLOW:
        return ReportQuestionNote(SHALLOW[baseline])
    if "contexts" not in inputs:
        return ReportQuestionNote("Answered without a context: nothing that stands here was read.")
    if contexts is None:
        return ReportQuestionNote("What it read is not in this run's folder any more.")
    if contexts.inputs != inputs["contexts"]:
        return ReportQuestionNote("It read other contexts than these.")
    if baseline:
        return ReportQuestionNote("It counted each option's words in what is marked.", True)
    if "embedder" in inputs:
        return ReportQuestionNote("It compared the options with every passage as a whole.")
    if inputs["contexts"].get("context") == "given":
        return ReportQuestionNote("It read the context that the exam gives.", True)
    return ReportQuestionNote("It read what is marked.", True)
