"""The `lathe` command: a client of the REST API, as everybody else is."""
