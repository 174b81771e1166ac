"""The manifest: what it may say, checked, with line numbers."""
