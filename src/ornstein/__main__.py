"""`python -m ornstein`: the command line, also for launchers of many processes."""

from __future__ import annotations

from ornstein.cli import main

main()
