"""Text of wikitext, section by section: numbers, units, formulas and tables are kept, page furniture is not."""

import html
import re
from collections.abc import Callable, Iterator

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

from sciqa.corpus.formulas import read_chemistry, read_math
from sciqa.corpus.lines import BREAK, ITEM, put_cell, put_lines, superscript
from sciqa.corpus.tables import Cell, span, table_lines
from sciqa.corpus.templates import Arguments, find_rule

# fmt: off
#: Headings, in lower case, of sections that lists of citations have; of these and their subsections only what is no
#: citation is read.
CITING = {
    "references", "notes", "footnotes", "bibliography", "sources", "citations", "works cited", "notes and references",
    "references and notes", "explanatory notes", "general references", "general sources", "cited sources",
    "cited works", "references and further reading", "citations and references", "publications",
    "selected publications", "selected bibliography", "literature",
}
#: Headings of sections whose lists point elsewhere.
POINTING = {
    "external links", "see also", "further reading", "gallery", "image gallery", "external sources", "other websites",
}
#: Tags dropped with what they hold.
DROPPED = {
    "ref", "references", "gallery", "imagemap", "timeline", "graph", "score", "hiero", "templatedata", "section",
    "categorytree", "inputbox", "style", "script", "mapframe", "maplink", "includeonly", "templatestyles", "indicator",
    "phonos",
}
# fmt: on
BLOCKS = {"p", "div", "blockquote", "center", "poem", "pre", "hr", "ul", "ol", "dl", "tr", "h2", "h3", "h4"}
BLOCKS |= {"syntaxhighlight", "source"}
CELLS, ROWS = {"td", "th"}, {"tr", "tbody", "thead", "tfoot"}
#: Tags whose text is no wikitext.
VERBATIM = {"nowiki", "pre", "syntaxhighlight", "source"}
ITEMS = {"li", "dt", "dd"}
MEDIA = {"file", "image", "category", "media", "datei", "bild", "fichier", "archivo", "kategorie", "catégorie", "файл"}
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
    (re.compile(r"</?(?:t[dhr]|table|caption|li|dt|dd|p|div)(?:\s[^<>\n]*)?>", re.IGNORECASE), "\n\n"),
    (re.compile(r"</?[A-Za-z]\w*(?:[\s/][^<>\n]*)?>|<ref\b[^<>\n]*|<!--"), ""),
    (re.compile(r"\{\{|\}\}|\[\[|\]\]|__[A-Z]{3,}__"), ""),
    (re.compile(r"'{5,}|'''|''"), ""),
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

#: What only citations begin with, or hold; it is marked, since neither templates nor addresses are read.
SOURCE = re.compile(
    r"\{\{\s*(?:cite|citation|sfn|harv|isbn|doi|oclc|wikicite|refbegin)|\[?(?:https?:)?//\w", re.IGNORECASE
)
CITED = "\x04"
#: What makes a line a citation, and what does so together with a second sign.
CITATION = re.compile(
    rf"\W*{CITED}|[A-Z][\w'-]+, [A-Z].{{0,80}}\b(?:1[5-9]|20)\d\d\b|.*\b(?:ISBN|ISSN|doi:|Retrieved \d|Retrieved [A-Z])"
)
HINT = re.compile(
    rf"{CITED}|\b(?:1[5-9]|20)\d\d\b|\bpp?\. ?\d|\b[Ee]ds?\.|\b\d(?:st|nd|rd|th) ed\b|\b[Vv]ol\. ?\d"
    r"|\b(?:Press|Publishers?|Publishing|Verlag|Journal|Proceedings)\b"
)
#: Lines that no text comes from: list items that cite, arguments of templates, and tags, links or templates alone.
EMPTY = re.compile(rf"[*#:;]+\W*{CITED}.*|[|}}].*|(?:\{{\{{[^{{}}]*\}}\}}|<[^<>]*>|\[\[[^\[\]]*\]\]|\s)*+")


