"""Representations: what is optimised, and the scenes it makes."""
