"""Training runs: their settings and presets, the loop, run folders, checkpoints, and what they cost."""
