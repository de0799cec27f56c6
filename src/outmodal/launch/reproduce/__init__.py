"""Tables of papers on the user's data: one small file a table, one training run a cell."""
