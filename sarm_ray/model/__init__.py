"""The networks: image encoders, SARM, its checkpoints and its inference. Torch, no ray, no files but weights."""
