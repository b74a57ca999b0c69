"""Find the passages of every question.

On a cluster: `ray job submit --working-dir . -- python jobs/retrieve.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["retrieve", *sys.argv[1:]])
