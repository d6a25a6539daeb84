"""The training room: from data files to the bundled target and draft."""
