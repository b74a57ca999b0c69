"""Convert LaTeX and chemical formulas to one line of text; an unknown macro leaves its arguments or its name."""

import html
import logging
import re
import unicodedata
from functools import lru_cache

from pylatexenc import latex2text, latexwalker
from pylatexenc.latex2text import EnvironmentTextSpec, LatexNodes2Text, MacroTextSpec
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexMacroNode
from pylatexenc.macrospec import LatexContextDb, std_environment, std_macro

#: Hyphens that are minus signs, because they are not between words.
HYPHEN = re.compile(r"(?<![^\W\d_]{2})-|-(?![^\W\d_]{2})")
#: A part of a fraction with such a character is put in parentheses.
OPERATOR = re.compile(r"[^\w.^,′'°]")
SCRIPT = re.compile(r"(?<=[\^_])\{([^{}]*)\}")
SPACED = re.compile(r"(?<=[(\[]) | (?=[)\],;])")
STYLED = re.compile("[\U0001d400-\U0001d7ff\u2102-\u2134]")
DEGREES = re.compile(r"\^ ?∘|∘(?= ?[CF]\b)")
#: Fraction macros between numerator and denominator, and the delimiters that end these parts.
INFIX = re.compile(r"\\(over|atop|choose|brace|brack)(?![A-Za-z])")
BOUND = re.compile(r"\\(?:left|right|begin|end)(?![A-Za-z])|\\.|[{}&]", re.DOTALL)
#: Maximum number of such fractions per formula, so that a malformed one does not take long.
MAX_INFIX = 64
OPENING, CLOSING = ("{", r"\left", r"\begin"), ("}", r"\right", r"\end")

ARROWS = {"<=>": "⇌", "<-->": "⇌", "<->": "↔", "-->": "→", "->": "→", "<-": "←"}
ARROW = re.compile("|".join(ARROWS))
CHARGE = re.compile(r"\^?\((\d*)([+−-])\)|\^\{?(\d*)([+−-])\}?")
ISOTOPE = re.compile(r"\^\{?(\d+)\}?_\{?\d+\}?(?=[A-Z])")
BOND = re.compile(r"(?<=[\w)\]^])-(?![\w(\[])")
RAISED = str.maketrans("0123456789n+-−()", "⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ⁺⁻⁻⁽⁾")

# fmt: off
FRACTIONS = ("frac", "nicefrac", "sfrac", "flatfrac", "tfrac", "dfrac", "cfrac", "binom", "tbinom", "dbinom")
#: Macros that only affect appearance, by their arguments in the notation of pylatexenc.
SILENT = {
    "": (
        "limits", "nolimits", "displaylimits", "displaystyle", "textstyle", "scriptstyle", "scriptscriptstyle", "hline",
        "nonumber", "notag", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl",
        "Biggr", "bigm", "Bigm", "left", "right", "middle", "rm", "bf", "it", "sf", "tt", "cal", "frak", "mit", "sl",
        "tiny", "scriptsize", "footnotesize", "small", "normalsize", "large", "Large", "LARGE", "huge", "Huge",
        "mathop", "mathbin", "mathrel", "mathord", "mathopen", "mathclose", "mathpunct", "mathinner", "boldsymbol",
        "pmb", "bold", "mathnormal", "allowbreak", "strut", "mathstrut", "smash", "boxed", "cancel", "bcancel",
        "xcancel", "overparen", "underparen", "operatorname", "operatornamewithlimits", "relax", "noindent", "!", "/",
        "nobreak", "cr", "hfill", "hfil", "mkern", "substack", "sideset", "mskip", "emph", "centering",
    ),
    "{": (
        "phantom", "hphantom", "vphantom", "label", "pagecolor", "hskip", "vskip", "cline", "mathchoice",
    ),
    "[{": ("color",),
    "{{": ("rule",),
}
SIGNS = {
    "ne": "≠", "R": "ℝ", "reals": "ℝ", "Reals": "ℝ", "N": "ℕ", "natnums": "ℕ", "Z": "ℤ", "Q": "ℚ", "C": "ℂ",
    "Complex": "ℂ", "cnums": "ℂ", "implies": " ⟹ ", "|": "‖", "lt": " < ", "gt": " > ", "degree": "°", "deg": "deg ",
    "Pr": "Pr ", "lg": "lg ", "bmod": " mod ", "mod": " mod ", "land": " ∧ ", "lor": " ∨ ", "and": " ∧ ",
    "or": " ∨ ", "And": " & ", "real": "Re ", "Re": "Re ", "Im": "Im ", "image": "Im ", "AA": "Å", "Alpha": "Α",
    "emptyset": "∅", "empty": "∅", "prime": "′", "ldots": "…", "larr": "←", "rarr": "→", "textquotesingle": "'",
    "O": "∅", "eth": "ð", "aleph": "ℵ", "dotsb": "⋯", "dotsc": "…", "dotsm": "⋯", "dotsi": "⋯", "dotso": "…",
    "longrightarrow": " ⟶ ", "gets": " ← ", "colon": ": ", "textmu": "µ", "micro": "µ", "ohm": "Ω", "celsius": "°C",
    "percent": "%", "sim": "∼", "euro": "€", "oiint": "∯", "oiiint": "∰", "exist": "∃", "isin": "∈", "sube": "⊆",
    "supe": "⊇", "thetasym": "ϑ", "lbrack": "[", "rbrack": "]", "backslash": "\\", "argmax": "arg max ",
    "argmin": "arg min ", "lcm": "lcm ", "sgn": "sgn ", "neg": "¬", "lnot": "¬", "smallint": "∫",
}
#: Macros with arguments: the arguments, and the format of the output.
FORMS = {
    "overset": ("{{", "{1}^({0})"), "stackrel": ("{{", "{1}^({0})"), "underset": ("{{", "{1}_({0})"),
    "xrightarrow": ("[{", " →[{1}; {0}] "), "xleftarrow": ("[{", " ←[{1}; {0}] "), "pmod": ("{", " (mod {0})"),
    "pod": ("{", " ({0})"), "cancelto": ("{{", "{1}→{0}"), "tag": ("*{", " ({1})"), "mbox": ("{", "{0}"),
    "hbox": ("{", "{0}"), "textsf": ("{", "{0}"), "unicode": ("{", "{0}"), "SI": ("{{", "{0} {1}"),
    "qty": ("{{", "{0} {1}"), "num": ("{", "{0}"), "si": ("{", "{0}"), "unit": ("{", "{0}"),
}
#: Brackets of matrices and similar environments.
MATRICES = {
    "matrix": "[]", "smallmatrix": "[]", "array": "[]", "subarray": "[]", "pmatrix": "()", "bmatrix": "[]",
    "Bmatrix": "{}", "vmatrix": "||", "Vmatrix": "‖‖", "cases": "{}", "rcases": "{}", "dcases": "{}",
}
# fmt: on


