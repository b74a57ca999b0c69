"""Join pieces of text with markers into lines: one per paragraph, list item or table row."""

import re

#: Marker before a list item, table row or definition, until lines are joined.
ITEM = "\x01"
#: Marker of a line break within a paragraph; it counts as white space.
BREAK = "\x1f"
#: Markers around the name of an unknown template; such names alone on a line are left out.
NAMED = "\x02{}\x03"
ALONE = re.compile(r"(?m)^ *(?:\x02[^\x03\n]*\x03 *)+$")
NAMES = str.maketrans("", "", "\x02\x03")
MARK = re.compile(f" *{ITEM}[{ITEM} ]*")
CELL = re.compile(f"[\n{ITEM}{BREAK}]+")
TIDY = (
    (re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]"), ""),
    (re.compile(r"\^(?<![^\s(\[,;]\^)(?=\d)"), ""),
    (re.compile(r"[^\S\n ]| {2,}"), " "),
    (re.compile(r"\([ ,;:]+"), "("),
    (re.compile(r"(?<![ ,;])[ ,;]++\)"), ")"),
    (re.compile(r" \(\)"), ""),
    (re.compile(r" +([,;.])(?=\s|$)"), r"\1"),
    (re.compile(r"  +"), " "),
)


def join_wikitext_lines(text: str) -> str:
    """Put each paragraph and list item on one line, and clean up after dropped markup."""
    if "\x02" in text:
        text = ALONE.sub("", text).translate(NAMES)
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    lines: list[str] = []
    continued = False
    for line in text.split("\n"):
        item = line.startswith(ITEM)
        line = MARK.sub(": ", line.strip(ITEM + " "))
        if continued and line and not item:
            lines[-1] += " " + line
        elif line:
            lines.append(line)
        continued = bool(line) and not item
    return "\n".join(lines)


def join_wikitext_cell_lines(text: str) -> str:
    """Put the content of a table cell, with its lines and list items, on one line."""
    if "\x02" in text:
        text = text.translate(NAMES)
    if CELL.search(text) is None:
        return " ".join(text.split())
    pieces = (piece.strip(" ,;") for piece in CELL.split(text))
    return ", ".join(" ".join(piece.split()) for piece in pieces if piece)
