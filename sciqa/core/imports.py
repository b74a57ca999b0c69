"""Imports of large packages without Python's garbage collector."""

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.RLock()


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Pause the collector of cyclic garbage, whose passes take a fifth of the time that importing transformers takes.

    They find next to nothing, as modules stay, and look at all that has been imported again and again.
    """
    with _lock:  # else a thread could take another one's pause for what is to be restored
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()
