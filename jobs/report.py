"""Render a run as one HTML page.

On a cluster: `ray job submit --working-dir . -- python jobs/report.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["report", *sys.argv[1:]])
