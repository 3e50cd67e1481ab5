"""Why an export cannot be done in one pass. It is no error: the three steps do the same, with more disk."""


class NeedsThreeSteps(Exception):
    """The pass cannot make this file as llama.cpp would; the message says why, for the user."""
