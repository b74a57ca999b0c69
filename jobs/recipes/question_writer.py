"""Write what a question writer is tuned on, from the packaged exam, and passages to write new questions about.

Usage, after `sciqa corpus`: python jobs/recipes/question_writer.py [OUTPUT], by default sciqa-run. It writes

OUTPUT/writer/train.jsonl, validation.jsonl: `messages` for `sciqa finetune --objective instruct`. The prompt is that of
    `sciqa generate`, and the answer the JSON of a question of the splits train and direct-train with its passage. Every
    hundredth article, by a hash of its title, is for validation.
OUTPUT/writer/unasked.jsonl: 500 articles that no question of any split is about, drawn by a hash of their titles.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.core.storage import absolute_path
from sciqa.exam import read_exam
from sciqa.exam.answer_options import answer_options_of
from sciqa.exam.exam_files import SPLITS
from sciqa.generate.filters import filter_key_words, filter_option_order
from sciqa.generate.passage_template import read_passage_template
from sciqa.generate.replies import FIELDS, reply_sentences

TRAINED = ("train", "direct-train")
UNASKED = 500


def title_hash(title: str) -> int:
    """Return a number that follows from a title alone."""
    return int.from_bytes(hashlib.sha256(title.encode()).digest()[:8])


def make_example(question: dict, passages: list[dict]) -> dict:
    """Return the messages of one example: the prompt about a passage, and the JSON of a question that it answers.

    The passage and its sentence are those that share the most words with the question's evidence, or without any with
    its prompt and its right option.

    Args:
        question: row of the exam table.
        passages: rows of the passages table, those of the question's article.
    """
    wanted = filter_key_words(question.get("evidence") or f"{question['prompt']} {question[question['answer']]}")
    sentences = [(sentence, passage) for passage in passages for sentence in reply_sentences(passage["text"])]
    sentence, passage = max(sentences, key=lambda pair: len(filter_key_words(pair[0]) & wanted))
    options = answer_options_of(question)
    arranged = filter_option_order({"answer": question["answer"]} | options, question["id"])
    fields = {"sentence": sentence, "prompt": question["prompt"], "answer": arranged["answer"]}
    fields |= {"options": {letter: arranged[letter] for letter in options}}
    reply = json.dumps({name: fields[name] for name in FIELDS["questions"]}, ensure_ascii=False)
    asked = read_passage_template(None, "questions").render_passage(passage, len(options)).messages()
    return {"messages": [*asked, {"role": "assistant", "content": reply}]}


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(output: Path) -> None:
    """Write the three files."""
    tables.read_table_manifest(absolute_path(str(output / "passages")), "corpus")  # unfinished passages are refused
    by_title: dict[str, list[dict]] = {}
    for passage in tables.read_table(str(output / "passages")).to_pylist():
        by_title.setdefault(passage["title"], []).append(passage)
    questions = [question for split in TRAINED for question in read_exam(split).to_pylist()]
    if missing := {question["title"] for question in questions} - by_title.keys():
        sys.exit(f"{output}/passages: no article {min(missing)!r}; passages of the whole demo corpus expected")
    held_out = {question["title"] for question in questions if title_hash(question["title"]) % 100 == 0}
    for name in ("train", "validation"):
        chosen = [question for question in questions if (question["title"] in held_out) == (name == "validation")]
        rows = [make_example(question, by_title[question["title"]]) for question in chosen]
        write_lines(output / "writer" / f"{name}.jsonl", sorted(rows, key=lambda row: title_hash(json.dumps(row))))
    asked = {question["title"] for split in SPLITS for question in read_exam(split).to_pylist()}
    unasked = sorted((title for title in by_title if title not in asked), key=title_hash)[:UNASKED]
    texts = [by_title[title][0] for title in unasked]
    write_lines(output / "writer" / "unasked.jsonl", [{n: row[n] for n in ("title", "text", "url")} for row in texts])


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "sciqa-run"))
    except InputError as error:
        sys.exit(str(error))
