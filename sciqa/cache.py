"""Files made once per machine from a model's own files, so that the next worker starts quickly."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached_folder(name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of the machine's cache, built first where it is not there; whole or not at all.

    Args:
        name: of the folder; it must change with all that the content follows from.
        build: writes the content into the folder it is given.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sciqa"
    folder = root / name
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
        try:
            build(aside)
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # another worker was not simply quicker
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder
