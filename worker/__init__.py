"""The workers: they claim steps from the database and run each in a process of its own."""
