"""Readable text of wikitext, section by section; numbers, units and formulas are kept, page furniture is not."""

import calendar
import html
import logging
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

import mwparserfromhell
from mwparserfromhell.nodes import (
    Argument,
    Comment,
    ExternalLink,
    Heading,
    HTMLEntity,
    Node,
    Tag,
    Template,
    Text,
    Wikilink,
)
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode
from pylatexenc import latex2text, latexwalker
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec
from pylatexenc.latexwalker import LatexMacroNode
from pylatexenc.macrospec import LatexContextDb, std_macro

# fmt: off
#: Headings, in lower case, of sections without prose; their subsections go too.
SKIPPED = {
    "references", "external links", "see also", "further reading", "notes", "footnotes", "bibliography", "sources",
    "citations", "gallery", "image gallery", "works cited", "notes and references", "references and notes",
    "explanatory notes", "general references", "general sources", "cited sources", "cited works", "external sources",
    "references and further reading", "citations and references", "publications", "selected publications",
    "selected bibliography", "literature", "other websites",
}
#: Tags dropped with what they hold.
DROPPED = {
    "ref", "references", "table", "gallery", "imagemap", "timeline", "graph", "score", "hiero", "templatedata",
    "section", "categorytree", "inputbox", "style", "script", "mapframe", "maplink", "includeonly", "source",
    "syntaxhighlight", "templatestyles", "indicator", "phonos",
}
# fmt: on
BLOCKS = {"p", "div", "blockquote", "center", "poem", "pre", "hr", "ul", "ol", "dl", "tr", "h2", "h3", "h4"}
ITEMS = {"li", "dt", "dd"}
MEDIA = {"file", "image", "category", "media", "datei", "bild", "fichier", "archivo", "kategorie", "catégorie", "файл"}
#: Stands at the start of a list item, or before a definition, until lines are put together.
ITEM = "\x01"
MARK = re.compile(f" *{ITEM}[{ITEM} ]*")
MARKERS = re.compile(r"^([:;*#]{9})[:;*#]+", re.MULTILINE)

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
REFERENCE = re.compile(r"<ref\b[^<>]*?(?:/>|>[^<]*(?:<(?!/?ref\b)[^<]*)*</ref\s*>)", re.IGNORECASE)
#: Most links are like this; with these replaced first, reading takes a third less time.
PLAIN_LINK = re.compile(r"\[\[(?:[^][{}|<>:\n]+\|)?([^][{}|<>:=\n]+)\]\]")
HEADING = re.compile(r"^(=.*=)[ \t]*$", re.MULTILINE)
REDIRECT = re.compile(r"\s*#[^\W\d]\w*+\s*+:?\s*+\[\[[^\[\]]+\]\]")
DISAMBIGUATION = re.compile(
    r"\{\{\s*+(?:(?:[^{}|\n]*[ _:])?(?:disambiguation|disambig|disamb)|disambig-cleanup|disambiguation cleanup|dab"
    r"|hndis|geodis|mathdab|numberdis|roaddis|schooldis|hospitaldis|begriffsklärung|homonymie|desambiguación|desambiguação"
    r"|disambigua|неоднозначность)\s*+(?:\||\}\})",
    re.IGNORECASE,
)
#: Without any of these a text is plain.
REMARKABLE = re.compile(r"[\[\]{}<&*#;:|=_~']")
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?|simple")
#: What is left in a text node where the parser found no end to something.
REMNANT = re.compile(r"''|[{}]{2}|\[\[|\]\]|__[A-Z]|<|\n[ \t]*(?:[|!]|\{\|)")
REMNANTS = (
    (re.compile(r"\n[ \t]*(?:\{\||[|!]|\{\{[^{}|\n]*(?=\n))[^\n]*"), "\n"),
    (re.compile(r"</?[A-Za-z]\w*(?:[\s/][^<>\n]*)?>|<ref\b[^<>\n]*|<!--"), ""),
    (re.compile(r"\{\{|\}\}|\[\[|\]\]|__[A-Z]{3,}__"), ""),
    (re.compile(r"'{5,}|'''|''"), ""),
)
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
#: What nests, by its openings and ends; elements that hold no wikitext are passed over whole.
NESTING = re.compile(
    r"<(?:br|hr|wbr|li|dd|dt|td|th|tr|img)\b[^<>]*>"
    r"|<(math|chem|ce|nowiki|pre)\b[^<>]*>[^<]*(?:<(?!/?\1\b)[^<]*)*</\1"
    r"|(?P<open>\{\{|\[\[|\{\||<[a-z]\w*|\[(?=\w+:|//))|(?P<end>\}\}|\]\]|\|\}|</[a-z]\w*|/>|\])",
    re.IGNORECASE,
)
ENDS = {"}}": "{{", "]]": "[[", "|}": "{|", "]": "["}
#: Openings without an end in an article, times its characters, above which they are cut out: the parser's time
#: grows with it, a second for some five million.
WORST = 2_000_000
#: Openings within each other that are believed; the parser gives up at 40.
DEEPEST = 30

