"""Add an adapter's weights into its base model.

On a cluster: `ray job submit --working-dir . -- python jobs/merge.py --adapter s3://bucket/run/trained/reader --output
s3://bucket/run/merged`.
"""

import sys

from sciqa.cli import main

main(["merge", *sys.argv[1:]])
