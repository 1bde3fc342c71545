"""Pure arithmetic of episodes, windows and progress: stdlib and numpy, no I/O, no torch, no ray."""
