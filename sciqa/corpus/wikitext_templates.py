"""Convert wiki templates to text: by rules for known names, from the arguments for the others."""

import calendar
import re
from collections.abc import Callable
from functools import lru_cache

from sciqa.corpus.formulas import (
    format_chemical_equation,
    format_formula_fraction,
    format_formula_root,
    math_formula,
    superscript,
)
from sciqa.corpus.wikitext_lines import ITEM, NAMED, join_wikitext_cell_lines

POWER = re.compile(r"(?<=[^\W\d_°%])([-−]?\d+)(?=$|[./ ⋅·*)])")
MIXED = re.compile(r"(\d)\+(\d+/)")
EXPONENT = re.compile(r"[eE]([-−+]?\d+)$")
PREFIXED = re.compile(r"e(\d+)(?=\D)")
NUMBER = re.compile(r"[-+−]?[\d,. ]*\d")

#: Separators of ranges in {{convert}} and {{val}}, and how they are written in text.
RANGES = {"to": " to ", "-": "–", "–": "–", "and": " and ", "or": " or ", "x": " × ", "×": " × ", "*": " × "}
RANGES |= {"by": " by ", "+/-": " ± ", "±": " ± ", "to(-)": " to ", "and(-)": " and ", "xx": " × ", ",": ", "}
#: Unit codes of {{convert}} that differ from the unit's usual notation.
UNITS = {"C": "°C", "F": "°F", "degC": "°C", "degF": "°F", "C-change": "°C", "F-change": "°F", "R": "°R"}
UNITS |= {"kph": "km/h", "ly": "light-years", "AU": "au", "Ohm": "Ω", "um": "μm", "u": "Da", "USgal": "US gal"}
UNITS |= {f"{power}{unit}": f"{power} {unit}" for power in ("sq", "cu") for unit in ("in", "ft", "yd", "mi")}
UNITS |= {"sqm": "m2", "sqkm": "km2", "cum": "m3", "cukm": "km3", "impgal": "imp gal", "Cal": "kcal"}
#: Units in {{convert}} that may be followed by a second, smaller one.
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


class WikitextTemplateArguments(dict):
    """Arguments of a template as text, by number from 1 or by name; "" for a missing one."""

    def __missing__(self, key: object) -> str:
        return ""

    def numbered(self, first: int = 1) -> list[str]:
        """Return the non-empty numbered arguments, beginning at number `first`."""
        keys = sorted(key for key in self if isinstance(key, int) and key >= first)
        return [self[key] for key in keys if self[key]]


Rule = Callable[[WikitextTemplateArguments], str]


@lru_cache(1 << 14)
def find_wikitext_template_rule(name: str) -> tuple[Rule | None, str]:
    """Return the rule for a template (None if it produces no text), and the part of its name after a colon."""
    written = " ".join(name.replace("_", " ").split())
    short = written.lower().removeprefix("template:")
    head, colon, rest = short.partition(":")
    if rule := TEMPLATES.get(head + colon):
        return rule, rest
    if short.startswith(("lang-", "script/")):
        return _first, rest
    if SILENT.match(short):
        return None, ""
    if "\n" in name.lstrip() or BOX.search(short):
        return _boxed, ""
    return lambda arguments: _unknown(written.removeprefix("Template:"), arguments), rest


def _first(arguments: WikitextTemplateArguments) -> str:
    return arguments[1]


def _joined(arguments: WikitextTemplateArguments) -> str:
    return "".join(arguments.numbered())


def _spaced(arguments: WikitextTemplateArguments) -> str:
    return " ".join(arguments.numbered())


def _listed(arguments: WikitextTemplateArguments) -> str:
    return "".join(f"\n{ITEM}{value}" for value in arguments.numbered()) + "\n"


def _quoted(arguments: WikitextTemplateArguments) -> str:
    source = ", ".join(filter(None, (arguments[key] for key in ("author", "source", "title"))))
    return f"\n\n{arguments['text'] or arguments['quote'] or arguments[1]}\n\n" + (f"{source}\n\n" if source else "")


