"""Measurements that take minutes, written to `results/`: `make check` runs them."""
