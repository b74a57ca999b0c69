"""The terminal: where progress, and what a user should know, are written."""

from rich.console import Console

console = Console(stderr=True)
