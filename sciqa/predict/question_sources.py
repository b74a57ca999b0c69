"""What readers read with each question: its context, passages and examples."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # spares readers without a model here the import of PyTorch
    from sciqa.predict.shots import ShotChooser


def join_question_sources(
    questions: list[dict], found: list[tuple[dict, ...]], chooser: "ShotChooser | None" = None
) -> list[tuple[dict, str]]:
    """Return each question with its `passages` and `examples`, as templates take them, and its context.

    Args:
        questions: rows of the exam table.
        found: for each question, its rows in the tables that the reader takes; the first is that of contexts, if any.
        chooser: chooses the examples; None for none.
    """
    examples = chooser.choose(questions) if chooser else [[]] * len(questions)
    return [
        (
            question | {"passages": rows[0].get("passages") or [] if rows else [], "examples": each},
            rows[0]["context"] if rows else "",
        )
        for question, rows, each in zip(questions, found, examples, strict=True)
    ]
