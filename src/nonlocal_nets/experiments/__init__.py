"""Many runs: variants side by side, sweeps, and their tables."""
