"""Measurements: how fast outmodal's parts are, against stock parts, on the machine at hand."""
