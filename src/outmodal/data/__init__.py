"""Shards on disk and the exact stream of batches made from them."""
