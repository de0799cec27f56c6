"""Objectives: pure functions of embeddings, one file each."""
