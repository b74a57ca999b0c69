"""sciqa: ranked answers to science exams, by retrieval and language models, on Ray."""

import os
from importlib.metadata import version

__version__ = version("sciqa")

# Ray, which reads this when it is imported, would tell of a worker's death on standard output; `sciqa.lost` does it.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed|retries remaining, so the task will be"
)
