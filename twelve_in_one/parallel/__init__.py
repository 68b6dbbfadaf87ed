"""Devices and processes: what lies where, and who waits for whom."""
