"""Sentences about scenes, each dataset in its manner; pure functions of a scene and a generator."""
