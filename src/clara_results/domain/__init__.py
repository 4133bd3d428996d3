"""Plain Python: what a task, a file, a lease and an outcome are, and the rules that bind them."""
