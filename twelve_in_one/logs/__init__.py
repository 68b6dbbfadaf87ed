"""Logs of a run: metrics, means, times and device profiles."""
