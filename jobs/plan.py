"""Estimate what a run takes, and which node types have room for it; nothing is started.

It needs no cluster: `python jobs/plan.py --model meta-llama/Llama-2-7b-hf --method qlora`.
"""

import sys

from sciqa.cli import main

main(["plan", *sys.argv[1:]])
