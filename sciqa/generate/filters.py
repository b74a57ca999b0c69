"""Filters of what a model wrote that need no model: each returns the fault by which a question is rejected."""

import hashlib
import string

import Stemmer

from sciqa.audit.words import split_words
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.baselines import FUNCTION_WORDS, WORD, overlap_baseline_scores
from sciqa.exam.metrics import metric_rank_range
from sciqa.exam.question_key import SIGN, folded_question_text
from sciqa.generate.options import Kind

#: Faults that filters find, each with what it means, in the order in which they are looked for.
FILTER_FAULTS = {
    "few-distractors": "the passages found have too few wrong options of the answer's form (--distractors)",
    "equal-options": "two options are the same but for case and punctuation",
    "sentence-not-found": "the sentence does not stand in the passage, word for word",
    "paraphrased-options": "two options have the same words but for their order, endings and function words",
    "word-overlap": "the right option is the one with the largest share of its words in the passage",
    "near-duplicate": "an earlier question or instruction has nearly the same words",
    "exam-copy": "it stands in --against, or nearly, by the measure of `sciqa audit`",
    "unanswerable": "--checker, with the passage, does not rank the right option first",
    "inconsistent": "--checker, with the passage, does so only for some orders of the options",
    "known-without": "--checker ranks the right option first without the passage, whatever the order of the options",
}
#: Function words that change what an option says.
MEANINGFUL = frozenset(
    WORD.findall(
        "after all and any before between both but during each either if more most no nor not only or other over same "
        "some such than through under until up within without"
    )
)
LIGHT_WORDS = FUNCTION_WORDS - MEANINGFUL | {"s"}
STEMMER = Stemmer.Stemmer("english")


def filter_key_words(text: str) -> frozenset[str]:
    """Return the stems of the words of a text, with numbers and signs, without `LIGHT_WORDS`."""
    words = [word for word in SIGN.findall(folded_question_text(text)) if word not in LIGHT_WORDS]
    return frozenset(STEMMER.stemWords(words))


def filter_option_order(question: dict[str, str], name: str) -> dict[str, str]:
    """Return a question with its options in an order that only its id, `name`, decides: models prefer some letters."""
    options = answer_options_of(question)
    order = sorted(options, key=lambda letter: hashlib.sha256(f"{letter} {name}".encode()).digest())
    arranged = {new: options[old] for new, old in zip(string.ascii_uppercase, order, strict=False)}
    return question | arranged | {"answer": string.ascii_uppercase[order.index(question["answer"])]}


def filter_question(question: dict[str, str], passage: str, skipped: tuple[str, ...]) -> str | None:
    """Return the first fault of a question that its passage alone shows, `skipped` ones left out, or None.

    The passage is the text that a reader reads, with its headings.
    """
    options = list(answer_options_of(question).values())
    faults = {
        "equal-options": lambda: _repeats(
            [tuple(SIGN.findall(folded_question_text(option))) or option for option in options]
        ),
        "sentence-not-found": lambda: not _stands_in(question["sentence"], passage),
        "paraphrased-options": lambda: _repeats([filter_key_words(option) or option for option in options]),
        "word-overlap": lambda: _overlap_passes(options, question["answer"], passage),
    }
    return next((name for name, found in faults.items() if name not in skipped and found()), None)


def _repeats(values: list) -> bool:
    return len(set(values)) < len(values)


def _stands_in(sentence: str, passage: str) -> bool:
    words = split_words(sentence)
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(split_words(passage))} "


def _overlap_passes(options: list[str], answer: str, passage: str) -> bool:
    """Whether the baseline `overlap` ranks the right option first, without a tie."""
    return metric_rank_range(overlap_baseline_scores(options, passage), string.ascii_uppercase.index(answer)) == (1, 1)


def filterable_question(record: dict, kind: Kind) -> dict:
    """Return a record as a question; an instruction is one whose only option is the output."""
    if kind == "questions":
        return record
    prompt = f"{record['instruction']}\n{record['input']}".strip()
    return {"id": record["id"], "prompt": prompt, "A": record["output"], "answer": "A"}


def filter_repeat_text(record: dict, kind: Kind) -> str:
    """Return the sorted key words of a prompt and its right option, by which near duplicates are found.

    Of instructions, the output is left out: one instruction with two outputs is a duplicate.
    """
    question = filterable_question(record, kind)
    right = question[question["answer"]] if kind == "questions" else ""
    text = f"{question['prompt']} {right}"
    return " ".join(sorted(filter_key_words(text))) or text