#: What makes the parts of a fraction take parentheses.
OPERATOR = re.compile(r"[^\w.^,′'°]")
SCRIPT = re.compile(r"(?<=[\^_])\{([^{}]*)\}")
HYPHEN = re.compile(r"(?<![^\W\d_]{2})-|-(?![^\W\d_]{2})")
SPACED = re.compile(r"(?<=[(\[]) | (?=[)\],;])")
STYLED = re.compile("[\U0001d400-\U0001d7ff\u2102-\u2134]")
ARROWS = {"<=>": "⇌", "<-->": "⇌", "<->": "↔", "-->": "→", "->": "→", "<-": "←"}
ARROW = re.compile("|".join(ARROWS))
CHARGE = re.compile(r"\^?\((\d*)([+−-])\)|\^\{?(\d*)([+−-])\}?")
ISOTOPE = re.compile(r"\^\{?(\d+)\}?_\{?\d+\}?(?=[A-Z])")
BOND = re.compile(r"(?<=[\w)\]^])-(?![\w(\[])")
POWER = re.compile(r"(?<=[^\W\d_°%])([-−]?\d+)(?=$|[./ ⋅·*)])")
MIXED = re.compile(r"(\d)\+(\d+/)")
EXPONENT = re.compile(r"[eE]([-−+]?\d+)$")
PREFIXED = re.compile(r"e(\d+)(?=\D)")

#: Words between the ends of a range in {{convert}} and {{val}}.
RANGES = {"to": " to ", "-": "–", "–": "–", "and": " and ", "or": " or ", "x": " × ", "×": " × ", "*": " × "}
RANGES |= {"by": " by ", "+/-": " ± ", "±": " ± ", "to(-)": " to ", "and(-)": " and ", "xx": " × ", ",": ", "}
#: Codes of {{convert}} that are not written like the unit.
UNITS = {"C": "°C", "F": "°F", "degC": "°C", "degF": "°F", "C-change": "°C", "F-change": "°F", "R": "°R"}
UNITS |= {"kph": "km/h", "ly": "light-years", "AU": "au", "Ohm": "Ω", "um": "μm", "u": "Da", "USgal": "US gal"}
UNITS |= {f"{power}{unit}": f"{power} {unit}" for power in ("sq", "cu") for unit in ("in", "ft", "yd", "mi")}
UNITS |= {"sqm": "m2", "sqkm": "km2", "cum": "m3", "cukm": "km3", "impgal": "imp gal", "Cal": "kcal"}
#: Units that a second, smaller one may follow in {{convert}}.
SMALLER = {"ft": "in", "lb": "oz", "st": "lb", "mi": "yd", "yd": "ft"}
#: Constants of {{physical constants}}, CODATA 2022: value, power of ten, unit.
CONSTANTS = {
    "c": ("299792458", "", "m/s"),
    "h": ("6.62607015", "-34", "J⋅s"),
    "hbar": ("1.054571817", "-34", "J⋅s"),
    "e": ("1.602176634", "-19", "C"),
    "k": ("1.380649", "-23", "J/K"),
    "NA": ("6.02214076", "23", "mol^−1"),
    "R": ("8.31446261815324", "", "J/(mol⋅K)"),
    "G": ("6.67430(15)", "-11", "m^3/(kg⋅s^2)"),
    "me": ("9.1093837139(28)", "-31", "kg"),
    "mp": ("1.67262192595(52)", "-27", "kg"),
    "mn": ("1.67492750056(85)", "-27", "kg"),
    "eps0": ("8.8541878188(14)", "-12", "F/m"),
    "mu0": ("1.25663706127(20)", "-6", "N/A^2"),
    "alpha": ("7.2973525643(11)", "-3", ""),
    "a0": ("5.29177210544(82)", "-11", "m"),
    "sigma": ("5.670374419", "-8", "W/(m^2⋅K^4)"),
}


