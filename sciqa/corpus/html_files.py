"""Read web pages as text, section by section; scripts, navigation and forms are left out, tables are kept."""

import codecs
import re
from collections.abc import Iterator

from selectolax.lexbor import LexborHTMLParser, LexborNode

from sciqa.core.errors import InputError
from sciqa.corpus.corpus_files import decode_corpus_file
from sciqa.corpus.formulas import math_formula, superscript
from sciqa.corpus.table_text import TableCell, read_table_cell, table_lines
from sciqa.corpus.wikitext_lines import BREAK, ITEM, join_wikitext_cell_lines, join_wikitext_lines

#: Declaration of the encoding in a web page.
CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
#: Declared encodings, and the larger ones that browsers use instead.
LARGER = {"iso-8859-1": "cp1252", "latin1": "cp1252", "latin-1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
LARGER |= {"utf-16": "utf-8", "utf-16le": "utf-8", "utf-16be": "utf-8"}  # a declaration in ASCII rules out UTF-16
#: Codecs of Python that are no encodings of pages.
NO_ENCODINGS = {"undefined", "idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7"}
# fmt: off
DROPPED = {
    "script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "nav", "footer", "button", "select",
    "input", "textarea", "dialog", "audio", "video", "head", "_comment", "annotation", "annotation-xml",
}
BLOCKS = {
    "p", "div", "section", "article", "main", "header", "aside", "figure", "figcaption", "blockquote", "pre", "ul",
    "ol", "dl", "hr", "form", "fieldset", "details", "summary", "address", "center", "body", "html",
}
# fmt: on
ITEMS = {"li", "dt", "dd"}
HEADINGS = {f"h{level}": level for level in range(1, 7)}


def read_html(data: bytes, path: str) -> tuple[str, list[tuple[str, str]]]:
    """Return a web page's title ("" if it has none) and its sections as (heading, text).

    A subsection's heading is its path ("History > Early work"). Scripts, navigation and forms are left out.

    Raises:
        InputError: the page declares an unknown encoding, or is not in the declared one (by default UTF-8).
    """
    declared = CHARSET.search(data[:4096])
    encoding = declared[1].decode().lower() if declared else "utf-8"
    try:
        codec = codecs.lookup(LARGER.get(encoding, encoding)).name
        if codec in NO_ENCODINGS:
            raise LookupError(codec)
        text = decode_corpus_file(data, path, codec)
    except LookupError as error:
        raise InputError(f"{path}: says that it is in {encoding!r}, which is not known; convert it to UTF-8") from error
    page = LexborHTMLParser(text)
    titles = (" ".join(heading.text().split()) for heading in page.css("title:not(svg *), h1"))
    title = next(filter(None, titles), "")
    # By section: the headings above it and its own, each with its level, and its text in pieces.
    sections: list[tuple[list[tuple[int, str]], list[str]]] = [([], [])]
    root = page.body or page.root
    for piece in _pieces(root) if root is not None else ():
        headings, parts = sections[-1]
        if isinstance(piece, str):
            parts.append(piece)
        else:
            sections.append(([*(above for above in headings if above[0] < piece[0]), piece], []))
    named = (
        (" > ".join(name for _, name in headings if name != title), join_wikitext_lines("".join(parts)))
        for headings, parts in sections
    )
    return title, [(name, text) for name, text in named if text]


def _pieces(node: LexborNode) -> Iterator[str | tuple[int, str]]:
    """Yield the text below a node, and its headings as (level, text)."""
    for child in node.iter(include_text=True):
        tag = child.tag
        if tag == "-text":
            yield child.text_content or ""
        elif tag in HEADINGS:
            yield HEADINGS[tag], join_wikitext_cell_lines(_text(child))
        elif tag is not None and tag not in DROPPED and not _is_note(child):
            yield from _element(child, tag)


def _element(node: LexborNode, tag: str) -> Iterator[str | tuple[int, str]]:
    if tag == "table":
        yield "\n\n" + "".join(f"\n{ITEM}{line}" for line in table_lines(_rows(node))) + "\n\n"
    elif tag == "math":
        yield math_formula(node.attributes.get("alttext") or _text(node))
    elif tag == "sup":
        yield superscript(_text(node))
    elif tag == "br":
        yield BREAK
    elif tag in ITEMS:
        yield f"\n{ITEM}"
        yield from _pieces(node)
        yield "\n"
    elif tag in BLOCKS:
        yield "\n\n"
        yield from _pieces(node)
        yield "\n\n"
    else:
        yield from _pieces(node)


def _is_note(node: LexborNode) -> bool:
    """Return whether an element is a footnote marker or hidden."""
    attributes = node.attributes
    return "hidden" in attributes or (node.tag == "sup" and "reference" in (attributes.get("class") or ""))


def _text(node: LexborNode) -> str:
    return "".join(piece if isinstance(piece, str) else f"\n\n{piece[1]}\n\n" for piece in _pieces(node))


def _rows(table: LexborNode) -> Iterator[list[TableCell]]:
    for part in table.iter():
        if part.tag == "tr":
            yield [
                read_table_cell(_text(cell), cell.tag == "th", cell.attributes)
                for cell in part.iter()
                if cell.tag in ("td", "th")
            ]
        elif part.tag == "caption":
            yield [TableCell(join_wikitext_cell_lines(_text(part)))]
        else:
            yield from _rows(part)
