"""Builds to and from others: export, import, the Hub, what differs, what is whole."""
