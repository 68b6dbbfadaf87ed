"""Texts as ids for models that read and write them: tokenizers, labels, class names."""
