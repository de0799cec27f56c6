"""Hostile bytes against everything that reads bytes: decoders, tars, manifests, index files."""
