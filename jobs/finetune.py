"""Train an adapter, or a whole model, on questions with answers.

On a cluster: `ray job submit --working-dir . -- python jobs/finetune.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["finetune", *sys.argv[1:]])
