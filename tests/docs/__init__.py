"""What the documentation says is run, and compared with the code."""