@lru_cache(1 << 12)
def math_formula(latex: str) -> str:
    """Convert a LaTeX formula to one line of text."""
    latex = SCRIPT.sub(_script, _put_before(html.unescape(latex)))
    try:
        text = LATEX.latex_to_text(latex, latex_context=LATEX_SYNTAX)
    except (RecursionError, ValueError, TypeError, AttributeError, LookupError):
        text = re.sub(r"[\\{}$&]+", " ", latex)
    text = STYLED.sub(lambda letter: unicodedata.normalize("NFKC", letter[0]), HYPHEN.sub("−", text))
    text = DEGREES.sub("°", text).replace("”", "''").replace("^′", "′")
    return SPACED.sub("", " ".join(text.split()))


def chemical_formula(latex: str) -> str:
    """Convert a chemical formula or equation (mhchem) to one line of text."""
    return format_chemical_equation(math_formula(ARROW.sub(lambda arrow: ARROWS[arrow[0]], latex)).replace("−", "-"))


def format_chemical_equation(text: str) -> str:
    """Format charges, isotopes, bonds and arrows of a chemical formula."""
    text = ARROW.sub(lambda arrow: ARROWS[arrow[0]], text)
    text = ISOTOPE.sub(r"^\1", text)
    text = re.sub(r"[_{}]", "", CHARGE.sub(_charge, text))
    return BOND.sub("−", text).replace("*", "·")


def format_formula_fraction(parts: list[str]) -> str:
    """Format a fraction on one line, with parentheses where needed."""
    return "/".join(f"({part})" if OPERATOR.search(part) else part for part in parts)


def format_formula_root(degree: str, radicand: str) -> str:
    """Format a root; a degree other than 2 is a superscript or in brackets, so that it is not read as a factor."""
    raised = degree.replace(" ", "").translate(RAISED)
    sign = "√" if degree in ("", "2") else f"{raised}√" if not raised.isascii() else f"√[{degree}]"
    return sign + radicand


def _charge(match: re.Match) -> str:
    digits, sign = match[1] or match[3] or "", match[2] or match[4]
    return f"{'^' if digits else ''}{digits}{'+' if sign == '+' else '−'}"


def _script(match: re.Match) -> str:
    return f"{{({match[1]})}}" if re.search(r"[-+=/,]|\\to\b", match[1].strip()[1:-1]) else match[0]


def _put_before(latex: str) -> str:
    r"""Rewrite infix fractions as prefix macros: `a \over b` as `\frac{a}{b}`."""
    for _ in range(MAX_INFIX):
        if not (found := INFIX.search(latex)):
            break
        start, end = _group(latex, found.start(), found.end())
        parts = f"{{{latex[start : found.start()]}}}{{{latex[found.end() : end]}}}"
        macro = "frac" if found[1] in ("over", "atop") else "binom"
        latex = f"{latex[:start]}\\{macro}{parts}{latex[end:]}"
    return latex


