"""One module a command; each has `run(argv) -> Outcome` and imports what it needs itself."""
