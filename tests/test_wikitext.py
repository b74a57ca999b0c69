import bz2
import hashlib
import re
import time
from xml.etree import ElementTree

import pytest
from dump import quantity, split_sentences, write_dump
from hypothesis import given, settings
from hypothesis import strategies as st

from sciqa.corpus.articles import read_articles
from sciqa.corpus.table_text import TableCell, table_lines
from sciqa.corpus.wikitext import is_redirect, is_wikitext_disambiguation, read_wikitext_sections

READ_AS = {
    # {{val}}
    "{{val|1.602176634|e=-19|u=C}}": "1.602176634×10^−19 C",
    "{{val|1.23|0.05|e=3|u=m/s2}}": "(1.23±0.05)×10^3 m/s^2",
    "{{val|1.23(4)|e=3|ul=kg}}": "1.23(4)×10^3 kg",
    "{{Val|6.67430|(15)|e=-11}}": "6.67430(15)×10^−11",
    "{{val|1.2|+0.3|-0.4}}": "1.2+0.3−0.4",
    "{{val|5|u=m|up=s}}": "5 m/s",
    "{{val|5|to|7|u=GeV/c2}}": "5 to 7 GeV/c^2",
    "{{val|p=~|5|s=x}}": "~5x",
    "{{val|95|u=%}}": "95%",
    "{{val|e=9|u=yr}}": "10^9 yr",
    "{{val|-3e-9|u=kg.m.s-2}}": "−3×10^−9 kg⋅m⋅s^−2",
    # {{convert}}
    "{{convert|5|km|mi}}": "5 km",
    "{{convert|5|km|0|abbr=on}}": "5 km",
    "{{convert|5|to|10|km}}": "5 to 10 km",
    "{{convert|60|-|70|kg}}": "60–70 kg",
    "{{cvt|-40|C|F}}": "−40 °C",
    "{{convert|6|ft|2|in|cm}}": "6 ft 2 in",
    "{{convert|3|x|4|ft|m}}": "3 × 4 ft",
    "{{convert|5|e6km2}}": "5×10^6 km^2",
    "{{convert|3+1/2|sqmi}}": "3 1/2 sq mi",
    "{{convert|9.8|m/s2}}": "9.8 m/s^2",
    # Fractions, powers and roots
    "{{frac|1|2}}": "1/2",
    "{{frac|3|1|2}}": "3 1/2",
    "{{frac|4}}": "1/4",
    "{{sfrac|''E''|''m'' + 1}}": "E/(m + 1)",
    "2{{e|-19}}": "2×10^−19",
    "{{10^|6}}": "10^6",
    "m{{sup|-2}}": "m^−2",
    "H{{sub|2}}O": "H2O",
    "{{sqrt|2}}": "√2",
    "{{sqrt|x+1}}": "√(x+1)",
    "5{{su|p=+1|b=-2}}": "5+1−2",
    "SO{{su|p=2-|b=4}}": "SO4^2−",
    "{{gaps|6.022|140|76|e=23|u=mol-1}}": "6.02214076×10^23 mol^−1",
    "{{formatnum:12345.678}}": "12,345.678",
    "{{formatnum:many}}": "many",
    "{{physconst|h}}": "6.62607015×10^−34 J⋅s",
    # Chemistry
    "{{chem|H|2|O}}": "H2O",
    "{{chem|SO|4|2-}}": "SO4^2−",
    "{{chem|238|U}}": "238U",
    "{{chem|235|92|U}}": "235U",
    "{{chem2|H2SO4}}": "H2SO4",
    "{{chem2|SO4(2-)}}": "SO4^2−",
    "{{chem2|Na+}}": "Na+",
    "{{chem2|NO3-}}": "NO3−",
    "{{chem2|CH3-CH3}}": "CH3-CH3",
    "{{chem2|CuSO4*5H2O}}": "CuSO4·5H2O",
    "{{chem2|2 H2 + O2 -> 2 H2O}}": "2 H2 + O2 → 2 H2O",
    "{{nuclide|carbon|14}}": "Carbon-14",
    "{{SimpleNuclide|Carbon|14}}": "Carbon-14",
    "{{SubatomicParticle|electron}}": "electron",
    "<chem>SO4^2-</chem>": "SO4^2−",
    "<ce>2H2 + O2 -> 2H2O</ce>": "2H2 + O2 → 2H2O",
    "<ce>^{227}_{90}Th+</ce>": "227Th+",
    # Formulas
    "<math>E = mc^2</math>": "E = mc^2",
    r"<math display=block>\frac{a+b}{c}</math>": "(a+b)/c",
    r"<math>\tfrac12 mv^2</math>": "1/2 mv^2",
    r"<math>6.022 \times 10^{23}\ \mathrm{mol}^{-1}</math>": "6.022 ×10^23 mol^−1",
    r"<math>x^{n+1} \ne \sqrt{2}</math>": "x^(n+1) ≠√(2)",
    r"<math>\left( \frac{a}{b} \right)</math>": "(a/b)",
    r"<math>\begin{align} a &= b \\ &= c \end{align}</math>": "a = b = c",
    r"<math>\mathbf{F}_{i,j}</math>": "F_(i,j)",
    r"<math>\text{non-zero} - x &lt; 1</math>": "non-zero − x < 1",
    "{{math|1=''E'' = ''mc''<sup>2</sup>}}": "E = mc^2",
    "{{math|''a'' {{=}} {{mvar|b}}}}": "a = b",
    "H<sub>2</sub>O": "H2O",
    "10<sup>6</sup> m<sup>−1</sup> s<sup>-1</sup>": "10^6 m^−1 s^−1",
    "<sup>14</sup>C, the 19<sup>th</sup>": "14C, the 19th",
    # Signs and words
    "1{{ndash}}2{{nbsp}}{{pi}} 5 {{°C}}{{snd}}x": "1–2 π 5 °C – x",
    "{{nowrap|about {{convert|5|km}}}}": "about 5 km",
    "{{nobr|x}} {{abbr|DNA|acid}} {{lang|de|Haus}} {{langx|de|Haus}} {{lang-fr|eau}} {{transl|ar|ALA|kitab}}": (
        "x DNA Haus Haus eau kitab"
    ),
    "{{as of|2020|5}}, {{As of|2020|lc=y}}": "As of May 2020, as of 2020",
    "{{circa|1500}}": "c. 1500",
    "{{nihongo|Tokyo|東京|Tōkyō}}": "Tokyo (東京, Tōkyō)",
    "{{US$|5 million}}": "US$5 million",
    "{{Template:Nowrap\n|x}}": "x",
    # Markup
    "'''Bold''' ''it'' '''''both''''' the ''Beagle'''s": "Bold it both the Beagles",
    "[[cell]]s, [[Cell (biology)|cell]], [[Alien: Resurrection]], [[:Category:X]], [[wikt:word]]": (
        "cells, cell, Alien: Resurrection, Category:X, word"
    ),
    "a[[File:x.jpg|thumb|A [[link]] of {{val|5}}.]][[Image:y.png]][[Category:Z|z]][[de:Artikel]] b": "a b",
    "[https://example.org the label] x [https://example.org] https://example.org": "the label x",
    "a&nbsp;b &lt;c&gt; &alpha;&#8239;&amp;": "a b <c> α &",
    "a<ref>{{cite|x}}</ref> b<ref name=x/> c<ref name=a/b>''d''\n</ref><!-- e\n== f == --> g": "a b c g",
    "__NOTOC__x<br/>y<nowiki>''z''</nowiki>": "x y''z''",
    "Words ({{IPAc-en|w}}; {{lang|la|aqua}}) and ({{IPA|x}}) and ( ; ) {{cn}}, f().": "Words (aqua) and and, f().",
    "{{Infobox x\n| a = {{val|5}}\n| b_c = {{plainlist|\n* c\n* d\n}}\n| image = x.jpg\n}}\nText {{unknown|x}}.": (
        "a: 5\nb c: c, d\nText x."
    ),
    "Text.{{Navbox|y}}": "Text.",
    "One\nline.\n\nTwo.\n* a\n** b\n# c\n; Term: means\nwhere\n:<math>x</math>\nis.": (
        "One line.\nTwo.\na\nb\nc\nTerm: means\nwhere\nx\nis."
    ),
    'x\n{| class="wikitable"\n! a\n|-\n| b || {{val|5}}\n|}\ny <gallery>\nFile:x.jpg|z\n</gallery>': "x\na\nb: 5\ny",
    "<blockquote>A</blockquote>B<div>C</div>{{quote|D|E}}": "A\nB\nC\nD",
    "{{ubl|a|b}}": "a\nb",
    # What holds the answers: tables, infoboxes, dates, sizes, places
    "{|\n|+ Metals\n! Name !! Sign !! Mass\n|-\n| Iron || Fe || {{nts|1008}}\n|-\n! Tin\n| Sn || {{sort|4|4.0}}\n|}": (
        "Metals\nIron: Sign Fe; Mass 1,008\nTin: Sign Sn; Mass 4.0"
    ),
    "<table><tr><th rowspan=2>Metal</th><th colspan=2>Point</th></tr><tr><th>melting</th><th>boiling</th></tr>\n"
    "<tr><td>Tin</td><td>5</td><td>5</td></tr></table>": ("Tin: Point melting 5; Point boiling 5"),
    "{|\n! Born\n| 1879<br>Ulm\n|-\n! colspan=2 | Work\n|-\n! Field\n|\n* Physics\n* Music\n|}": (
        "Born: 1879, Ulm\nWork\nField: Physics, Music"
    ),
    "{|\n! City !! 1990\n|-\n| Ulm || {{increase}} 5\n|-\n! Total !! 5\n|}": "Ulm: 1990 ▲ 5\nTotal: 1990 5",
    "{{Infobox\n| header1 = Facts\n| label2 = Mass\n| data2 = 5 kg\n| data3 = alone\n}}": "Facts\nMass: 5 kg\nalone",
    "{{Taxobox | genus = ''Canis'' | species = lupus}}": "genus: Canis\nspecies: lupus",
    "{{birth date and age|1950|5|1}}, {{birth date|1879|3|14|df=y}}, {{birth-date|May 1900}}": (
        "1 May 1950, 14 March 1879, May 1900"
    ),
    "{{death date and age|1955|4|13|1879|4|14}}, {{death year and age|1955|1879}}": (
        "13 April 1955 (aged 75), 1955 (aged 75 or 76)"
    ),
    "{{age|1879|3|14|1955|4|18}}, {{dts|1969|7|20}}, {{start date|1969|July}}, {{film date|2001|5||Rome|2002}}": (
        "76, 20 July 1969, July 1969, May 2001 (Rome), 2002"
    ),
    "{{height|m=1.75}}, {{height|ft=5|in=9}}": "1.75 m, 5 ft 9 in",
    "{{coord|51|28|38|N|0|0|5.3|W|display=title}} {{coord|-33.9|18.4}} {{coord|48.4|N|10|E}}": (
        "51°28′38″N 0°0′5.3″W 33.9°S 18.4°E 48.4°N 10°E"
    ),
    "{{sortname|Marie|Curie}}, {{flag|Peru}}, {{flagicon|FRA}} x, {{flagIOCathlete|[[Bolt]]|JAM|2008}}": (
        "Marie Curie, Peru, FRA x, Bolt (JAM)"
    ),
    "{{USA}} won {{tick}} {{yes|Yes!}} {{PKR|5}} {{₹|7}} {{percentage|1|8|1}} {{lc:ABC}}": (
        "USA won ✓ Yes! PKR 5 ₹7 12.5% abc"
    ),
    "{{cn|date=May 2020}}a{{Foo mark|date=May 2020|reason=b}}{{X-stub}}": "a",
    "a\n\n{{Isaac Newton}}\n{{Topics|state=collapsed}}": "a",
    "It is {{foo|b=5|c=d}} and {{bar baz}}.": "It is b: 5; c: d and bar baz.",
    "x<syntaxhighlight lang=c>int a &lt; b;</syntaxhighlight>": "x\nint a < b;",
    # Formulas that are more than their letters
    r"<math>\sqrt[3]{8} + \sqrt[n]{x}</math>, {{sqrt|8|3}}": "³√(8) + ⁿ√(x), ³√8",
    r"<math>x \lt 5 \gt y</math>": "x < 5 > y",
    r"<math>1 \over 2</math>, <math>y = {a+b \over c_{2}} d</math>, <math>\left({n \choose k}\right)</math>": (
        "1/2, y = (a+b)/c_2 d, ((n choose k))"
    ),
    r"<math>20\degree C, 45^\circ</math>": "20°C, 45°",
    r"<math>\ce{H2O + SO4^{2-}}</math>": "H2O + SO4^2−",
    r"<math>\begin{pmatrix} a & b \\ c & d \end{pmatrix}</math>": "(a, b; c, d)",
    r"<math>f = \begin{cases} x & y \\ 0 & z \end{cases}</math>": "f = {x, y; 0, z}",
    r"<math>\sfrac{1}{2} \|x\| \sec y \land z \bmod 3 \foo{bar} \Qux</math>": "1/2 ‖x‖ sec y ∧ z mod 3 foo bar Qux",
    r"<math>\displaystyle \lim_{x \to 0} \mbox{a}</math>": "lim_(x →0) a",
}
BROKEN = {
    "text {{val|5 is a": "text val|5 is a",
    "{{Infobox x\n| a = b\n| c = d\nProse.": "Prose.",
    "{| class=x\n| cell\n! head\nProse.": "Prose.",
    "see [[Water|the is.\n\nNext [[ok]]": "see Water|the is.\nNext ok",
    "a <ref>{{cite|x}} b\n\nNext<ref>c</ref> d": "a b\nNext d",
    "x <b>bold": "x bold",
    "x </i> }} ]] <ref name=": "x",
    "<table><tr><td>Tin<td>5 kg</table> x": "Tin, 5 kg\nx",
    "a <!-- b": "a b",
    "&#xD800; &bogus;": "� &bogus;",
    r"<math>\frac{a</math>": "frac a",
    "{{val}} {{convert}} {{frac}} {{chem}} {{nuclide}} {{formatnum:}} {{su}} {{gaps}} {{chem2}} {{ra}} {{as of|x}}": (
        "As of x"
    ),
}
ARTICLE = """Lead.
== History ==
Some.
=== Early ''work'' ===
Early.
==== {{nowrap|More}} ====
Deep.
== Empty ==
<!-- nothing -->
== See also ==
* [[x]]
=== Sub ===
* [[y]]
== Last ==
Text.
==References==
{{reflist}}
"""
#: What demo texts have where something was left out of them; it is tidied like wikitext.
GAP = re.compile(r" [,;.](?:\s|$)|\( | \)|[\u200b\u2060]")


