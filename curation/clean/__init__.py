"""Near-duplicates within a source and across sources, and decontamination: `within.py`, `across.py` and `decontaminate.py`."""
