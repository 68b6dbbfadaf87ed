"""The two-stream model (ViLBERT)."""