def _unknown(name: str, arguments: WikitextTemplateArguments) -> str:
    """Return the arguments of an unknown template as text, or its name if it has none."""
    numbered, named = arguments.numbered(), _telling(arguments)
    if not numbered and named and EDITORS.issuperset(named):
        return ""
    if numbered and len(name) == 3 and name.isupper() and NUMBER.match(numbered[0]):
        return f"{name} {numbered[0]}"
    if numbered:
        return " ".join(numbered)
    return "; ".join(f"{key}: {join_wikitext_cell_lines(value)}" for key, value in named.items()) or NAMED.format(name)


def _boxed(arguments: WikitextTemplateArguments) -> str:
    """Format the arguments of an infobox, or of a template written like one, as lines "label: value"."""
    lines = [join_wikitext_cell_lines(value) for value in arguments.numbered()]
    for key, value in _telling(arguments).items():
        row, text = BOX_ROW.fullmatch(key), join_wikitext_cell_lines(value)
        if row is None:
            lines.append(f"{key.replace('_', ' ')}: {text}")
        elif row[1] == "data":
            label = join_wikitext_cell_lines(arguments[f"label{row[2]}"])
            lines.append(f"{label}: {text}" if label else text)
        elif row[1] != "label" or not arguments[f"data{row[2]}"]:
            lines.append(text)
    return "\n\n" + "".join(f"\n{ITEM}{line}" for line in lines) + "\n\n"


def _telling(arguments: WikitextTemplateArguments) -> dict[str, str]:
    """Return the non-empty named arguments that concern the article, not its layout."""
    named = ((key, value) for key, value in arguments.items() if isinstance(key, str) and value)
    return {key: value for key, value in named if not _is_furniture(key) and not SETTING.fullmatch(value)}


@lru_cache(1 << 14)
def _is_furniture(key: str) -> bool:
    return FURNITURE.match(key) is not None


def _minus(text: str) -> str:
    return "−" + text[1:] if text.startswith("-") else text


def _number(text: str) -> str:
    """Format a number, with a true minus sign, and a power of ten for `e6`."""
    text = MIXED.sub(r"\1 \2", _minus(text))
    power = EXPONENT.search(text)
    return f"{text[: power.start()]}×10^{_minus(power[1])}" if power else text


def _unit(code: str) -> str:
    return POWER.sub(lambda power: "^" + _minus(power[1]), code).replace(".", "⋅").replace("*", "⋅")


def _range(arguments: WikitextTemplateArguments) -> tuple[str, int]:
    """Return the number or range that the arguments begin with, and how many arguments it takes."""
    text, at = _number(arguments[1]), 1
    while (word := RANGES.get(arguments[at + 1])) and arguments[at + 2]:
        text, at = text + word + _number(arguments[at + 2]), at + 2
    return text, at


def _val(arguments: WikitextTemplateArguments) -> str:
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


def _convert(arguments: WikitextTemplateArguments) -> str:
    text, at = _range(arguments)
    code = arguments[at + 1]
    if power := PREFIXED.match(code):
        text, code = f"{text}×10^{power[1]}", code[power.end() :]
    text = f"{text} {_unit(UNITS.get(code, code))}"
    if arguments[at + 2][:1].isdecimal() and SMALLER.get(code, "") == arguments[at + 3]:
        text += f" {arguments[at + 2]} {arguments[at + 3]}" if arguments[at + 3] else ""
    return text


def _fraction(arguments: WikitextTemplateArguments) -> str:
    whole, parts = [], arguments.numbered()
    if len(parts) == 1:
        parts = ["1", *parts]
    elif len(parts) > 2:
        whole, parts = parts[:1], parts[1:3]
    return " ".join([*whole, format_formula_fraction(parts)])


def _chem(arguments: WikitextTemplateArguments) -> str:
    parts = arguments.numbered()
    if len(parts) > 2 and parts[0].isdecimal() and parts[1].isdecimal():
        del parts[1]
    return format_chemical_equation(
        "".join(f"({part})" if part[-1] in "+-−" and part != "-" else part for part in parts)
    )


