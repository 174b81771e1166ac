"""Hard negatives: encode, search, choose, write."""
