"""Write questions or instructions from the passages of a run by a language model.

On a cluster: `ray job submit --working-dir . -- python jobs/generate.py --output s3://bucket/run`.
"""

import sys

from sciqa.cli import main

main(["generate", *sys.argv[1:]])
