"""Batches: many prompts from a file, made one after the other or side by side, until every one of them is there."""
