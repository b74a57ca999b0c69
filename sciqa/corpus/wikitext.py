"""Convert wikitext to text, section by section, with numbers, units, formulas and tables, without page furniture."""

import html
import re
from collections.abc import Callable, Iterator

import mwparserfromhell
from mwparserfromhell.nodes import Argument, Comment, ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode

from sciqa.corpus.formulas import chemical_formula, math_formula, superscript
from sciqa.corpus.table_text import TableCell, read_table_cell, table_lines
from sciqa.corpus.wikitext_lines import BREAK, ITEM, join_wikitext_cell_lines, join_wikitext_lines
from sciqa.corpus.wikitext_templates import WikitextTemplateArguments, find_wikitext_template_rule

# fmt: off
#: Headings, in lower case, of sections that list citations; in these and their subsections, citations are left out.
CITING = {
    "references", "notes", "footnotes", "bibliography", "sources", "citations", "works cited", "notes and references",
    "references and notes", "explanatory notes", "general references", "general sources", "cited sources",
    "cited works", "references and further reading", "citations and references", "publications",
    "selected publications", "selected bibliography", "literature",
}
#: Headings of sections whose lists only point to other pages.
POINTING = {
    "external links", "see also", "further reading", "gallery", "image gallery", "external sources", "other websites",
}
#: Tags that are dropped with their content.
DROPPED = {
    "ref", "references", "gallery", "imagemap", "timeline", "graph", "score", "hiero", "templatedata", "section",
    "categorytree", "inputbox", "style", "script", "mapframe", "maplink", "includeonly", "templatestyles", "indicator",
    "phonos",
}
# fmt: on
BLOCKS = {"p", "div", "blockquote", "center", "poem", "pre", "hr", "ul", "ol", "dl", "tr", "h2", "h3", "h4"}
BLOCKS |= {"syntaxhighlight", "source"}
CELLS, ROWS = {"td", "th"}, {"tr", "tbody", "thead", "tfoot"}
#: Tags whose content is not wikitext.
VERBATIM = {"nowiki", "pre", "syntaxhighlight", "source"}
ITEMS = {"li", "dt", "dd"}
MEDIA = {"file", "image", "category", "media", "datei", "bild", "fichier", "archivo", "kategorie", "catégorie", "файл"}
MARKERS = re.compile(r"^([:;*#]{9})[:;*#]+", re.MULTILINE)

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
REFERENCE = re.compile(r"<ref\b[^<>]*?(?:/>|>[^<]*(?:<(?!/?ref\b)[^<]*)*</ref\s*>)", re.IGNORECASE)
#: The form of most links; replacing these first reduces reading time by a third.
PLAIN_LINK = re.compile(r"\[\[(?:[^][{}|<>:\n]+\|)?([^][{}|<>:=\n]+)\]\]")
HEADING = re.compile(r"^(=.*=)[ \t]*$", re.MULTILINE)
REDIRECT = re.compile(r"\s*#[^\W\d]\w*+\s*+:?\s*+\[\[[^\[\]]+\]\]")
DISAMBIGUATION = re.compile(
    r"\{\{\s*+(?:(?:[^{}|\n]*[ _:])?(?:disambiguation|disambig|disamb)|disambig-cleanup|disambiguation cleanup|dab"
    r"|hndis|geodis|mathdab|numberdis|roaddis|schooldis|hospitaldis|begriffsklärung|homonymie|desambiguación|desambiguação"
    r"|disambigua|неоднозначность)\s*+(?:\||\}\})",
    re.IGNORECASE,
)
#: A text without any of these characters has no markup.
REMARKABLE = re.compile(r"[\[\]{}<&*#;:|=_~']")
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?|simple")
#: Markup that remains in a text node if the parser did not find the end of an element.
REMNANT = re.compile(r"''|[{}]{2}|\[\[|\]\]|__[A-Z]|<|\n[ \t]*(?:[|!]|\{\|)")
REMNANTS = (
    (re.compile(r"\n[ \t]*(?:\{\||[|!]|\{\{[^{}|\n]*(?=\n))[^\n]*"), "\n"),
    (re.compile(r"</?(?:t[dhr]|table|caption|li|dt|dd|p|div)(?:\s[^<>\n]*)?>", re.IGNORECASE), "\n\n"),
    (re.compile(r"</?[A-Za-z]\w*(?:[\s/][^<>\n]*)?>|<ref\b[^<>\n]*|<!--"), ""),
    (re.compile(r"\{\{|\}\}|\[\[|\]\]|__[A-Z]{3,}__"), ""),
    (re.compile(r"'{5,}|'''|''"), ""),
)
#: Openings and ends of elements that can be nested; elements without wikitext in them are skipped whole.
NESTING = re.compile(
    r"<(?:br|hr|wbr|li|dd|dt|td|th|tr|img)\b[^<>]*>"
    r"|<(math|chem|ce|nowiki|pre)\b[^<>]*>[^<]*(?:<(?!/?\1\b)[^<]*)*</\1"
    r"|(?P<open>\{\{|\[\[|\{\||<[a-z]\w*|\[(?=\w+:|//))|(?P<end>\}\}|\]\]|\|\}|</[a-z]\w*|/>|\])",
    re.IGNORECASE,
)
ENDS = {"}}": "{{", "]]": "[[", "|}": "{|", "]": "["}
#: Limit on the number of openings without an end, times the characters of the article; above it, the openings are cut
#: out. The parser's time grows with this product: one second for some five million.
WORST = 2_000_000
#: Maximum nesting depth that is kept; the parser gives up at 40.
DEEPEST = 30

