"""The command line: `ornstein --help` lists its commands."""

from __future__ import annotations

import sys

from ornstein._extras import require


def main() -> None:
    """Run the command that was typed; end with 0, or with 2 and one line that says what is wrong."""
    try:
        require("typer", extra="cli")
    except ImportError as error:
        sys.exit(f"error: the command line needs Typer: {error}")
    from ornstein.cli.app import run

    sys.exit(run(sys.argv[1:]))
