"""What `outmodal doctor` looks at: one small file for each thing that can be wrong."""
