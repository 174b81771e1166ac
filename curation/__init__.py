"""From open datasets to tuples: read, shape, filter, deduplicate, report, publish."""
