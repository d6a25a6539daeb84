"""The edge side of Outrider: the draft model on the device, and the session that rides ahead of the cloud."""
