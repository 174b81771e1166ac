"""Rows from files, archives and the Hub, in every format."""