#: Templates and addresses that only citations contain; `CITED` marks them, since the parsed text has neither.
SOURCE = re.compile(
    r"\{\{\s*(?:cite|citation|sfn|harv|isbn|doi|oclc|wikicite|refbegin)|\[?(?:https?:)?//\w", re.IGNORECASE
)
CITED = "\x04"
#: Signs of a citation: one `CITATION` in any line, or two different `HINT`s in a list item.
CITATION = re.compile(
    rf"\W*{CITED}|[A-Z][\w'-]+, [A-Z].{{0,80}}\b(?:1[5-9]|20)\d\d\b|.*\b(?:ISBN|ISSN|doi:|Retrieved \d|Retrieved [A-Z])"
)
HINT = re.compile(
    rf"{CITED}|\b(?:1[5-9]|20)\d\d\b|\bpp?\. ?\d|\b[Ee]ds?\.|\b\d(?:st|nd|rd|th) ed\b|\b[Vv]ol\. ?\d"
    r"|\b(?:Press|Publishers?|Publishing|Verlag|Journal|Proceedings)\b"
)
#: Lines that produce no text: list items that cite, arguments of templates, and tags, links or templates alone.
EMPTY = re.compile(rf"[*#:;]+\W*{CITED}.*|[|}}].*|(?:\{{\{{[^{{}}]*\}}\}}|<[^<>]*>|\[\[[^\[\]]*\]\]|\s)*+")


def read_wikitext_sections(wikitext: str) -> list[tuple[str, str]]:
    """Return the sections of an article that hold text, as (heading, text); newlines separate paragraphs.

    The heading of the lead is "", that of a subsection is its path ("History > Early work"). Sections that list
    citations are read without these.
    """
    commented, end, rest = wikitext.rpartition("-->")
    source = COMMENT.sub("", commented + end) + rest.replace("<!--", "")
    source = MARKERS.sub(r"\1", PLAIN_LINK.sub(r"\1", REFERENCE.sub("", source)))
    lead, *pieces = HEADING.split(source)
    sections: list[tuple[str, str]] = []
    path: list[tuple[int, str]] = []
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
    """Return the text of a section without its citations and, if `pointing`, without its list items."""
    marked = SOURCE.sub(rf"{CITED}\g<0>", wikitext)
    if all(EMPTY.fullmatch(line) or (pointing and line[:1] in "*#:;") for line in marked.split("\n")):
        return ""
    text = _read(marked, length, lambda text: _without_citations(text, pointing))
    return text.replace(CITED, "")


