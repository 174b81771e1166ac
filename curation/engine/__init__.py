"""Run a function over items, in this process or in several."""
