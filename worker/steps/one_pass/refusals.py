"""Why something cannot be made in one way. It is no error where there is another."""


class NeedsThreeSteps(Exception):
    """The pass cannot make this file as llama.cpp would; the message says why, for the user.

    The three steps do the same, with more disk.
    """


class NeedsMerging(Exception):
    """The adapter cannot be served beside its base's file, only merged into it; the message says why."""
