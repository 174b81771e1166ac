"""Models: folders, attention, vectors, rerankers, export."""
