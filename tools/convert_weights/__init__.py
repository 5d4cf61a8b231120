"""Conversion between Hugging Face directories and this project's checkpoints."""
