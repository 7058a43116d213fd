"""Evaluation: likelihood, classification accuracy, FID, and the paper's tables with verdicts on its claims."""
