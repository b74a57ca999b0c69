"""sciqa: ranked answers to science exams, by retrieval and language models, on Ray."""

import os
from importlib.metadata import version

__version__ = version("sciqa")

# Ray reads this when it is imported. It would tell of a worker's death on standard output; `sciqa.core.lost` does.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX", "^A worker died or was killed|retries remaining, so the task will be"
)
