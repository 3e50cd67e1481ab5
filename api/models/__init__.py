"""Models: names that answer, their versions and quantizations."""
