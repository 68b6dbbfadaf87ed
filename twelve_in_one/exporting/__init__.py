"""Exported models: functions for other programs."""
