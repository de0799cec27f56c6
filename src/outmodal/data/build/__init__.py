"""Builders: one file a source, all writing the same shards and manifest."""
