"""From a run to a job of a SLURM cluster: the script, the site's profile, checks, following."""
