"""Write what an instruction writer is tuned on: train.jsonl and validation.jsonl in a folder, for `papers.sh`.

An example is the prompt of `sciqa generate --kind instructions` about sentences of an article of the demo corpus, and
the JSON of a question of the packaged exam with the sentence that decides it, as `instruction` and `output`.
"""

import hashlib
import json
import sys
from pathlib import Path

from sciqa.core.packaged import packaged_path
from sciqa.exam import read_exam
from sciqa.generate.passage_template import read_passage_template
from sciqa.generate.replies import reply_sentences

#: Questions that one sentence answers, by their column `kind`.
KINDS = ("cause", "description", "number", "property", "role")
TRAINED, VALIDATED = 192, 16
#: Sentences of an example's passage.
SENTENCES = 4


def main(folder: Path) -> None:
    """Write the examples, in an order that hashes of their questions give."""
    corpus = json.loads(packaged_path("demo").read_text(encoding="utf-8"))
    questions = [row for row in read_exam("train").to_pylist() if row["kind"] in KINDS]
    questions.sort(key=lambda row: hashlib.sha256(row["prompt"].encode()).digest())
    examples = [example for row in questions if (example := make_example(row, corpus[row["title"]]["extract"]))]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", examples[:TRAINED]), ("validation", examples[TRAINED:][:VALIDATED])):
        lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def make_example(question: dict, article: str) -> list[dict[str, str]] | None:
    """Return the messages about an article's sentences, or None if none of them is the evidence of the question."""
    sentences = reply_sentences(article)
    if question["evidence"] not in sentences:
        return None
    at = sentences.index(question["evidence"])
    first = at - at % SENTENCES
    text = " ".join(sentences[first : first + SENTENCES])
    passage = {"title": question["topic"], "section": "", "text": text}
    reply = {"instruction": question["prompt"], "input": "", "output": question["evidence"]}
    asked = read_passage_template(None, "instructions").render_passage(passage, 4).messages()
    return [*asked, {"role": "assistant", "content": json.dumps(reply, ensure_ascii=False)}]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
