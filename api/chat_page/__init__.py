"""The chat page in the browser: plain files that are served as they are, and need no build."""
