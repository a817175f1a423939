"""Turn checkpoints into files that the runtime runs."""
