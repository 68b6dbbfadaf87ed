"""Sentences about scenes in each dataset's style; pure functions of a scene and a generator."""
