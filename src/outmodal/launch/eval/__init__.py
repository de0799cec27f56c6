"""`outmodal eval`: its arguments, what is evaluated, the table of tasks, and what is written."""
