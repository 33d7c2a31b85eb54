"""The toybox: a procedural world of captioned objects, and the small diffusion prior that is trained on it.

``shapes`` holds signed distances, ``world`` the objects and their captions, ``views`` the sphere tracer, ``language``
the tokenizer, ``model`` the network and ``training`` the loop behind ``studio train-prior``.
"""
