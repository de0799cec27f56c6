"""What a run will need on machines that nobody has paid for yet: memory, wires, time, storage.

recipe -> subject (the real method) -> costs (one small step, counted operation by operation)
       -> memory for each strategy, wire bytes, step time -> report, and what to change
"""
