"""Text put together from marked-up pieces: paragraphs, list items and table rows on a line each."""

import re

#: Stands at the start of a list item or a table's row, or before a definition, until lines are put together.
ITEM = "\x01"
#: Stands for a line break within a paragraph; it is white space.
BREAK = "\x1f"
#: Stand around the name of a template of which nothing else is known; alone on a line it is left out.
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
#: Hyphens that are minus signs: not between words.
HYPHEN = re.compile(r"(?<![^\W\d_]{2})-|-(?![^\W\d_]{2})")


def put_lines(text: str) -> str:
    """Put paragraphs and list items on a line each, and tidy what dropped markup left behind."""
    if "\x02" in text:
        text = ALONE.sub("", text).translate(NAMES)
    for pattern, replacement in TIDY:
        text = pattern.sub(replacement, text)
    lines, continued = [], False
    for line in text.split("\n"):
        item = line.startswith(ITEM)
        line = MARK.sub(": ", line.strip(ITEM + " "))
        if continued and line and not item:
            lines[-1] += " " + line
        elif line:
            lines.append(line)
        continued = bool(line) and not item
    return "\n".join(lines)


def put_cell(text: str) -> str:
    """Put what stands in a cell, its lines and list items, on one line."""
    if "\x02" in text:
        text = text.translate(NAMES)
    if CELL.search(text) is None:
        return " ".join(text.split())
    pieces = (piece.strip(" ,;") for piece in CELL.split(text))
    return ", ".join(" ".join(piece.split()) for piece in pieces if piece)


def superscript(text: str) -> str:
    """Write what stands above the line behind a caret, but for the ends of ordinal numbers."""
    text = text.strip()
    return text if text in ("", "th", "st", "nd", "rd") else "^" + HYPHEN.sub("−", text)