def _without_citations(text: str, pointing: bool) -> str:
    """Drop the citation lines of a section and, if `pointing`, all list items.

    If most list items are citations, all are dropped: the others are probably citations in an unrecognised form.
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
    """Return whether a page is a redirect to another one, in any language."""
    return REDIRECT.match(wikitext) is not None


def is_wikitext_disambiguation(wikitext: str) -> bool:
    """Return whether a page is a disambiguation page, a list of the articles that its title may mean."""
    return DISAMBIGUATION.search(wikitext) is not None


def _read(wikitext: str, length: int, choose: Callable[[str], str] = str) -> str:
    """Return the text of a part of an article of `length` characters; `choose` filters it before lines are joined."""
    if REMARKABLE.search(wikitext) is None:
        return join_wikitext_lines(choose(wikitext))
    openings = sum(map(wikitext.count, ("{{", "{|", "[", "<")))
    if openings * length > WORST and len(unclosed := _find_unclosed(wikitext)) * length > WORST:
        ends = [0, *(end for _, end in unclosed)]
        starts = [*(start for start, _ in unclosed), len(wikitext)]
        wikitext = "".join(wikitext[end:start] for end, start in zip(ends, starts, strict=True))
    try:
        return join_wikitext_lines(choose(_text(mwparserfromhell.parse("\n" + wikitext, skip_style_tags=True))))
    except (ParserError, RecursionError):
        return join_wikitext_lines(choose(_plain(wikitext)))


def _find_unclosed(wikitext: str) -> list[tuple[int, int]]:
    """Return the positions (start, end) of openings that have no end or are nested too deep."""
    unclosed: list[tuple[int, int]] = []
    open_: list[tuple[str, tuple[int, int]]] = []
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
    # Not `if code`: this would build its whole text.
    return "" if code is None else "".join([RENDERED[type(node)](node) for node in code.nodes])


def _source(code: Wikicode) -> str:
    """Return `str(code)`, much faster if it is plain text."""
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


def _rows(contents: Wikicode | None) -> Iterator[list[TableCell]]:
    """Yield the rows of a table; content outside its rows and cells becomes a row too."""
    loose: list[TableCell] = []
    for node in contents.nodes if contents is not None else ():
        name = _source(node.tag).strip().lower() if isinstance(node, Tag) else ""
        tag = node if isinstance(node, Tag) and (name in CELLS or name in ROWS) else None
        text = RENDERED[type(node)](node) if tag is None else _text(tag.contents) if name in CELLS else ""
        if tag is not None and name in CELLS and not (tag.wiki_markup and text.startswith("+")):
            sizes = {_source(size.name).strip().lower(): size.value for size in tag.attributes}
            loose.append(read_table_cell(text, name == "th", sizes))
        elif name in ROWS or text.strip():
            if loose:
                yield loose
                loose = []
            # Other content is a caption, or the text of a template.
            yield from (
                _rows(tag.contents)
                if tag is not None and name in ROWS
                else [[TableCell(join_wikitext_cell_lines(text.lstrip("+")))]]
            )
    if loose:
        yield loose


def _template(node: Template) -> str:
    rule, rest = find_wikitext_template_rule(_source(node.name))
    if rule is None:
        return ""
    arguments = WikitextTemplateArguments({1: rest} if rest else {})
    for parameter in node.params:
        key = _source(parameter.name).strip()
        arguments[int(key) if key.isdecimal() and len(key) < 4 else key] = _text(parameter.value).strip()
    return rule(arguments)


FORMULAS: dict[str, Callable[[str], str]] = {"math": math_formula, "chem": chemical_formula, "ce": chemical_formula}
RENDERED: dict[type, Callable[..., str]] = {
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
