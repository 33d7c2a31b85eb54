"""Jobs: a store of what is to be made, workers that make it, and what keeps both alive."""