def read_sections(wikitext: str) -> list[tuple[str, str]]:
    """Return the sections of an article that hold prose: heading and text, its paragraphs separated by newlines.

    The lead has the heading "", a subsection its path ("History > Early work").
    """
    commented, end, rest = wikitext.rpartition("-->")
    source = COMMENT.sub("", commented + end) + rest.replace("<!--", "")
    source = MARKERS.sub(r"\1", PLAIN_LINK.sub(r"\1", REFERENCE.sub("", source)))
    lead, *pieces = HEADING.split(source)
    sections, path = [], []
    for heading, piece in zip(["", *pieces[::2]], [lead, *pieces[1::2]], strict=True):
        if heading:
            name = heading.strip("=")
            level = (len(heading) - len(name)) // 2
            path = [*(above for above in path if above[0] < level), (level, _read(name, len(source)))]
        names = [name for _, name in path]
        if SKIPPED.isdisjoint(name.casefold() for name in names) and (text := _read(piece, len(source))):
            sections.append((" > ".join(names), text))
    return sections


def is_redirect(wikitext: str) -> bool:
    """Return whether a page sends its reader to another, in whatever language it says so."""
    return REDIRECT.match(wikitext) is not None


def is_disambiguation(wikitext: str) -> bool:
    """Return whether a page lists the articles that its title may mean."""
    return DISAMBIGUATION.search(wikitext) is not None


def _read(wikitext: str, length: int) -> str:
    """Return the text of a part of an article of some length."""
    if REMARKABLE.search(wikitext) is None:
        return _lines(wikitext)
    openings = sum(map(wikitext.count, ("{{", "{|", "[", "<")))
    if openings * length > WORST and len(unclosed := _find_unclosed(wikitext)) * length > WORST:
        ends = [0, *(end for _, end in unclosed)]
        starts = [*(start for start, _ in unclosed), len(wikitext)]
        wikitext = "".join(wikitext[end:start] for end, start in zip(ends, starts, strict=True))
    try:
        return _lines(_text(mwparserfromhell.parse("\n" + wikitext, skip_style_tags=True)))
    except (ParserError, RecursionError):
        return _lines(_plain(wikitext))


def _find_unclosed(wikitext: str) -> list[tuple[int, int]]:
    """Return where openings without an end, or nested too deep, begin and end."""
    unclosed, open_ = [], []
    for match in NESTING.finditer(wikitext):
        if opening := match["open"]:
            if len(open_) < DEEPEST:
                open_.append((opening.lower(), match.span()))
            else:
                unclosed.append(match.span())
        elif end := match["end"]:
            kind = ENDS.get(end) or (open_[-1][0] if end == "/>" and open_ else end.lower().replace("/", ""))
            places = [place for place, (opening, _) in enumerate(open_) if opening == kind]
            if places:
                unclosed += [span for _, span in open_[places[-1] + 1 :]]
                del open_[places[-1] :]
    return sorted(unclosed + [span for _, span in open_])


def _lines(text: str) -> str:
    """Put paragraphs and list items on a line each, and tidy what dropped markup left behind."""
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


def _text(code: Wikicode | None) -> str:
    return "".join([RENDERED[type(node)](node) for node in code.nodes]) if code else ""


def _plain(text: str) -> str:
    if REMNANT.search(text):
        for pattern, replacement in REMNANTS:
            text = pattern.sub(replacement, text)
    return text


def _link(node: Wikilink) -> str:
    title = str(node.title).strip()
    space, colon, name = title.partition(":")
    if colon and space:
        if space.strip().lower() in MEDIA or (node.text is None and LANGUAGE.fullmatch(space)):
            return ""
        title = name if node.text is None and space.islower() else title
    return _text(node.text) if node.text else _plain(title.removeprefix(":"))


def _tag(node: Tag) -> str:
    if node.wiki_markup:
        return "" if node.wiki_markup == "{|" else "\n" if node.wiki_markup.startswith("-") else ITEM
    name = str(node.tag).strip().lower()
    if name in DROPPED:
        return ""
    if name in FORMULAS:
        return FORMULAS[name](str(node.contents))
    if name == "br":
        return " "
    text = html.unescape(str(node.contents or "")) if name in ("nowiki", "pre") else _text(node.contents)
    if name == "sup":
        return _superscript(text)
    if name in BLOCKS:
        return f"\n\n{text}\n\n"
    return f"\n{ITEM}{text}\n" if name in ITEMS else text


