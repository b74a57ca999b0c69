"""Entry point of `python -m sciqa`, the same as `sciqa`."""

from sciqa.cli import main

main()
