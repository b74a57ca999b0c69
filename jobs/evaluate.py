"""Score the free answers of a model, and of what was tuned from it, to held-out instructions.

On a cluster: `ray job submit --working-dir . -- python jobs/evaluate.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["evaluate", *sys.argv[1:]])
