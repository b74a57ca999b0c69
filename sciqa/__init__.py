"""sciqa: ranked answers to science exams, by retrieval and language models, on Ray."""

import os
from importlib.metadata import version

__version__ = version("sciqa")

# Ray reads this on import. It stops Ray from printing a worker's death on stdout, since `sciqa.core.lost` reports it.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed|retries remaining, so the task will be"
)
# gRPC would print, when Ray ends, that the connection to it was closed.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
