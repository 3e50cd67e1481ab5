"""What a job of each kind takes: the typed parameters behind `POST /v1/jobs`, a kind a file."""
