"""Builds to and from others: export, import, the Hub, differences, verification."""