def _nuclide(arguments: WikitextTemplateArguments) -> str:
    element, mass = arguments[1], arguments[2]
    if element.isdecimal():
        element, mass = mass, element
    return f"{element[:1].upper()}{element[1:]}-{mass}" if mass else element


def _stacked(arguments: WikitextTemplateArguments) -> str:
    above, below = arguments["p"] or arguments[1], arguments["b"] or arguments[2]
    if above[:1] in ("+", "-", "−", "±") and below[:1] in ("+", "-", "−"):
        return above + _minus(below)
    return below + (superscript(above) if above else "")


def _constant(arguments: WikitextTemplateArguments) -> str:
    value, power, unit = CONSTANTS.get(arguments[1], ("", "", ""))
    return _val(WikitextTemplateArguments({1: value, "e": power, "u": unit})) if value else arguments[1]


def _day(year: str, month: str, day: str) -> str:
    """Format a date; text that is already written out stays."""
    if month.isdecimal() and len(month) < 3 and 1 <= int(month) <= 12:
        month = calendar.month_name[int(month)]
    return " ".join(part for part in (day, month, year) if part)


def _date(arguments: WikitextTemplateArguments) -> str:
    time = ":".join(filter(None, (arguments[key] for key in (4, 5, 6) if arguments[key][:1].isdecimal())))
    date = _day(arguments[1], arguments[2], arguments[3])
    return f"{time}, {date}" if time else date


def _birth(arguments: WikitextTemplateArguments) -> str:
    return _day(arguments[1], arguments[2], arguments[3])


def _as_of(arguments: WikitextTemplateArguments) -> str:
    date = _day(arguments[1], arguments[2], arguments[3])
    word = "Since" if arguments["since"] else "As of"
    word = word.lower() if arguments["lc"] else word
    return arguments["alt"] or (date if arguments["bare"] else f"{word} {date}")


def _years(born: list[str], until: list[str]) -> str:
    """Return the full years between two dates (year, month, day), or both possible numbers if only years are known."""
    if not (born[0].isdecimal() and until[0].isdecimal()):
        return ""
    years = int(until[0]) - int(born[0])
    if not all(part.isdecimal() for part in (*born, *until)):
        return f"{years - 1} or {years}"
    return str(years - (tuple(map(int, until[1:])) < tuple(map(int, born[1:]))))


def _death(arguments: WikitextTemplateArguments) -> str:
    died, born = [arguments[key] for key in (1, 2, 3)], [arguments[key] for key in (4, 5, 6)]
    age = _years(born, died)
    return _day(*died) + (f" (aged {age})" if age else "")


def _death_year(arguments: WikitextTemplateArguments) -> str:
    age = _years([arguments[2], "", ""], [arguments[1], "", ""])
    return _day(arguments[1], arguments[3], "") + (f" (aged {age})" if age else "")


def _age(arguments: WikitextTemplateArguments) -> str:
    born, until = [arguments[key] for key in (1, 2, 3)], [arguments[key] for key in (4, 5, 6)]
    return _years(born, until) if until[0] else f"(since {_day(*born)})"


def _dates(arguments: WikitextTemplateArguments) -> str:
    """Format the dates and places of {{film date}}, given as repeated year, month, day and place."""
    parts = [arguments[key] for key in range(1, max((key for key in arguments if isinstance(key, int)), default=0) + 1)]
    fours = [[*parts[at : at + 4], "", "", "", ""][:4] for at in range(0, len(parts), 4)]
    return ", ".join(_day(*four[:3]) + (f" ({four[3]})" if four[3] else "") for four in fours)


def _height(arguments: WikitextTemplateArguments) -> str:
    units = {"m": "m", "cm": "cm", "ft": "ft", "in": "in", "inch": "in", "st": "st", "lb": "lb", "kg": "kg"}
    sizes = " ".join(f"{arguments[key]} {unit}" for key, unit in units.items() if arguments[key])
    return sizes or " ".join(arguments.numbered())


