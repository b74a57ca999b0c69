"""Embed the passages and index them, shard by shard.

On a cluster: `ray job submit --working-dir . -- python jobs/index.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["index", *sys.argv[1:]])
