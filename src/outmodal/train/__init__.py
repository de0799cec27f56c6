"""Methods and the one engine that trains them all."""