@pytest.mark.parametrize(("wikitext", "text"), (READ_AS | BROKEN).items())
def test_wikitext_is_read_as(wikitext, text):
    assert read_wikitext_sections(wikitext) == [("", text)]


def test_sections_have_paths_and_those_without_prose_are_left_out():
    assert read_wikitext_sections(ARTICLE) == [
        ("", "Lead."),
        ("History", "Some."),
        ("History > Early work", "Early."),
        ("History > Early work > More", "Deep."),
        ("Last", "Text."),
    ]
    assert read_wikitext_sections("") == read_wikitext_sections("{{x}}\n== References ==\n* {{cite web|y}}") == []


@pytest.mark.parametrize("heading", ["Sources", "Notes", "References", "Literature", "External links", "Gallery"])
def test_sections_of_citations_keep_what_is_no_citation(heading):
    cited = "* {{cite book|title=Rivers\n|year=1999}}, p. 5\n# Smith, J. ''The River''. Oxford University Press, 1999\n"
    cited += "* [https://example.org The river]\n{{reflist}}\n<references/>\n[[Category:Rivers]]\n"
    assert read_wikitext_sections(f"Lead.\n== {heading} ==\n{cited}") == [("", "Lead.")]
    prose = "The river rises in the Alps (1,935 m) and has {{convert|3|km}} of banks."
    expected = (heading, "The river rises in the Alps (1,935 m) and has 3 km of banks.")
    assert read_wikitext_sections(f"Lead.\n== {heading} ==\n{prose}\n{cited}") == [("", "Lead."), expected]


