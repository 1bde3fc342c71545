"""The parts of `sarm-ray train`: plan, labels, batches, engine, loop, validation, checkpoints, report."""
