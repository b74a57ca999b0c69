"""Text of a PDF file, taken out in a process of its own: no file, however it is made, ends or holds up a run.

As a script it reads a PDF from standard input and writes {"title", "pages"} or {"error"} as JSON.
"""

import io
import json
import re
import resource
import signal
import subprocess
import sys

#: Seconds of computing that a page may take, and bytes of memory that a file may.
PAGE_SECONDS, MEMORY = 30, 4 << 30
SOFT = "\xad"
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
HYPHEN = re.compile(r"(?<=([^\W\d_]))-[ \t]*\n[ \t]*(?=([^\W\d_]))")
SPLIT = re.compile(rf"{SOFT}[ \t]*\n[ \t]*")
#: A hyphen, a minus sign or a dash at the end of a line that belongs to what follows.
DASH = re.compile(r"(?<=\S)([-‐−–])[ \t]*\n[ \t]*(?=\S)")


def read_pdf(data: bytes) -> tuple[str, str]:
    """Return the title in a PDF, "" where it says none, and its text on one line.

    Raises:
        ValueError: a PDF that cannot be read, with the reason.
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
    return found["title"].strip(), join_lines("\n".join(found["pages"]))


def join_lines(text: str) -> str:
    """Put the lines of a page together.

    Ligatures become letters. A word is put together where the hyphen stood between two lower-case letters, or was a
    soft one; any other hyphen, minus sign or dash at the end of a line stays and takes what follows.
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
    except Exception as error:  # whatever a file does to the library, the others are read
        found = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _main()
