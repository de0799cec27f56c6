"""The command line: parse, compose the configuration, start processes."""
