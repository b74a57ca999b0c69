"""Write three PDFs, in two columns, from articles of the demo corpus: what `papers.sh` reads if it is given no papers.

The text is by the authors of English Wikipedia under CC BY-SA 4.0, which each PDF says on its first page.
"""

import json
import sys
from pathlib import Path

from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, StreamObject

from sciqa.core.packaged import packaged_path

TOPICS = {
    "Matter, Earth and Sky": "Physical sciences",
    "Living Things and Health": "Biology and health sciences",
    "Machines and Materials": "Technology",
}
ARTICLES = 60
#: Characters of articles that are taken: shorter ones say little, longer ones were cut.
LENGTHS = range(700, 1600)
NOTICE = (
    "Text: English Wikipedia, by its authors, under CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0). "
    "Each heading is the name of its article (en.wikipedia.org/wiki/NAME), of which the introduction stands here."
)
#: Size of a page and of a line in points; lines of a column, and characters of a line.
PAGE, LINE, LINES, WIDTH = (595, 842), 12, 60, 52


def main(folder: Path) -> None:
    """Write the PDFs into a new folder, all or none."""
    corpus = json.loads(packaged_path("demo").read_text(encoding="utf-8")).values()
    unfinished = folder.with_name(f"{folder.name}.part")
    unfinished.mkdir(parents=True, exist_ok=True)
    for title, topic in TOPICS.items():
        articles = [each for each in corpus if each["topic"] == topic and _is_taken(each["extract"])]
        write_paper(unfinished / f"{title}.pdf", title, articles[:ARTICLES])
    unfinished.rename(folder)


def _is_taken(text: str) -> bool:
    return len(text) in LENGTHS and text.encode("cp1252", "ignore").decode("cp1252") == text


def write_paper(path: Path, title: str, articles: list[dict]) -> None:
    """Write a PDF with a title, a notice of the licence, and a section for each article."""
    lines = [("F2", title), *(("F1", line) for line in wrap(NOTICE)), ("F1", "")]
    for article in articles:
        lines += [("F2", article["title"]), *(("F1", line) for line in wrap(article["extract"])), ("F1", "")]
    writer = PdfWriter()
    writer.add_metadata({"/Title": title})
    fonts = DictionaryObject({NameObject("/F1"): _font("Times-Roman"), NameObject("/F2"): _font("Times-Bold")})
    for first in range(0, len(lines), 2 * LINES):
        page = writer.add_blank_page(*PAGE)
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        columns = [lines[first : first + LINES], lines[first + LINES : first + 2 * LINES]]
        number = [("F1", str(len(writer.pages)))]
        parts = [_column(columns[0], 50, 780), _column(columns[1], 310, 780), _column(number, 295, 30)]
        stream = StreamObject()
        stream.set_data(b"\n".join(parts))
        page[NameObject("/Contents")] = stream
        page.compress_content_streams()
    writer.write(path)


def wrap(text: str) -> list[str]:
    """Return the lines of a text; a long word that does not fit is divided by a hyphen."""
    lines = [""]
    for word in text.split():
        room = WIDTH - len(lines[-1]) - 2
        if len(lines[-1]) + len(word) < WIDTH:
            lines[-1] = f"{lines[-1]} {word}".strip()
        elif len(word) >= 9 and word.isalpha() and word.islower() and room >= 4:
            at = min(room, len(word) - 3)
            lines[-1] += f" {word[:at]}-"
            lines.append(word[at:])
        else:
            lines.append(word)
    return lines


def _font(name: str) -> DictionaryObject:
    names = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": f"/{name}", "/Encoding": "/WinAnsiEncoding"}
    return DictionaryObject({NameObject(key): NameObject(value) for key, value in names.items()})


def _column(lines: list[tuple[str, str]], left: int, top: int) -> bytes:
    shown = [f"BT {left} {top} Td {LINE} TL".encode()]
    for font, line in lines:
        text = line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)").encode("cp1252")
        shown.append(f"/{font} 10 Tf (".encode() + text + b") Tj T*")
    return b"\n".join([*shown, b"ET"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
