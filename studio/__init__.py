"""Dreamkiln: a prompt goes in, score distillation makes a textured GLB.

This package composes the others: it alone knows files, processes and people. ``cli`` is the command line, ``paths``
finds the assets, ``doctor`` examines the installation.
"""

__version__ = "0.5.0"
