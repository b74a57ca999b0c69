"""Extract the text of a PDF in a separate process, so that no malformed file can end or block a run.

As a script, this module reads a PDF from standard input and writes {"title", "pages"} or {"error"} as JSON.
"""

import io
import json
import re
import resource
import signal
import subprocess
import sys

#: Limits: seconds of CPU time per page, and bytes of memory per file.
PAGE_SECONDS, MEMORY = 30, 4 << 30
SOFT = "\xad"
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
HYPHEN = re.compile(r"(?<=([^\W\d_]))-[ \t]*\n[ \t]*(?=([^\W\d_]))")
SPLIT = re.compile(rf"{SOFT}[ \t]*\n[ \t]*")
#: A hyphen, minus sign or dash at the end of a line, which the next line follows directly.
DASH = re.compile(r"(?<=\S)([-‐−–])[ \t]*\n[ \t]*(?=\S)")


def read_pdf(data: bytes) -> tuple[str, str]:
    """Return the title of a PDF ("" if it has none) and its text on one line.

    Raises:
        ValueError: the PDF cannot be read; the message is the reason.
    """
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        if done.returncode == -signal.SIGPROF:
            raise ValueError(f"a page takes more than {PAGE_SECONDS} seconds of computing")
        raise ValueError(f"exit code {done.returncode}")
    found = json.loads(done.stdout)
    if "error" in found:
        raise ValueError(found["error"])
    title, text = map(_whole_characters, (found["title"], "\n".join(found["pages"])))
    return title.strip(), join_pdf_lines(text)


def _whole_characters(text: str) -> str:
    """Return a text with U+FFFD in place of each unpaired surrogate, which is no character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def join_pdf_lines(text: str) -> str:
    """Join the lines of a text.

    Ligatures become letters. A divided word is joined if its hyphen is between two lower-case letters or is a soft
    hyphen. Any other hyphen, minus sign or dash at the end of a line stays, and the next line follows without a space.
    """
    text = SPLIT.sub("", text.translate(LIGATURES)).replace(SOFT, "")
    text = HYPHEN.sub(lambda found: "" if found[1].islower() and found[2].islower() else "-", text)
    return " ".join(DASH.sub(r"\1", text).split())


def _extract(data: bytes) -> dict:
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(data))
    title = str((reader.metadata and reader.metadata.title) or "")
    pages = []
    for page in reader.pages:
        signal.setitimer(signal.ITIMER_PROF, PAGE_SECONDS)
        pages.append(page.extract_text())
    return {"title": title, "pages": pages}


def _main() -> None:
    import logging

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.setitimer(signal.ITIMER_PROF, PAGE_SECONDS)
    try:
        found = _extract(sys.stdin.buffer.read())
    except Exception as error:  # one bad file must not stop the others
        found = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main()
