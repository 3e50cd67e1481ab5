"""Health: whether this process lives, and whether all that jobs need is there."""