def _group(latex: str, at: int, after: int) -> tuple[int, int]:
    """Return the start and end of the group around the macro from `at` to `after`."""
    start, depth, inner = 0, 0, []
    for bound in BOUND.finditer(latex, 0, at):
        if bound[0] in OPENING:
            inner.append(start)
            start = bound.end()
        elif bound[0] in CLOSING and inner:
            start = inner.pop()
        elif bound[0] in ("&", "\\\\"):
            start = bound.end()
    if latex[:start].endswith(r"\left"):
        start += 1
    for bound in BOUND.finditer(latex, after):
        depth += (bound[0] in OPENING) - (bound[0] in CLOSING)
        if depth < 0 or (not depth and bound[0] in ("&", "\\\\")):
            return start, bound.start()
    return start, len(latex)


def _parts(node: LatexMacroNode, writer: LatexNodes2Text) -> list[str]:
    """Return the texts of a macro's arguments, "" for an omitted one."""
    arguments = node.nodeargd.argnlist if node.nodeargd and node.nodeargd.argnlist else []
    return [writer.nodelist_to_text([part]).strip() if part is not None else "" for part in arguments]


def _fraction(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    parts = _parts(node, l2tobj)
    if len(parts) != 2 or not all(parts):  # a formula that was cut off
        return " ".join([f" {node.macroname}", *parts, ""])
    if "binom" in node.macroname:
        return f"({parts[0]} choose {parts[1]})"
    return format_formula_fraction(parts) + " "


def _root(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    degree, radicand = ["", *_parts(node, l2tobj)][-2:]
    return format_formula_root(degree, f"({radicand})")


def _formed(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    return FORMS[node.macroname][1].format(*[*_parts(node, l2tobj), "", ""]).replace("^()", "").replace("; ]", "]")


def _chemical(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    return chemical_formula("".join(part.latex_verbatim() for part in node.nodeargd.argnlist if part is not None)[1:-1])


def _unknown(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    """Return the texts of an unknown macro's arguments, or without any, the HTML sign or the word of its name."""
    parts = [part for part in _parts(node, l2tobj) if part]
    sign = html.unescape(f"&{node.macroname};")
    return " ".join(parts) or (sign if len(sign) == 1 else f" {node.macroname} ")


def _matrix(node: LatexEnvironmentNode, l2tobj: LatexNodes2Text) -> str:
    rows: list[list[list]] = [[[]]]
    for part in node.nodelist:
        if getattr(part, "specials_chars", None) == "&":
            rows[-1].append([])
        elif getattr(part, "macroname", None) == "\\":
            rows.append([[]])
        else:
            rows[-1][-1].append(part)
    texts = [", ".join(filter(None, (l2tobj.nodelist_to_text(cell).strip() for cell in row))) for row in rows]
    left, right = tuple(MATRICES[node.environmentname.rstrip("*")])
    return f"{left}{'; '.join(filter(None, texts))}{right}"


def _converter() -> tuple[LatexNodes2Text, LatexContextDb]:
    """Return the converter of formulas and its syntax: those of pylatexenc, extended by missing macros."""
    syntax = latexwalker.get_default_latex_context_db()
    silent = [(name, arguments) for arguments, names in SILENT.items() for name in names]
    macros = [std_macro(name, "{{") for name in FRACTIONS]
    macros += [std_macro(name, arguments) for name, arguments in silent]
    macros += [std_macro(name, arguments) for name, (arguments, _) in FORMS.items()]
    macros += [std_macro(name, "{") for name in ("ce", "pu", "cf")] + [std_macro("operatorname", "*{")]
    environments = [std_environment(name, "{") for name in ("subarray", "alignat", "alignat*", "alignedat")]
    syntax.add_context_category("formulas", macros, environments, prepend=True)
    texts = latex2text.get_default_latex_context_db()
    macros = [MacroTextSpec(name, "") for name, _ in silent]
    macros += [MacroTextSpec(name, sign) for name, sign in SIGNS.items()]
    macros += [MacroTextSpec(name, _fraction) for name in FRACTIONS]
    macros += [MacroTextSpec(name, _formed) for name in FORMS]
    macros += [MacroTextSpec(name, _chemical) for name in ("ce", "pu", "cf")]
    macros += [MacroTextSpec("sqrt", _root), MacroTextSpec("operatorname", "%(2)s ")]
    environments = [EnvironmentTextSpec(f"{name}{star}", _matrix) for name in MATRICES for star in ("", "*")]
    texts.add_context_category("formulas", macros, environments, prepend=True)
    texts.set_unknown_macro_spec(MacroTextSpec("", _unknown))
    logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)
    return LatexNodes2Text(latex_context=texts, math_mode="text"), syntax


LATEX, LATEX_SYNTAX = _converter()


def superscript(text: str) -> str:
    """Write a superscript after a caret, except the endings of ordinal numbers."""
    text = text.strip()
    return text if text in ("", "th", "st", "nd", "rd") else "^" + HYPHEN.sub("−", text)
