"""The audit table: from findings to a row per question, kinds of contamination, and scores on the clean remainder."""

from collections import Counter
from collections.abc import Iterable, Sequence

import pyarrow as pa

from sciqa.audit.words import question_words, share_of_words_found
from sciqa.core import storage, tables
from sciqa.exam.metrics import score_metrics
from sciqa.exam.open_exam import Exam
from sciqa.exam.question_table import QuestionTable

#: Version of what the audit computes. Raise it with every change, so that tables of earlier versions are not kept.
AUDIT_FORMAT = 2
#: What stands where: the same question, the nearest one by its vector, one of the same gold article, and runs of words
#: in other questions and in passages.
EXACT, NEAR, ARTICLE, QUESTION_RUN, PASSAGE_RUN = "exact", "near", "article", "question run", "passage run"
#: Kinds of questions, the strongest first; the first two are contaminated.
KINDS = (EXACT, NEAR, "same article", "clean")
#: What a file of findings says besides them of its part of a corpus: articles compared, and what was not.
ARTICLES, LEFT_OUT = "articles", "left out"
#: Slices by kind.
SLICES = ("clean", "contaminated", "same article")
FINDINGS = pa.schema(
    [("what", pa.string()), ("question", pa.int64()), ("start", pa.int64()), ("value", pa.float64())]
    + [(name, pa.string()) for name in ("source", "name", "title")]
)
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "kind", "nearest", "nearest_source")),
        *((name, pa.float64()) for name in ("cosine", "question_prompt_share", "question_share")),
        ("question_run", pa.int64()),
        *((name, pa.string()) for name in ("question_run_id", "question_run_source")),
        *((name, pa.float64()) for name in ("passage_prompt_share", "passage_share")),
        ("passage_run", pa.int64()),
        *((name, pa.string()) for name in ("passage", "passage_title")),
    ]
)
FIGURES = ("map_at_3", "accuracy")
METRICS = pa.schema(
    [("reader", pa.string()), ("slice", pa.string()), ("questions", pa.int64())]
    + [(f"{name}{end}", pa.float64()) for name in FIGURES for end in ("", "_low", "_high")]
    + [(f"chance_{name}", pa.float64()) for name in FIGURES]
)


class ContaminationFindings:
    """The strongest finding of each kind for each question, whatever the order in which findings are added.

    Runs of words are kept by their first word, since several together can cover a question.

    Attributes:
        best: the findings.
        articles: number of articles of a corpus that were compared.
        left_out: files and articles of a corpus that were not, each with its reason.
    """

    def __init__(self) -> None:
        self.best: dict[tuple[str, int, int], tuple[float, str, str, str]] = {}
        self.articles = 0
        self.left_out: set[str] = set()

    def add(self, what: str, question: int, value: float, place: tuple[str, str, str], start: int = 0) -> None:
        """Keep a finding unless there is a stronger one; of equally strong ones, that of the first place by name.

        Args:
            what: kind of the finding, such as `NEAR`.
            question: number of the question in the exam.
            value: strength: a cosine, or the number of words of a run.
            place: source, name and title of the question or text that was found.
            start: first word of a run in the question.
        """
        key, new = (what, question, start), (-value, *place)
        if key not in self.best or new < self.best[key]:
            self.best[key] = new

    def read(self, path: str) -> None:
        """Add the findings of a file that `write` wrote."""
        for row in tables.read_table(path).to_pylist():
            if row["what"] == ARTICLES:
                self.articles += int(row["value"])
            elif row["what"] == LEFT_OUT:
                self.left_out.add(row["name"])
            else:
                place = (row["source"], row["name"], row["title"])
                self.add(row["what"], row["question"], row["value"], place, row["start"])

    def write(self, path: str) -> None:
        """Write all findings as a Parquet file."""
        rows: list[tuple] = [(*key, -value, *place) for key, (value, *place) in sorted(self.best.items())]
        rows.append((ARTICLES, -1, 0, float(self.articles), "", "", ""))
        rows += [(LEFT_OUT, -1, 0, 0.0, "", line, "") for line in sorted(self.left_out)]
        named = [dict(zip(FINDINGS.names, row, strict=True)) for row in rows]
        tables.write_table(path, pa.Table.from_pylist(named, schema=FINDINGS))


def contamination_rows(
    questions: Sequence[dict], findings: ContaminationFindings, inputs: dict, seed: int
) -> list[dict]:
    """Return the rows of the audit table, in the order of the questions, which are all of the exam.

    Of the table's inputs, `ngram`, `similarity`, `share`, and what was compared, `against` and `texts`, are taken; runs
    of words have at least `seed`.
    """
    found: dict[str, dict[int, list]] = {}
    for (what, question, start), finding in findings.best.items():
        found.setdefault(what, {}).setdefault(question, []).append((start, *finding))
    rows = []
    for number, asked in enumerate(questions):
        own = {what: by_question[number] for what, by_question in found.items() if number in by_question}
        words, prompt = question_words(asked)
        row: dict = {"id": asked["id"]}
        for what, before, compared in ((QUESTION_RUN, "question", "against"), (PASSAGE_RUN, "passage", "texts")):
            if inputs[compared]:
                runs = [(start, int(-value)) for start, value, *_ in own.get(what, ())]
                row[f"{before}_prompt_share"] = share_of_words_found(runs, prompt, inputs["ngram"], seed)
                row[f"{before}_share"] = share_of_words_found(runs, len(words), inputs["ngram"], seed)
                row[f"{before}_run"] = max((length for _, length in runs), default=0)
        row |= _places(own)
        rows.append(row | {"kind": _kind(row, own, inputs)})
    return rows


