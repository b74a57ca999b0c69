"""Texts on a report page: formulas in readable form."""

import re

from markupsafe import Markup, escape

from sciqa.corpus.formulas import math_formula

#: Formulas between TeX delimiters. Between single dollars, a formula neither begins nor ends with white space, and no
#: digit follows it, so that amounts of money do not match.
FORMULA = re.compile(
    r"(?<!\\)(?:\$\$(?P<display>[^$]+?)\$\$|\\\[(?P<block>.+?)\\\]|\\\((?P<inline>.+?)\\\)"
    r"|\$(?P<dollars>(?![\s$])(?:\\.|[^$\\\n]){0,500}?(?<![\s\\]))\$(?![\d$]))",
    re.DOTALL,
)
#: Characters that occur only in formulas, and words, which hint at text.
SIGN = re.compile(r"[\\^_{}=<>]")
WORD = re.compile(r"[^\W\d_]{2,}")


def report_formulas_as_html(text: str) -> Markup:
    """Return a text as HTML with formulas in one-line form, each with its TeX source as title."""
    parts, at = [], 0
    for found in FORMULA.finditer(text):
        dollars = found["dollars"] or found["display"]
        if dollars and not _is_formula(dollars):
            continue
        source = dollars or found["block"] or found["inline"]
        if written := math_formula(source):
            parts += [escape(text[at : found.start()]), _formula(written, found[0])]
            at = found.end()
    return Markup("").join([*parts, escape(text[at:])])


def _is_formula(source: str) -> bool:
    """Return whether the text between dollars is a formula, and not text between two amounts of money."""
    return bool(SIGN.search(source)) or not (WORD.search(source) and " " in source)


def _formula(written: str, source: str) -> Markup:
    return Markup('<span class="formula" title="{}">{}</span>').format(source, written)
