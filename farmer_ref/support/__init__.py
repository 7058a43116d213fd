"""Errors, files, the Hub, command lines, several processes, plots and records: nothing of the paper."""
