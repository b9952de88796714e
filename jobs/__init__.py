"""Many runs: what identifies a run and where it lives. Nothing here imports torch."""
