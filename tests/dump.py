"""Dumps as Wikimedia publishes them, of any size, with the demo corpus as their articles: `dump.py OUT.xml.bz2`."""

import argparse
import bz2
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from hashlib import sha1
from itertools import islice
from pathlib import Path
from xml.sax.saxutils import escape

from sciqa.corpus.articles import read_articles

NAMESPACES = {0: "", 1: "Talk", 2: "User", 6: "File", 10: "Template", 14: "Category"}
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" \
xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="http://www.mediawiki.org/xml/export-0.11/ \
http://www.mediawiki.org/xml/export-0.11.xsd" version="0.11" xml:lang="en">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>enwiki</dbname>
    <base>https://en.wikipedia.org/wiki/Main_Page</base>
    <generator>MediaWiki 1.43.0-wmf.1</generator>
    <case>first-letter</case>
    <namespaces>
%s
    </namespaces>
  </siteinfo>
"""
PAGE = """  <page>
    <title>{title}</title>
    <ns>{namespace}</ns>
    <id>{page}</id>
{redirect}    <revision>
      <id>{revision}</id>
      <parentid>{page}</parentid>
      <timestamp>2024-01-{day:02}T12:00:00Z</timestamp>
      <contributor>
        <username>Editor {day}</username>
        <id>{day}</id>
      </contributor>
      <comment>/* Lead */ &quot;better&quot; &amp; shorter</comment>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text bytes="{size}" sha1="{sha1}" xml:space="preserve">{text}</text>
      <sha1>{sha1}</sha1>
    </revision>
  </page>
"""
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"])")
LINKED = re.compile(r"(?<![\w'’-])[A-Za-z]{5,}(?![\w'’-])")
SCRIPTS = ("Δ-матрица ({})", "水 ({})", "Ατομο ({})", "ماء ({})", "जल ({})")
HEADINGS = ("History", "Properties", "Applications", "Overview", "Discovery and naming")
DISAMBIGUATIONS = ("{{disambiguation}}", "{{Disambig}}", "{{hndis|Name}}", "{{Chemistry disambiguation}}", "{{geodis}}")


def write_dump(path: Path, articles: int, pages_per_stream: int = 100, first: int = 0) -> dict:
    """Write a multistream dump and, beside it, its index; return how many pages of each kind it holds.

    The first articles are those of the demo corpus, one in a hundred under a title in another script; any more are
    sentences of three of them.

    Args:
        path: ends in `-multistream.xml.bz2`.
        articles: pages in namespace 0 that are neither redirects nor disambiguation pages.
        pages_per_stream: pages in a bz2 stream.
        first: number of the first article, from which its text follows.
    """
    counts, index = Counter(), path.with_name(path.name.removesuffix(".xml.bz2") + "-index.txt.bz2")
    pages = _pages(first, articles)
    names = (f'      <namespace key="{key}" case="first-letter">{name}</namespace>' for key, name in NAMESPACES.items())
    with path.open("wb") as file, bz2.open(index, "wt", encoding="utf-8") as lines:
        file.write(bz2.compress((HEAD % "\n".join(names)).encode()))
        while stream := list(islice(pages, pages_per_stream)):
            offset, texts = file.tell(), []
            for kind, namespace, title, text in stream:
                counts[kind] += 1
                counts["pages"] += 1
                lines.write(f"{offset}:{counts['pages']}:{_escape(title)}\n")
                texts.append(_page(counts["pages"], namespace, title, text))
            file.write(bz2.compress("".join(texts).encode()))
        file.write(bz2.compress(b"</mediawiki>\n"))
    return {kind: counts[kind] for kind in ("articles", "redirects", "disambiguations", "other_namespaces", "pages")}


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, with single spaces."""
    return SENTENCE.split(" ".join(text.split()))


def quantity(number: int) -> tuple[str, str]:
    """Return a sentence with a quantity or a formula that an article holds: as wikitext, and as it is read."""
    a, b = number % 89 + 2, number % 997 + 10
    return (
        (f"A charge of {{{{val|{a}.{b}|e=-{a}|u=C}}}} was measured.", f"A charge of {a}.{b}×10^−{a} C was measured."),
        (f"It lies {{{{convert|{b}|km|mi|abbr=on}}}} to the north.", f"It lies {b} km to the north."),
        (f"So <math>E_{{{a}}} = {b} m c^2</math> holds.", f"So E_{a} = {b} m c^2 holds."),
        (f"Its salt {{{{chem2|Na{a}SO{b}(2-)}}}} dissolves.", f"Its salt Na{a}SO{b}^2− dissolves."),
        (f"About {b}&nbsp;m<sup>−{a}</sup> of H<sub>{a}</sub>O flow.", f"About {b} m^−{a} of H{a}O flow."),
        (f"{{{{nowrap|At {{{{cvt|{a}|-|{b}|C}}}}}}}} it melts.", f"At {a}–{b} °C it melts."),
    )[number % 6]


