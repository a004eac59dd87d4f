"""Numerical tools that need nothing of the library."""
