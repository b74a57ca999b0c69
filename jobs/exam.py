"""Answer an exam from corpus to report.

On a cluster: `ray job submit --working-dir . -- python jobs/exam.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["exam", *sys.argv[1:]])
