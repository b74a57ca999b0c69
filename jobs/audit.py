"""Find the questions of an exam that also stand in training questions or in the corpus.

On a cluster: `ray job submit --working-dir . -- python jobs/audit.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["audit", *sys.argv[1:]])
