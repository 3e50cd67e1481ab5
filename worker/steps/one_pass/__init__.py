"""Export in one pass: each merged tensor goes straight from the base's file to the quantised ones."""
