"""What both sides of Outrider agree on: the sampling rule, draft trees, token packing, packs, ids and errors."""