def test_lists_of_sections_named_like_those_of_citations_are_read():
    wikitext = "== Sources ==\n* Meat has much iron.\n* Spinach, in 1890 thought rich in iron, has less.\n"
    assert read_wikitext_sections(wikitext + "== Notes ==\n* Zero counts.") == [
        ("Sources", "Meat has much iron.\nSpinach, in 1890 thought rich in iron, has less."),
        ("Notes", "Zero counts."),
    ]


WORDS = st.text("abcdefgh", min_size=1, max_size=6)


CELLS = st.builds(TableCell, WORDS, st.booleans(), st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None)
@given(st.lists(st.lists(CELLS, max_size=4), max_size=6))
def test_every_cell_of_a_table_is_in_its_lines_but_for_names_of_columns(rows):
    for number, cell in enumerate(cell for row in rows for cell in row):
        cell.text += f"{number}."
    said = " ".join(table_lines(rows))
    assert all(cell.text in said for row in rows for cell in row if not cell.header)


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4, unique_by=lambda pair: pair[0]), st.booleans())
def test_every_argument_of_an_unknown_template_is_said(arguments, named):
    line = "".join(f"|x{key}={value}z" if named else f"|{value}z" for key, value in arguments)
    said = read_wikitext_sections(f"It is {{{{an unknown one{line}}}}} there.")[0][1]
    assert all(f"{value}z" in said for _, value in arguments)


