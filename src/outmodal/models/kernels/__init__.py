"""Losses over all pairs of a batch that never hold the matrix of all pairs.

One file an operation, three implementations behind one function each: `triton` (CUDA), `tiled`
(pure PyTorch with bounded memory, any device) and `reference` (plain; what the others are tested
against). `dispatch` chooses; `exchange` says how columns of other ranks are met.
"""
