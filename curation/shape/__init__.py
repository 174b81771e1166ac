"""Rows to tuples: shapes, filters, held-out queries."""