def _places(own: dict[str, list]) -> dict:
    """Return where the nearest question and the longest runs stand.

    Args:
        own: findings of one question by their kind, each with first word, negative value, source, name and title.
    """
    row: dict = {}
    for what in (NEAR, EXACT):  # the copy of a question is its nearest one
        for _, value, source, name, _ in own.get(what, ()):
            row |= {"nearest": name, "nearest_source": source, "cosine": -value}
    if QUESTION_RUN in own:
        _, source, name, _ = min(finding for _, *finding in own[QUESTION_RUN])
        row |= {"question_run_id": name, "question_run_source": source}
    if PASSAGE_RUN in own:
        _, _, name, title = min(finding for _, *finding in own[PASSAGE_RUN])
        row |= {"passage": name, "passage_title": title}
    return row


def _kind(row: dict, own: dict[str, list], inputs: dict) -> str:
    if EXACT in own:
        return KINDS[0]
    if row.get("cosine", -1) >= inputs["similarity"] or (row.get("question_share") or 0) >= inputs["share"]:
        return KINDS[1]
    return KINDS[2] if ARTICLE in own else KINDS[3]


def contamination_slices(rows: Iterable[dict], inputs: dict) -> dict[str, list[int]]:
    """Return the numbers of the questions in each slice of an audited exam, such as `clean`, that is not empty.

    Questions too short to be looked up in texts are in neither of the slices by n-grams.
    """
    held, not_held = (f"{inputs['ngram']}-gram {where} {inputs['texts_name']}" for where in ("in", "not in"))
    named: dict[str, list[int]] = {name: [] for name in ("all", *SLICES, held, not_held)}
    for number, row in enumerate(rows):
        named["all"].append(number)
        if inputs["against"]:
            named[row["kind"] if row["kind"] in SLICES else "contaminated"].append(number)
        if inputs["texts"] and row["passage_share"] is not None:
            named[held if row["passage_share"] else not_held].append(number)
    return {name: numbers for name, numbers in named.items() if numbers}


def contamination_slice_scores(rows: list[dict], inputs: dict, readers: dict[str, dict]) -> list[dict]:
    """Return the scores of each reader of `readers_of_finished_answers` on each of the slices that has answers.

    Returns:
        Rows with `reader`, `slice` and the figures of `sciqa.exam.metrics.score_metrics`.
    """
    scored = []
    for name, numbers in contamination_slices(rows, inputs).items():
        for reader, each in readers.items():
            if made := score_metrics([each["answers"][number] for number in numbers]):
                scored.append({"reader": reader, "slice": name} | made)
    return scored


def contamination_summary(rows: list[dict], inputs: dict) -> str:
    """Return in words how many questions stand elsewhere."""
    kinds, parts = Counter(row["kind"] for row in rows), []
    of = f"of {len(rows):,} questions"
    if inputs["against"]:
        names = ", ".join(inputs["against"])
        dirty = f"{kinds[EXACT] + kinds[NEAR]:,} {of} stand in {names}"
        parts.append(dirty + f" ({kinds[EXACT]:,} exact, {kinds[NEAR]:,} near)")
        if same := kinds["same article"]:
            parts.append(f"with only their article there: {same:,}")
    if inputs["texts"]:
        parts.append(
            f"{sum(bool(row['passage_share']) for row in rows):,} {of} have an n-gram of {inputs['ngram']} words in "
            f"{inputs['texts_name']}"
        )
        if short := sum(row["passage_share"] is None for row in rows):
            parts.append(f"too short to be looked up there: {short:,}")
    return "; ".join(parts)


def contamination_mark(row: dict, inputs: dict) -> str:
    """Return in words where a question stands, from its row and the table's inputs; an empty text if nowhere."""
    parts = []
    if row["kind"] in KINDS[:2]:
        stand = f"{row['question_run_source']} {row['question_run_id']}"
        words = f", {row['question_run']:,} words in a row in {stand}" * bool(row["question_run"])
        parts.append(f"{row['kind']}: {row['nearest_source']} {row['nearest']}, cosine {row['cosine']:.2f}{words}")
    elif row["kind"] == "same article":
        parts.append("same article as another question")
    if row["passage_share"]:
        where = row["passage_title"] or row["passage"]
        parts.append(f"{row['passage_run']:,} words in a row in {inputs['texts_name']}, {where}")
    return "; ".join(parts)


def read_contamination(output: str, exam: Exam) -> tuple[list[dict], dict] | None:
    """Return the rows of a run's audit table and its inputs; None if there is none for this exam."""
    folder = storage.join_paths(output, "audit")
    if not tables.is_finished_table(folder):
        return None
    manifest = tables.read_table_manifest(folder, "audit")
    if manifest.get("format") != AUDIT_FORMAT or manifest["inputs"]["exam"] != exam.sha256:
        return None
    return QuestionTable(folder, manifest["rows"]).read_all(exam).to_pylist(), manifest["inputs"]
