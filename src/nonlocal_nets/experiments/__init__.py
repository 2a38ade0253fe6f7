"""Many runs: compared, and swept."""
