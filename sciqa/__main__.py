"""`python -m sciqa` is `sciqa`."""

from sciqa.cli import main

main()
