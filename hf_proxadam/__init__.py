"""Proximal and scale-free AdamW for Hugging Face Transformers."""

__version__ = "0.1.0"
