"""report.html: a build on one page."""