def _superscript(text: str) -> str:
    text = text.strip()
    return text if text in ("", "th", "st", "nd", "rd") else "^" + HYPHEN.sub("−", text)


class Arguments(dict):
    """Arguments of a template as text: by number from 1, or by name; "" for one that is not there."""

    def __missing__(self, key: object) -> str:
        return ""

    def numbered(self, first: int = 1) -> list[str]:
        """Return the arguments from a number on that are not empty."""
        keys = sorted(key for key in self if isinstance(key, int) and key >= first)
        return [self[key] for key in keys if self[key]]


def _template(node: Template) -> str:
    name = " ".join(str(node.name).replace("_", " ").split()).lower().removeprefix("template:")
    head, colon, rest = name.partition(":")
    handler = TEMPLATES.get(head + colon) or (_first if name.startswith(("lang-", "script/")) else None)
    if handler is None:
        return ""
    arguments = Arguments({1: rest} if colon else {})
    for parameter in node.params:
        key = str(parameter.name).strip()
        arguments[int(key) if key.isdecimal() and len(key) < 4 else key] = _text(parameter.value).strip()
    return handler(arguments)


def _first(arguments: Arguments) -> str:
    return arguments[1]


def _second(arguments: Arguments) -> str:
    return arguments[2]


def _last(arguments: Arguments) -> str:
    return (arguments.numbered() or [""])[-1]


def _joined(arguments: Arguments) -> str:
    return "".join(arguments.numbered())


def _spaced(arguments: Arguments) -> str:
    return " ".join(arguments.numbered())


def _listed(arguments: Arguments) -> str:
    return "".join(f"\n{ITEM}{value}" for value in arguments.numbered()) + "\n"


def _quoted(arguments: Arguments) -> str:
    return f"\n\n{arguments['text'] or arguments['quote'] or arguments[1]}\n\n"