def _pages(first: int, articles: int) -> Iterator[tuple[str, int, str, str]]:
    """Yield kind, namespace, title and text of pages: the articles, and others among them."""
    demo = [(article["title"], split_sentences(article["text"])) for article in read_articles("demo")]
    for number in range(first, first + articles):
        title, sentences = _article(demo, number)
        yield "articles", 0, title, _wikitext(number, title, sentences)
        if number % 4 == 1:
            other = f"{title} redirect" if number % 8 == 1 else SCRIPTS[number % 5].format(number)
            yield (
                "redirects",
                0,
                other,
                f"#REDIRECT [[{title}]]\n\n{{{{Redirect category shell|\n{{{{R from move}}}}\n}}}}",
            )
        if number % 38 == 7:
            text = f"'''{title}''' may refer to:\n* [[{title}]], an article\n* [[{title} (film)]], a film\n\n"
            yield "disambiguations", 0, f"{title} (disambiguation)", text + DISAMBIGUATIONS[number % 5]
        if number % 38 == 11:
            namespace = (1, 10, 14)[number % 3]
            text = f"== {title} ==\nOn '''{title}'''. ~~~~\n<noinclude>{{{{documentation}}}}</noinclude>"
            yield "other_namespaces", namespace, f"{NAMESPACES[namespace]}:{title}", text


def _article(demo: list[tuple[str, list[str]]], number: int) -> tuple[str, list[str]]:
    """Return title and sentences of an article: of the demo corpus, or of three of its articles mixed."""
    turn, place = divmod(number, len(demo))
    title, sentences = demo[place]
    if turn:
        others = [demo[(place + 37 * turn) % len(demo)][1], demo[(place + 5003 * turn + 11) % len(demo)][1]]
        mixed = [part[turn % 2 :: 2] or part for part in (sentences, *others)]
        sentences = [sentence for part in mixed for sentence in part]
        random.Random(number).shuffle(sentences)
        title = f"{title} (variant {turn + 1})"
    return (SCRIPTS[number // 100 % 5].format(title) if number % 100 == 50 else title), sentences


def _wikitext(number: int, title: str, sentences: list[str]) -> str:
    """Write sentences as an article, with the markup that articles have; which, follows from its number."""
    bold = re.compile(rf"\b{re.escape(title)}\b")
    lines = [bold.sub(lambda found: f"'''{found[0]}'''", sentences[0], count=1), *sentences[1:]]
    lines = [_marked(number + place, line) for place, line in enumerate(lines)]
    lines.append(quantity(number)[0])
    lead, rest = lines[: len(lines) // 2 + 1], lines[len(lines) // 2 + 1 :]
    parts = ["{{Short description|An article}}\n", _infobox(number, title) if number % 3 else ""]
    parts += [f"[[File:Picture {number}.jpg|thumb|upright=1.2|A [[picture]] of it.]]\n" if number % 5 == 2 else ""]
    parts += [" ".join(lead), f"<ref name=first>{{{{cite journal|title=On {number}|year=1999}}}}</ref>\n"]
    if rest:
        parts += [
            f"\n== {HEADINGS[number % 5]} ==\n{{{{Main|Other article}}}}\n",
            " ".join(rest),
            '<ref name="first" />\n',
        ]
    parts += ["\n<!-- Do not change\n== this == -->\n" if number % 4 == 0 else ""]
    parts += [_table(number) if number % 6 == 1 else "", _list(sentences) if number % 7 == 3 else ""]
    parts += ["\n== See also ==\n* [[Another article]]\n" if number % 2 else ""]
    parts += [f"\n== References ==\n{{{{reflist}}}}\n\n[[Category:Articles {number % 50}]]\n[[de:Artikel {number}]]"]
    return "".join(parts)


def _marked(number: int, sentence: str) -> str:
    """Write a sentence as wikitext, with links, an entity or italics."""
    sentence = escape(sentence).replace("[", "&#91;").replace("|", "&#124;")
    words = list(LINKED.finditer(sentence))
    for word in reversed(words[number % 4 :: 5]):
        label = word[0]
        forms = f"[[{label}]]", f"[[{label.title()} (thing)|{label}]]", f"''{label}''", f"[[{label[:-1]}]]{label[-1]}"
        sentence = sentence[: word.start()] + forms[(number + word.start()) % 4] + sentence[word.end() :]
    return sentence


def _infobox(number: int, title: str) -> str:
    return (
        f"{{{{Infobox thing\n| name = {escape(title)}\n| image = Picture {number}.jpg\n"
        f"| mass = {{{{convert|{number}|kg|lb}}}}<ref>{{{{cite web|url=https://example.org/{number}|title=Mass}}}}</ref>\n"
        f"| formula = {{{{chem2|H{number}O}}}}\n}}}}\n"
    )


def _table(number: int) -> str:
    rows = "".join(f"|-\n| row {row} || {{{{val|{number + row}|u=kg}}}}\n" for row in range(3))
    return f'\n{{| class="wikitable"\n|+ Caption\n! Name !! Mass\n{rows}|}}\n'


def _list(sentences: list[str]) -> str:
    """Write the first words of sentences as a list."""
    items = [escape(" ".join(re.findall(r"\w+", sentence)[:8])) for sentence in sentences]
    return "\n=== In short ===\n" + "".join(f"*{'*' * (place % 3)} {item}\n" for place, item in enumerate(items))


def _escape(text: str) -> str:
    return escape(text, {'"': "&quot;"})


def _page(number: int, namespace: int, title: str, text: str) -> str:
    target = re.match(r"#REDIRECT \[\[(.*)\]\]", text)
    return PAGE.format(
        title=_escape(title),
        namespace=namespace,
        page=number,
        redirect=f'    <redirect title="{_escape(target[1])}" />\n' if target else "",
        revision=10**6 + number,
        day=number % 28 + 1,
        size=len(text.encode()),
        sha1=sha1(text.encode()).hexdigest(),
        text=_escape(text),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, metavar="OUT.xml.bz2")
    parser.add_argument("--articles", type=int, default=10_000)
    parser.add_argument("--pages-per-stream", type=int, default=100)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(write_dump(options.path, options.articles, options.pages_per_stream)) + "\n")
