"""Showing: run folders, figures, and the report of the quickstart. Needs the extras that each module names."""
