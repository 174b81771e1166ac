"""Near-duplicates and decontamination."""