def _minus(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") else text


def _number(text: str) -> str:
    """Write a number as it is read: a true minus sign, and a power of ten for `e6`."""
    text = MIXED.sub(r"\1 \2", _minus(text))
    power = EXPONENT.search(text)
    return f"{text[: power.start()]}×10^{_minus(power[1])}" if power else text


def _unit(code: str) -> str:
    return POWER.sub(lambda power: "^" + _minus(power[1]), code).replace(".", "⋅").replace("*", "⋅")


def _range(arguments: Arguments) -> tuple[str, int]:
    """Return the number, or range of numbers, that arguments begin with, and how many they are."""
    text, at = _number(arguments[1]), 1
    while (word := RANGES.get(arguments[at + 1])) and arguments[at + 2]:
        text, at = text + word + _number(arguments[at + 2]), at + 2
    return text, at


def _val(arguments: Arguments) -> str:
    text, count = _range(arguments)
    upper, lower = arguments[2], arguments[3]
    if count == 1 and upper.startswith("("):
        text += upper
    elif count == 1 and lower:
        text += f"+{upper.lstrip('+')}−{lower.lstrip('-−')}"
    elif count == 1 and upper:
        text += "±" + upper.lstrip("±")
    if power := arguments["e"]:
        text = f"({text})" if count > 1 or (upper and not upper.startswith("(")) else text
        text = f"{text}×10^{_minus(power)}" if text else f"10^{_minus(power)}"
    unit = _unit(arguments["u"] or arguments["ul"])
    if per := arguments["up"] or arguments["upl"]:
        unit += "/" + _unit(per)
    space = " " if unit and unit not in ("%", "°", "′", "″", "'", '"') and not unit.startswith("/") else ""
    return f"{arguments['p']}{text}{space}{unit}{arguments['s']}{arguments['end']}"


def _convert(arguments: Arguments) -> str:
    text, at = _range(arguments)
    code = arguments[at + 1]
    if power := PREFIXED.match(code):
        text, code = f"{text}×10^{power[1]}", code[power.end() :]
    text = f"{text} {_unit(UNITS.get(code, code))}"
    if arguments[at + 2][:1].isdecimal() and SMALLER.get(code, "") == arguments[at + 3]:
        text += f" {arguments[at + 2]} {arguments[at + 3]}" if arguments[at + 3] else ""
    return text


def _quotient(parts: list[str]) -> str:
    """Write a fraction on a line, with parentheses where it takes them."""
    parts = [f"({part})" if OPERATOR.search(part) else part for part in parts]
    return "/".join(parts)


def _fraction(arguments: Arguments) -> str:
    whole, parts = [], arguments.numbered()
    if len(parts) == 1:
        parts = ["1", *parts]
    elif len(parts) > 2:
        whole, parts = parts[:1], parts[1:3]
    return " ".join([*whole, _quotient(parts)])


def _chem(arguments: Arguments) -> str:
    parts = arguments.numbered()
    if len(parts) > 2 and parts[0].isdecimal() and parts[1].isdecimal():
        del parts[1]
    return _equation("".join(f"({part})" if part[-1] in "+-−" and part != "-" else part for part in parts))


def _equation(text: str) -> str:
    """Write charges and arrows of a chemical formula as they are read."""
    text = ARROW.sub(lambda arrow: ARROWS[arrow[0]], text)
    text = ISOTOPE.sub(r"^\1", text)
    text = re.sub(r"[_{}]", "", CHARGE.sub(_charge, text))
    return BOND.sub("−", text).replace("*", "·")


def _charge(match: re.Match) -> str:
    digits, sign = match[1] or match[3] or "", match[2] or match[4]
    return f"{'^' if digits else ''}{digits}{'+' if sign == '+' else '−'}"


def _nuclide(arguments: Arguments) -> str:
    element, mass = arguments[1], arguments[2]
    if element.isdecimal():
        element, mass = mass, element
    return f"{element[:1].upper()}{element[1:]}-{mass}" if mass else element


def _stacked(arguments: Arguments) -> str:
    above, below = arguments["p"] or arguments[1], arguments["b"] or arguments[2]
    if above[:1] in ("+", "-", "−", "±") and below[:1] in ("+", "-", "−"):
        return above + _minus(below)
    return below + (_superscript(above) if above else "")


def _constant(arguments: Arguments) -> str:
    value, power, unit = CONSTANTS.get(arguments[1], ("", "", ""))
    return _val(Arguments({1: value, "e": power, "u": unit}))


def _as_of(arguments: Arguments) -> str:
    year, month, day = arguments[1], arguments[2], arguments[3]
    if month.isdecimal() and len(month) < 3 and 1 <= int(month) <= 12:
        month = calendar.month_name[int(month)]
    date = " ".join(part for part in (day, month, year) if part)
    word = "Since" if arguments["since"] else "As of"
    word = word.lower() if arguments["lc"] else word
    return arguments["alt"] or (date if arguments["bare"] else f"{word} {date}")


def _about(word: str) -> Callable[[Arguments], str]:
    return lambda arguments: f"{word} " + "–".join(arguments.numbered())


def _around(left: str, right: str) -> Callable[[Arguments], str]:
    return lambda arguments: f"{left}{arguments[1]}{right}"


def _grouped(arguments: Arguments) -> str:
    number = arguments[1].replace(",", "")
    whole, point, decimals = number.partition(".")
    return f"{int(whole):,}{point}{decimals}" if whole.isdecimal() and len(whole) < 100 else arguments[1]


def _root(arguments: Arguments) -> str:
    return f"{_superscript(arguments[2])}√{_quotient([arguments[1]])}"


def _foreign(arguments: Arguments) -> str:
    others = ", ".join(arguments.numbered(2)[:2])
    return f"{arguments[1]} ({others})" if others else arguments[1]


def _of_latex(node: LatexMacroNode, l2tobj: LatexNodes2Text) -> str:
    parts = [l2tobj.nodelist_to_text([part]).strip() for part in node.nodeargd.argnlist if part is not None]
    return (
        f"({parts[0]} choose {parts[1]})" if "binom" in node.macroname and len(parts) == 2 else _quotient(parts) + " "
    )


def _script(match: re.Match) -> str:
    return f"{{({match[1]})}}" if re.search("[-+=/,]", match[1].strip()[1:-1]) else match[0]


@lru_cache(1 << 12)
def _math(latex: str) -> str:
    """Write a LaTeX formula on a line."""
    latex = SCRIPT.sub(_script, html.unescape(latex))
    try:
        text = LATEX.latex_to_text(latex, latex_context=LATEX_SYNTAX)
    except (RecursionError, ValueError, TypeError, AttributeError, IndexError):
        text = re.sub(r"[\\{}$&]+", " ", latex)
    text = STYLED.sub(lambda letter: unicodedata.normalize("NFKC", letter[0]), HYPHEN.sub("−", text))
    return SPACED.sub("", " ".join(text.split()))


def _chemical(latex: str) -> str:
    return _equation(_math(ARROW.sub(lambda arrow: ARROWS[arrow[0]], latex)).replace("−", "-"))


def _latex_converter() -> tuple[LatexNodes2Text, LatexContextDb]:
    """Return the converter of formulas and the syntax it reads, with what pylatexenc's own lack."""
    fractions = ("frac", "nicefrac", "tfrac", "dfrac", "cfrac", "binom", "tbinom", "dbinom")
    signs = {"ne": "≠", "R": "ℝ", "N": "ℕ", "Z": "ℤ", "Q": "ℚ", "C": "ℂ", "xrightarrow": " → ", "implies": " ⟹ "}
    syntax = latexwalker.get_default_latex_context_db()
    macros = [std_macro(name, False, 2) for name in fractions]
    syntax.add_context_category("formulas", [*macros, std_macro("xrightarrow", True, 1)], prepend=True)
    texts = latex2text.get_default_latex_context_db()
    macros = [MacroTextSpec(name, _of_latex) for name in fractions]
    macros += [MacroTextSpec(name, sign) for name, sign in signs.items()]
    texts.add_context_category("formulas", macros, prepend=True)
    logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)
    return LatexNodes2Text(latex_context=texts, math_mode="text"), syntax


