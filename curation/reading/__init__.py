"""Where rows come from: files, archives, the Hub, in every format."""
