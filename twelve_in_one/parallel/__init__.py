"""Devices and processes: placement and synchronisation."""
