"""Learners, perceptors, heads, connectors, objectives and exports."""
