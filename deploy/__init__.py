"""What runs Lathe: `local/` on one machine, `docker/` in containers."""