def read_sections(wikitext: str) -> list[tuple[str, str]]:
    """Return the sections of an article that hold text: heading and text, its paragraphs separated by newlines.

    The lead has the heading "", a subsection its path ("History > Early work"). Of sections with the headings of lists
    of citations, only what is none is read.
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
        folded = {name.casefold() for name in names}
        if folded.isdisjoint(CITING | POINTING):
            text = _read(piece, len(source))
        else:
            text = _read_uncited(piece, len(source), bool(folded & POINTING))
        if text:
            sections.append((" > ".join(names), text))
    return sections


def _read_uncited(wikitext: str, length: int, pointing: bool) -> str:
    """Return the text of a section but for its citations, and for its lists where they point elsewhere."""
    marked = SOURCE.sub(rf"{CITED}\g<0>", wikitext)
    if all(EMPTY.fullmatch(line) or (pointing and line[:1] in "*#:;") for line in marked.split("\n")):
        return ""
    text = _read(marked, length, lambda text: _without_citations(text, pointing))
    return text.replace(CITED, "")


def _without_citations(text: str, pointing: bool) -> str:
    """Drop the lines of a section that cite, and its list items where these point elsewhere.

    Where most items of a list cite, the others do so in a way that is not seen.
    """
    lines = [line for line in text.split("\n") if line.strip(f" {ITEM}{CITED}.,;")]
    items = [line.strip(ITEM + " ") for line in lines if line.startswith(ITEM)]
    citing = {line for line in items if CITATION.match(line) or len(set(HINT.findall(line))) > 1}
    if pointing or 2 * len(citing) > len(items):
        citing.update(items)
    return "\n".join(
        line
        for line in lines
        if (line.strip(ITEM + " ") not in citing if line.startswith(ITEM) else not CITATION.match(line.strip()))
    )


def is_redirect(wikitext: str) -> bool:
    """Return whether a page sends its reader to another, in whatever language it says so."""
    return REDIRECT.match(wikitext) is not None


def is_disambiguation(wikitext: str) -> bool:
    """Return whether a page lists the articles that its title may mean."""
    return DISAMBIGUATION.search(wikitext) is not None


def _read(wikitext: str, length: int, choose: Callable[[str], str] = str) -> str:
    """Return the text of a part of an article of some length, of which lines may be chosen before they are put."""
    if REMARKABLE.search(wikitext) is None:
        return put_lines(choose(wikitext))
    openings = sum(map(wikitext.count, ("{{", "{|", "[", "<")))
    if openings * length > WORST and len(unclosed := _find_unclosed(wikitext)) * length > WORST:
        ends = [0, *(end for _, end in unclosed)]
        starts = [*(start for start, _ in unclosed), len(wikitext)]
        wikitext = "".join(wikitext[end:start] for end, start in zip(ends, starts, strict=True))
    try:
        return put_lines(choose(_text(mwparserfromhell.parse("\n" + wikitext, skip_style_tags=True))))
    except (ParserError, RecursionError):
        return put_lines(choose(_plain(wikitext)))


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


def _text(code: Wikicode | None) -> str:
    # Not `if code`: that asks for the whole text of it.
    return "" if code is None else "".join([RENDERED[type(node)](node) for node in code.nodes])


def _source(code: Wikicode) -> str:
    """Return `str(code)`, much sooner where it is plain."""
    nodes = code.nodes
    return nodes[0].value if len(nodes) == 1 and type(nodes[0]) is Text else str(code)


def _plain(text: str) -> str:
    if REMNANT.search(text):
        for pattern, replacement in REMNANTS:
            text = pattern.sub(replacement, text)
    return text


def _link(node: Wikilink) -> str:
    title = _source(node.title).strip()
    space, colon, name = title.partition(":")
    if colon and space:
        if space.strip().lower() in MEDIA or (node.text is None and LANGUAGE.fullmatch(space)):
            return ""
        title = name if node.text is None and space.islower() else title
    return _text(node.text) or _plain(title.removeprefix(":"))


def _tag(node: Tag) -> str:
    name = _source(node.tag).strip().lower()
    if name == "table":
        return "\n\n" + "".join(f"\n{ITEM}{line}" for line in table_lines(_rows(node.contents))) + "\n\n"
    if node.wiki_markup:
        return "\n" if node.wiki_markup.startswith("-") else ITEM
    if name in DROPPED:
        return ""
    if name in FORMULAS:
        return FORMULAS[name](str(node.contents))
    if name == "br":
        return BREAK
    text = html.unescape(str(node.contents or "")) if name in VERBATIM else _text(node.contents)
    if name == "sup":
        return superscript(text)
    if name in BLOCKS:
        return f"\n\n{text}\n\n"
    return f"\n{ITEM}{text}\n" if name in ITEMS else text


def _rows(contents: Wikicode | None) -> Iterator[list[Cell]]:
    """Yield the rows of a table; what stands outside its rows and cells is a row too."""
    loose: list[Cell] = []
    for node in contents.nodes if contents is not None else ():
        name = _source(node.tag).strip().lower() if isinstance(node, Tag) else ""
        text = _text(node.contents) if name in CELLS else "" if name in ROWS else RENDERED[type(node)](node)
        if name in CELLS and not (node.wiki_markup and text.startswith("+")):
            sizes = {_source(size.name).strip().lower(): size.value for size in node.attributes}
            cell = Cell(put_cell(text), name == "th", span(sizes.get("colspan")), span(sizes.get("rowspan")))
            loose.append(cell)
        elif name in ROWS or text.strip():
            if loose:
                yield loose
                loose = []
            # What is no row and no cell is a caption, or what a template stands for.
            yield from _rows(node.contents) if name in ROWS else [[Cell(put_cell(text.lstrip("+")))]]
    if loose:
        yield loose


def _template(node: Template) -> str:
    rule, rest = find_rule(_source(node.name))
    if rule is None:
        return ""
    arguments = Arguments({1: rest} if rest else {})
    for parameter in node.params:
        key = _source(parameter.name).strip()
        arguments[int(key) if key.isdecimal() and len(key) < 4 else key] = _text(parameter.value).strip()
    return rule(arguments)


FORMULAS = {"math": read_math, "chem": read_chemistry, "ce": read_chemistry}
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