def _coordinates(arguments: WikitextTemplateArguments) -> str:
    parts, found = arguments.numbered(), []
    for letters, names in (("NS", "latitude"), ("EW", "longitude")):
        at = next((at for at, part in enumerate(parts) if part in tuple(letters)), None)
        if at is None or at > 3:
            number = parts.pop(0) if parts and NUMBER.fullmatch(parts[0]) else arguments[names]
            found.append(f"{number.lstrip('-−')}°{letters[number.startswith(('-', '−'))]}" if number else "")
        else:
            found.append("".join(map("{}{}".format, parts[:at], "°′″")) + parts[at])
            parts = parts[at + 1 :]
    return " ".join(filter(None, found))


def _share(arguments: WikitextTemplateArguments) -> str:
    try:
        return f"{100 * float(arguments[1]) / float(arguments[2]):.{int(arguments[3] or 0)}f}%"
    except (ValueError, ZeroDivisionError, OverflowError):
        return _spaced(arguments)


def _with(left: str, right: str) -> Rule:
    """Return a rule that writes the first argument, and the second, if any, between `left` and `right`."""
    return lambda arguments: arguments[1] + (f"{left}{arguments[2]}{right}" if arguments[2] else "")


def _about(word: str) -> Rule:
    return lambda arguments: f"{word} " + "–".join(arguments.numbered())


def _always(text: str) -> Rule:
    return lambda arguments: text


def _around(left: str, right: str) -> Rule:
    return lambda arguments: f"{left}{arguments[1]}{right}"


def _grouped(arguments: WikitextTemplateArguments) -> str:
    whole, point, decimals = arguments[1].replace(",", "").partition(".")
    grouped = f"{int(whole):,}{point}{decimals}" if whole.isdecimal() and len(whole) < 100 else arguments[1]
    return arguments["prefix"] + grouped + arguments["suffix"]


def _root(arguments: WikitextTemplateArguments) -> str:
    return format_formula_root(arguments[2], format_formula_fraction([arguments[1]]))


def _foreign(arguments: WikitextTemplateArguments) -> str:
    others = ", ".join(arguments.numbered(2)[:2])
    return f"{arguments[1]} ({others})" if others else arguments[1]


