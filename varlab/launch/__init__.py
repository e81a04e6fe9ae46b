"""How jobs run: in this process, as local ranks, on Slurm, in sweeps."""
