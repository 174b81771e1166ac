"""Rows to tuples: shapes, filters, queries set apart."""