# fmt: off
#: Templates that produce no text: marks for readers and editors, citations, navigation, pronunciation.
SILENT = re.compile("|".join((
    # Citations and notes.
    r"(?:cite|sfn|harv|efn|notelist|reflist|refbegin|refend|reflink)[\w-]*", "citation", "refn?", "note", "rp", "r",
    "isbn", "issn", "doi", "pmid", "pmc", "arxiv", "jstor", "oclc", "bibcode", "s2cid", "asin", "hdl", "google books",
    "internet archive", "gutenberg", "librivox", "webarchive", "dead link", "page needed", "wikicite", "odnb",
    "unbulleted list citebundle", "(?:eb)?1911", "catholic encyclopedia",
    # Marks for editors.
    r"(?:clarif|verif|wikif|globali[sz]e|protect|engvar|pp-)[\w-]*", "use [a-z]+ (?:english|dates)",
    "short description", "cn", "fact", "when", "who", "which", "whom", "by whom", "why", "where", "vague", "dubious",
    "disputed", "pp", "failed verification", "better source", "original research", "or", "weasel", "peacock", "undue",
    "pov", "update", "expand", "cleanup", "clean up", "copy ?edit", "unreferenced", "refimprove",
    "more (?:citations|footnotes|sources)",
    "no footnotes", "one source", "primary sources", "multiple issues", "merge", "split", "orphan", "confusing",
    "technical", "tone", "cbignore", "no?bots", "italic ?title", "lowercase(?: title)?", "displaytitle", "defaultsort",
    "good article", "featured article", "coord missing", "anchors?", "shortcut", "documentation", "doc", "in use",
    "under construction", "recentism", "notability", "advert", "linkrot", "sections", "incomplete", "non-primary",
    "r from", "r to", "redirect", "selfref", "#invoke", "#tag", "#related", "notoc", "toc", "compact toc", "clear",
    "clr", "col-[a-z0-9-]+", "colbegin", "colend", "div col", "end(?: div col)?", "break", "void", "[a-z]-end",
    # Navigation.
    r"(?:nav|portal|commons)[\w-]*", "main", "main (?:article|list)", "see also", "further", "about", "for",
    "for-multi", "others?", "distinguish", "hatnote", "broader", "details", "list of", "sidebar", "sister",
    "wiktionary", "wiki(?:quote|source|books|voyage|news|versity|species|data)", "subject bar",
    "library resources", "authority control", "taxonbar", "spoken wikipedia", "official", "imdb", "find a grave",
    "external media", "curlie", "dmoz", "stub", "[^|]*[- ]stub", "[^|]* (?:sidebar|navbox|footer)",
    # Pictures, sounds and pronunciation.
    r"(?:ipa|image label|color ?box|party color|party shading)[\w-]*", "respell", "pronunciation", "pron", "listen",
    "audio", "multiple image", "css image", "wide image", "gallery", "superimpose", "annotated image", "location map",
    "maplink", "mapframe", "image array", "photomontage", "ntsh", "hidden sort key", "display none",
)).join(("(?:", ")(?![a-z])")))
#: Names of templates whose arguments form a table of labels and values.
BOX = re.compile(r"infobox|(?:box|boks)$|^(?:infobox|geobox|chembox|drugbox|taxobox|starbox|planetbox)")
BOX_ROW = re.compile(r"(header|label|data|above|title|subheader|below)(\d*)")
#: Names and values of arguments that only affect layout.
FURNITURE = re.compile(
    r"(?:(?:image|img|photo|map|logo|pushpin|mapframe|cover|signature)\d*(?:_(?!caption).*)?|(?:image|map)_?(?:size|width"
    r"|name|file|alt|upright)|.*_(?:alt|upright|px|link|refs?)|(?:body|title|label|data|header|above|below|list|group|base"
    r"|child)\d*(?:style|class)|alt\d*|upright|align|float|colwidth|rowclass\d*|bgcolou?r|background|text-?colou?r"
    r"|font-?size|embed|child|subbox|(?:fetch)?wikidata|onlysourced|noicon|nocat|abbr|lk|link|sortable|display"
    r"|access-?date|archive-?(?:url|date)|url-status|autocat|collapsed?|item_?style|refs?|qid)$",
    re.IGNORECASE,
)
SETTING = re.compile(
    r"[^\n]*\.(?:jpe?g|png|svg|gif|tiff?|webp|webm|og[gva]|mp[34]|wav|flac|pdf|djvu|stl|mid)|[\d.]+(?:px|em)|#[0-9a-f]{3,8}"
    r"|(?:auto)?collapsed?|expanded|(?:background(?:-color)?|width|font-[a-z]+|text-align|border|margin|padding|float"
    r"|white-space|line-height|vertical-align) ?:[^\n]*",
    re.IGNORECASE,
)
#: Arguments of editorial marks; an unknown template with no others produces no text.
EDITORS = {"date", "reason", "talk", "section"}
SIGNS = {
    "!": "|", "=": "=", "'": "'", "'s": "'s", "-": "-", "·": " · ", "•": " • ", "°": "°", "°c": "°C", "°f": "°F",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "lambda": "λ", "mu": "μ", "pi": "π", "sigma": "σ",
    "tau": "τ", "phi": "φ", "hbar": "ħ", "ohm": "Ω", "infinity": "∞", "degree": "°", "micro": "μ", "minus": "−",
    "plus-minus": "±", "+-": "±", "times": "×", "cdot": "⋅", "middot": " · ", "dot": " · ", "bull": " • ",
    "bullet": " • ", "dagger": "†", "double dagger": "‡", "extinct": "†", "okina": "ʻ", "ellipsis": "…",
    "langle": "⟨", "rangle": "⟩", "nbsp": " ", "thinsp": " ", "thin space": " ", "hairsp": " ", "nnbsp": " ",
    "space": " ", "spaces": " ", "pad": " ", "ndash": "–", "en dash": "–", "endash": "–", "mdash": "—", "em dash": "—",
    "emdash": "—", "snd": " – ", "spnd": " – ", "spaced ndash": " – ", "spaced en dash": " – ", "sndash": " – ",
    "dash": " – ", "solar mass": "M☉", "solar radius": "R☉", "solar luminosity": "L☉", "earth mass": "M⊕",
    "jupiter mass": "MJ", "co2": "CO2", "h2o": "H2O", "tick": "✓", "aye": "✓", "cross": "✗", "nay": "✗",
    "increase": "▲", "decrease": "▼", "male": "♂", "female": "♀", "n/a": "n/a", "sort dash": "–",
    "zwj": "", "zwnj": "", "shy": "", "wbr": "", "zwsp": "", "nosp": "",
}
#: Templates that are replaced by their first, second or last argument.
FIRST = (
    "nowrap", "nobr", "nobreak", "no wrap", "nowraplinks", "math", "mvar", "bigmath", "var", "big", "small", "smaller",
    "larger", "resize", "abbr", "abbrlink", "tooltip", "em", "strong", "ins", "mono", "code", "tt", "samp", "kbd",
    "key", "serif", "sans-serif", "smallcaps", "sc", "sub", "subscript", "overline", "underline", "overarc", "vec",
    "nobold", "noitalic", "normal", "vanchor", "visible anchor", "notatypo", "not a typo", "as written", "sic",
    "linktext", "center", "block indent", "blockindent", "bi", "columns-list", "chem name", "chemical formula",
    "subatomicparticle", "subatomic particle", "allele", "flag", "flagcountry", "flagu", "flagicon", "flagdeco",
    "flagioc", "flag icon", "fb", "cn span", "citation needed span", "clarify span", "bold", "italic", "wikt",
    "equationref", "no.", "unité", "birth-date", "death-date", "birth-date and age", "start-date", "end-date",
    "native name", "marriage", "annotated link", "sortable val", "official name", "tq", "strikethrough",
)
SECOND = (
    "lang", "wikt-lang", "langx", "script", "color", "colour", "font color", "fontcolor", "colored text", "sort", "hs",
    "hover title", "numblk", "hilite", "native name", "legend", "nativename", "native phrase",
)
LAST = (
    "transl", "transliteration", "gli", "glossary link", "equationnote", "colored link",
)
#: Currencies that are written as a sign before the amount.
CURRENCIES = {
    "us$": "US$", "usd": "US$", "us dollar": "US$", "$": "$", "£": "£", "gbp": "£", "pound sterling": "£", "€": "€",
    "eur": "€", "euro": "€", "a$": "A$", "aud": "A$", "c$": "C$", "cad": "C$", "nz$": "NZ$", "nzd": "NZ$", "₹": "₹",
    "inr": "₹", "indian rupee": "₹", "¥": "¥", "jpy": "¥", "cny": "CN¥", "rmb": "CN¥", "₽": "₽", "₩": "₩", "krw": "₩",
}
# fmt: on
#: Rules for templates, by name in lower case.
TEMPLATES: dict[str, Rule] = {
    **{name: _always(sign) for name, sign in SIGNS.items()},
    **dict.fromkeys(FIRST, _first),
    **dict.fromkeys(SECOND, lambda arguments: arguments[2]),
    **dict.fromkeys(LAST, lambda arguments: (arguments.numbered() or [""])[-1]),
    **{name: _around(sign, "") for name, sign in CURRENCIES.items()},
    **dict.fromkeys(("convert", "cvt", "conv", "unit"), _convert),
    **dict.fromkeys(("frac", "fraction", "sfrac", "tfrac", "dfrac", "mfrac", "nicefrac"), _fraction),
    **dict.fromkeys(("chem", "chem/atom"), _chem),
    **dict.fromkeys(("nuclide", "simplenuclide", "simple nuclide", "nuclide2", "isotope"), _nuclide),
    **dict.fromkeys(("sup", "superscript", "^"), lambda arguments: superscript(arguments[1])),
    **dict.fromkeys(("e", "esp", "x10^"), lambda arguments: f"×10^{_minus(arguments[1])}"),
    **dict.fromkeys(("sqrt", "radic", "radical"), _root),
    **dict.fromkeys(("physconst", "physical constants"), _constant),
    **dict.fromkeys(("as of", "asof"), _as_of),
    **dict.fromkeys(("circa", "c.", "ca."), _about("c.")),
    **dict.fromkeys(("floruit", "fl."), _about("fl.")),
    **dict.fromkeys(("born", "b."), _about("b.")),
    **dict.fromkeys(("died", "d."), _about("d.")),
    **dict.fromkeys(("quote", "blockquote", "cquote", "quotation", "poemquote", "poem quote", "quote box"), _quoted),
    **dict.fromkeys(("unbulleted list", "ubl", "bulleted list", "ordered list", "plainlist", "flatlist"), _listed),
    **dict.fromkeys(("collapsible list", "tree list", "numbered list", "indented plainlist"), _listed),
    **dict.fromkeys(("term", "glossary term", "defn", "glossary definition"), _listed),
    **dict.fromkeys(("nihongo", "nihongo3"), _foreign),
    **dict.fromkeys(("mp", "mpl", "mpl-"), _joined),
    **dict.fromkeys(("ship", "species", "sortname", "sort name", "hidden"), _spaced),
    **dict.fromkeys(("angbr", "angle bracket"), _around("⟨", "⟩")),
    **dict.fromkeys(("interlanguage link", "ill"), lambda arguments: arguments["lt"] or arguments[1]),
    **dict.fromkeys(("birth date", "birth date and age", "birth-date and given age", "bda", "dob"), _birth),
    **dict.fromkeys(("birth year", "birth year and age", "death date", "death year", "dod"), _birth),
    **dict.fromkeys(("dts", "date table sorting"), _birth),
    **dict.fromkeys(("start date", "start date and age", "end date", "end date and age"), _date),
    **dict.fromkeys(("date", "date and age"), _date),
    **dict.fromkeys(("death date and age", "dda", "death-date and age"), _death),
    **dict.fromkeys(("death year and age",), _death_year),
    **dict.fromkeys(("age", "age in years", "ayd", "age in years and days"), _age),
    **dict.fromkeys(("film date", "filmdate", "television date", "video game release date"), _dates),
    **dict.fromkeys(("height", "infobox person/height", "hgt", "weight"), _height),
    **dict.fromkeys(("coord", "coords", "coordinates"), _coordinates),
    **dict.fromkeys(("nts", "number table sorting", "ntsc", "formatnum", "formatnum:", "num", "commas"), _grouped),
    **dict.fromkeys(("percentage", "percent", "pct"), _share),
    **dict.fromkeys(("rating", "stars"), _with("/", "")),
    **dict.fromkeys(("flagiocathlete", "flagiocmedalist", "flagathlete", "flagioc2athlete"), _with(" (", ")")),
    "val": _val,
    "gaps": lambda arguments: _val(WikitextTemplateArguments({**arguments, 1: _joined(arguments), 2: "", 3: ""})),
    "10^": lambda arguments: f"10^{_minus(arguments[1])}",
    "chem2": lambda arguments: format_chemical_equation(arguments[1]),
    "tmath": lambda arguments: math_formula(arguments[1]),
    "su": _stacked,
    "subsup": lambda arguments: f"{arguments[1]}{arguments[2]}{superscript(arguments[3])}",
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
    "hms": _around("HMS ", ""),
    "uss": _around("USS ", ""),
    "mya": lambda arguments: "–".join(arguments.numbered()) + " million years ago",
    "ma": lambda arguments: "–".join(arguments.numbered()) + " Ma",
    "ra": lambda arguments: " ".join(map("{}{}".format, arguments.numbered(), "hms")),
    "dec": lambda arguments: " ".join(map("{}{}".format, arguments.numbered(), "°′″")),
    "music": lambda arguments: {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯"}.get(arguments[1], arguments[1]),
}
