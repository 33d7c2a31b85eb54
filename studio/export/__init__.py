"""From a scene to a finished asset: surface, clean-up, unwrapping, baking, the file, its pictures and its measures."""
