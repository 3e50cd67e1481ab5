"""Lathe on one machine: its servers come from PyPI packages and run under our own supervisor."""
