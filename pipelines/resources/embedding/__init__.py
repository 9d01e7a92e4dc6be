"""Embedding models: which there are, their weights, what runs them, and photo crops to vectors."""
