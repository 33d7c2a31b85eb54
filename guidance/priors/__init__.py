"""The diffusion models that can be distilled: one file a family, each knowing how its network is called.

``loading`` makes a family's parts of a folder, ``single_file`` of one file; ``words`` and ``latents`` are the text
side and the picture side that families share, ``process`` turns every kind of answer into predicted noise, and
``guidance.diffusers_prior`` puts the parts together.
"""
