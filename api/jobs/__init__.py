"""Jobs: submit, watch, cancel, and fetch what they made."""
