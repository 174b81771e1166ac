"""What is the same or nearly: equal queries, MinHash, exact Jaccard, within and across sources."""
