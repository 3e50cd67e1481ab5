"""What is asked of the tables, a noun a file. Each takes an open session; none commits."""
