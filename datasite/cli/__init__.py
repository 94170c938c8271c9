"""The operator's command."""

from datasite.cli.app import main

__all__ = ["main"]