@pytest.mark.parametrize(
    "piece",
    [
        "{{a|",
        "[[a|",
        "{|\n",
        "<ref>",
        "<ref name=",
        "<b a=c ",
        "{{a|<b>}} ",
        "[http://a ",
        "<!--",
        "<math>{{",
        ":",
        "==",
    ],
)
def test_no_broken_wikitext_hangs(piece):
    start = time.monotonic()
    sections = read_wikitext_sections("Prose. " + piece * (100_000 // len(piece)))
    assert not sections or sections[0][1].startswith("Prose.")
    assert time.monotonic() - start < 20


def test_deep_nesting_is_read_or_dropped():
    assert read_wikitext_sections("{{nowrap|" * 20 + "x" + "}}" * 20) == [("", "x")]
    assert read_wikitext_sections("x" + "{{{a|" * 2000 + "}}}" * 2000)[0][1].startswith("x")


@pytest.mark.parametrize(
    ("wikitext", "redirect", "disambiguation"),
    [
        ("#REDIRECT [[Water]]", True, False),
        (" #redirect: [[Water#Ice]] {{R from move}}", True, False),
        ("#WEITERLEITUNG [[Wasser]]", True, False),
        ("#перенаправление [[Вода]]", True, False),
        ("Water. #REDIRECT [[Water]]", False, False),
        ("# [[Water]]", False, False),
        ("'''Ice''' may refer to:\n* [[Ice]]\n{{disambiguation}}", False, True),
        ("{{Disambig|geo}}", False, True),
        ("{{hndis|Smith, John}}", False, True),
        ("{{dab}}", False, True),
        ("{{Chemistry disambiguation}}", False, True),
        ("{{place name disambiguation |x}}", False, True),
        ("{{disambiguation needed|date=May 2020}}", False, False),
        ("{{about||the film|Ice (disambiguation)}} {{other uses|Ice disambiguation}}", False, False),
    ],
)
def test_redirects_and_disambiguation_pages_are_told_apart(wikitext, redirect, disambiguation):
    assert (is_redirect(wikitext), is_wikitext_disambiguation(wikitext)) == (redirect, disambiguation)


def test_dump_read_back_holds_every_sentence_and_quantity(tmp_path):
    path = tmp_path / "x-multistream.xml.bz2"
    counts = write_dump(path, 300, 50)
    root = ElementTree.fromstring(bz2.decompress(path.read_bytes()))
    space = root.tag.removesuffix("mediawiki")
    pages = [
        (page.findtext(f"{space}ns"), page.findtext(f"{space}title"), page.findtext(f"{space}revision/{space}text"))
        for page in root.iter(f"{space}page")
    ]
    assert counts["pages"] == len(pages) == sum(counts.values()) - counts["pages"]
    assert counts["articles"] == 300
    assert counts["redirects"] == sum(is_redirect(text) for _, _, text in pages) > 60
    assert counts["disambiguations"] == sum(is_wikitext_disambiguation(text) for _, _, text in pages) > 5
    assert counts["other_namespaces"] == sum(namespace != "0" for namespace, _, _ in pages) > 5
    articles = [
        text
        for namespace, _, text in pages
        if namespace == "0" and not (is_redirect(text) or is_wikitext_disambiguation(text))
    ]
    compared = 0
    for number, (article, wikitext) in enumerate(zip(read_articles("demo"), articles, strict=False)):
        sections = read_wikitext_sections(wikitext)
        assert not any(name.startswith(("See also", "References")) for name, _ in sections)
        text = " ".join(text for _, text in sections).replace("\n", " ")
        assert not re.search(r"\[\[|\{\{|''|<ref|\{\||Picture \d|Category:", text)
        assert quantity(number)[1] in text
        for sentence in split_sentences(article["text"]):
            if not GAP.search(sentence):
                assert sentence in text
                compared += 1
    assert compared > 1000


def test_dump_streams_are_where_the_index_says_and_the_same_each_time(tmp_path):
    digests = set()
    for name in ("a", "b"):
        write_dump(tmp_path / f"{name}-multistream.xml.bz2", 120, 40)
        digests.add(hashlib.sha256((tmp_path / f"{name}-multistream.xml.bz2").read_bytes()).hexdigest())
    assert len(digests) == 1
    data = (tmp_path / "a-multistream.xml.bz2").read_bytes()
    lines = bz2.decompress((tmp_path / "a-multistream-index.txt.bz2").read_bytes()).decode().splitlines()
    offsets = sorted({int(line.split(":")[0]) for line in lines})
    assert len(offsets) == -(-len(lines) // 40)
    stream = bz2.BZ2Decompressor().decompress(data[offsets[1] :]).decode()
    offset, number, title = lines[40].split(":", 2)
    assert int(offset) == offsets[1]
    assert stream.startswith(f"  <page>\n    <title>{title}</title>\n    <ns>0</ns>\n    <id>{number}</id>")


def test_articles_beyond_the_demo_corpus_differ():
    from dump import _article

    demo = [(article["title"], split_sentences(article["text"])) for article in read_articles("demo")]
    words = [
        {tuple(words[at : at + 3]) for at in range(len(words) - 2)}
        for turn in range(1, 9)
        for place in range(0, len(demo), 500)
        if (words := " ".join(_article(demo, place + turn * len(demo))[1]).split())
    ]
    assert all(len(a & b) < 0.7 * len(a | b) for at, a in enumerate(words) for b in words[:at])