LATEX, LATEX_SYNTAX = _latex_converter()
FORMULAS = {"math": _math, "chem": _chemical, "ce": _chemical}
RENDERED: dict[type[Node], Callable[[Node], str]] = {
    Text: lambda node: _plain(node.value),
    Template: _template,
    Wikilink: _link,
    Tag: _tag,
    HTMLEntity: lambda node: html.unescape(str(node)),
    ExternalLink: lambda node: _text(node.title),
    Argument: lambda node: _text(node.default),
    Heading: lambda node: f"\n\n{_text(node.title)}\n\n",
    Comment: lambda node: "",
}
# fmt: off
SIGNS = {
    "!": "|", "=": "=", "'": "'", "'s": "'s", "-": "-", "·": " · ", "•": " • ", "°": "°", "°c": "°C", "°f": "°F",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "lambda": "λ", "mu": "μ", "pi": "π", "sigma": "σ",
    "tau": "τ", "phi": "φ", "hbar": "ħ", "ohm": "Ω", "infinity": "∞", "degree": "°", "micro": "μ", "minus": "−",
    "plus-minus": "±", "+-": "±", "times": "×", "cdot": "⋅", "middot": " · ", "dot": " · ", "bull": " • ",
    "bullet": " • ", "dagger": "†", "extinct": "†", "okina": "ʻ", "ellipsis": "…", "langle": "⟨", "rangle": "⟩",
    "nbsp": " ", "thinsp": " ", "thin space": " ", "hairsp": " ", "nnbsp": " ", "space": " ", "spaces": " ", "pad": " ",
    "ndash": "–", "en dash": "–", "endash": "–", "mdash": "—", "em dash": "—", "emdash": "—", "snd": " – ",
    "spnd": " – ", "spaced ndash": " – ", "spaced en dash": " – ", "sndash": " – ", "dash": " – ",
    "solar mass": "M☉", "solar radius": "R☉", "solar luminosity": "L☉", "earth mass": "M⊕", "jupiter mass": "MJ",
    "co2": "CO2", "h2o": "H2O",
}
#: Templates that say their first argument, their second, or their last.
FIRST = (
    "nowrap", "nobr", "nobreak", "no wrap", "nowraplinks", "math", "mvar", "bigmath", "var", "big", "small", "smaller",
    "larger", "resize", "abbr", "abbrlink", "tooltip", "em", "strong", "ins", "mono", "code", "tt", "samp", "kbd",
    "key", "serif", "sans-serif", "smallcaps", "sc", "sub", "subscript", "overline", "underline", "overarc", "vec",
    "nobold", "noitalic", "normal", "vanchor", "visible anchor", "notatypo", "not a typo", "as written", "sic",
    "linktext", "center", "block indent", "blockindent", "bi", "columns-list", "chem name", "chemical formula",
    "subatomicparticle", "subatomic particle", "allele", "flag", "flagcountry", "flagu", "cn span",
    "citation needed span", "clarify span", "bold", "italic", "wikt", "equationref", "no.", "unité",
)
SECOND = (
    "lang", "wikt-lang", "langx", "script", "color", "colour", "font color", "fontcolor", "colored text", "sort", "hs",
    "hover title", "numblk", "hilite",
)
LAST = (
    "transl", "transliteration", "gli", "glossary link", "equationnote",
)
# fmt: on
#: What a template says, by its name in lower case; one that is not here says nothing.
TEMPLATES: dict[str, Callable[[Arguments], str]] = {
    **{name: lambda arguments, sign=sign: sign for name, sign in SIGNS.items()},
    **dict.fromkeys(FIRST, _first),
    **dict.fromkeys(SECOND, _second),
    **dict.fromkeys(LAST, _last),
    **dict.fromkeys(("convert", "cvt", "conv", "unit"), _convert),
    **dict.fromkeys(("frac", "fraction", "sfrac", "tfrac", "dfrac", "mfrac", "nicefrac"), _fraction),
    **dict.fromkeys(("chem", "chem/atom"), _chem),
    **dict.fromkeys(("nuclide", "simplenuclide", "simple nuclide", "nuclide2", "isotope"), _nuclide),
    **dict.fromkeys(("sup", "superscript", "^"), lambda arguments: _superscript(arguments[1])),
    **dict.fromkeys(("e", "esp", "x10^"), lambda arguments: f"×10^{_minus(arguments[1])}"),
    **dict.fromkeys(("sqrt", "radic", "radical"), _root),
    **dict.fromkeys(("physconst", "physical constants"), _constant),
    **dict.fromkeys(("as of", "asof"), _as_of),
    **dict.fromkeys(("circa", "c.", "ca."), _about("c.")),
    **dict.fromkeys(("floruit", "fl."), _about("fl.")),
    **dict.fromkeys(("quote", "blockquote", "cquote", "quotation", "poemquote", "poem quote"), _quoted),
    **dict.fromkeys(("unbulleted list", "ubl", "bulleted list", "ordered list", "plainlist", "flatlist"), _listed),
    **dict.fromkeys(("term", "glossary term", "defn", "glossary definition"), _listed),
    **dict.fromkeys(("nihongo", "nihongo3"), _foreign),
    **dict.fromkeys(("mp", "mpl", "mpl-"), _joined),
    **dict.fromkeys(("ship", "species"), _spaced),
    **dict.fromkeys(("angbr", "angle bracket"), _around("⟨", "⟩")),
    **dict.fromkeys(("interlanguage link", "ill"), lambda arguments: arguments["lt"] or arguments[1]),
    "val": _val,
    "gaps": lambda arguments: _val(Arguments({**arguments, 1: _joined(arguments), 2: "", 3: ""})),
    "10^": lambda arguments: f"10^{_minus(arguments[1])}",
    "chem2": lambda arguments: _equation(arguments[1]),
    "tmath": lambda arguments: _math(arguments[1]),
    "su": _stacked,
    "subsup": lambda arguments: f"{arguments[1]}{arguments[2]}{_superscript(arguments[3])}",
    "formatnum:": _grouped,
    "reign": _about("r."),
    "hlist": lambda arguments: ", ".join(arguments.numbered()),
    "abs": _around("|", "|"),
    "norm": _around("‖", "‖"),
    "floor": _around("⌊", "⌋"),
    "ceil": _around("⌈", "⌉"),
    "bra": _around("⟨", "|"),
    "ket": _around("|", "⟩"),
    "bra-ket": lambda arguments: f"⟨{arguments[1]}|{arguments[2]}⟩",
    "pars": _around("(", ")"),
    "mset": _around("{", "}"),
    "prime": _around("", "′"),
    "deg": _around("", "°"),
    "±": _around("±", ""),
    "us$": _around("US$", ""),
    "usd": _around("US$", ""),
    "£": _around("£", ""),
    "€": _around("€", ""),
    "hms": _around("HMS ", ""),
    "uss": _around("USS ", ""),
    "mya": lambda arguments: "–".join(arguments.numbered()) + " million years ago",
    "ma": lambda arguments: "–".join(arguments.numbered()) + " Ma",
    "ra": lambda arguments: " ".join(map("{}{}".format, arguments.numbered(), "hms")),
    "dec": lambda arguments: " ".join(map("{}{}".format, arguments.numbered(), "°′″")),
    "music": lambda arguments: {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯"}.get(arguments[1], ""),
}
