"""What the command line prints of finished steps: figures as tables, and where the results are."""

import sys

from rich.console import Console
from rich.table import Table

from sciqa.core.summary import Summary, summary_interval_text


def print_cli_results(summaries: list[Summary], seconds: float) -> None:
    """Print the results: figures as tables, then a line per step with its path."""
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, highlight=False, markup=False, emoji=False)  # texts are printed as they are
    predicted = [summary.details for summary in summaries if summary.stage == "predict" and summary.details]
    if predicted:
        console.print(_score_table(predicted))
    for summary in summaries:
        if shown := {"ask": _show_sources, "check": _show_lines, "prompt": _show_lines}.get(summary.stage):
            shown(summary.details, console)
        if "evaluation" in summary.details:
            console.print(_retrieval_table(summary.details["evaluation"]))
        if summary.stage == "report":
            _show_differences(summary.details, [row["reader"] for row in predicted], console)
        tabled = ("plan", "audit", "compare", "generate", "evaluate", "sweep")
        for title, rows in summary.details.items() if summary.stage in tabled else []:
            console.print(_plain_table(title, rows))
    for summary in summaries:
        path = f"\n{'':19}{summary.path}" if summary.path else ""
        print(f"{summary.stage:<9} {summary.seconds:6.1f} s  {summary.made}{path}")
    if len(summaries) > 1:
        print(f"{'total':<9} {seconds:6.1f} s")


def _show_differences(details: dict, ran: list[str], console: Console) -> None:
    """Print the gains of the reader shown first over the others; if `ran` names any readers, over those only."""
    from sciqa.report.report import report_gains

    for gain in report_gains(details["readers"], details["shown"]):
        if not ran or gain["other"] in ran:
            console.print(
                f"{gain['reader']} over {gain['other']}: {gain['gain']:+.3f} MAP@3, "
                f"paired interval [{gain['low']:+.3f}, {gain['high']:+.3f}], {gain['questions']:,} questions"
            )


def _show_lines(details: dict, console: Console) -> None:
    """Print how an exam is understood, or what a model reads of it."""
    console.print("\n".join(details["lines"]), soft_wrap=True)


def _show_sources(details: dict, console: Console) -> None:
    """Print the ranking, if any, and the passages that an answer cites, or all passages read if it cites none."""
    for place, (option, probability) in enumerate(details.get("ranking", ()), 1):
        console.print(f"{place:>2}  {probability:.3f}  {option}")
    cited = details.get("cited")
    console.print("\npassages cited" if cited else "\npassages read" + ", none is cited" * (cited is not None))
    for number in cited or details["read"]:
        passage = details["passages"][number - 1]
        where = ", ".join(filter(None, [passage["title"], passage["section"]]))
        console.print(f"[{number}] {where}  {passage.get('url') or ''}".rstrip(), soft_wrap=True)


def _score_table(readers: list[dict]) -> Table:
    table = Table(title="Exam scores, 95 % bootstrap intervals", title_justify="left")
    for column in ("reader", "n", "MAP@3", "accuracy", "ties", "log loss", "ECE", "position bias", "seconds"):
        left = column == "reader"
        table.add_column(column, justify="left" if left else "right", no_wrap=left or column in ("MAP@3", "accuracy"))
    for row in readers:
        table.add_row(
            row["reader"],
            f"{row['questions']:,}",
            summary_interval_text(row, "map_at_3"),
            summary_interval_text(row, "accuracy"),
            f"{row['ties']}",
            f"{row['log_loss']:.3f}",
            f"{row['calibration_error']:.3f}",
            "" if row["position_bias"] is None else f"{row['position_bias']:.3f}",
            f"{row['seconds']:.0f}",
        )
    if (chance := readers[0].get("chance_map_at_3")) is not None:  # tables of earlier versions have none
        first = readers[0]
        table.add_row("(by chance)", f"{first['questions']:,}", f"{chance:.3f}", f"{first['chance_accuracy']:.3f}")
    return table


def _retrieval_table(rows: list[dict]) -> Table:
    table = Table(title=f"Retrieval, {rows[0]['questions']} questions", title_justify="left")
    figures = [name for name in rows[0] if name not in ("dense", "words", "questions")]
    for column in ("dense", "words", *figures):
        table.add_column(column.replace("_at_", "@"), justify="right" if column in figures else "left")
    for row in rows:
        table.add_row(" ".join(row["dense"]), " ".join(row["words"]), *(f"{row[name]:.3f}" for name in figures))
    return table


def _plain_table(title: str, rows: list[dict]) -> Table:
    """Return a table with a column for every key; numbers have three digits, missing values show as a dash."""
    table = Table(title=title, title_justify="left")
    for name in (columns := list(dict.fromkeys(name for row in rows for name in row))):
        number = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_plain(row.get(name, "–")) for name in columns))
    return table


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
