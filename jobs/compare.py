"""Compare readers of one or more runs of an exam.

On a cluster: `ray job submit --working-dir . -- python jobs/compare.py s3://bucket/run --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["compare", *sys.argv[1:]])
