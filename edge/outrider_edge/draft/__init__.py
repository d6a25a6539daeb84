"""Drafting on the device: drafters beside the model's, which of them speaks, where its passes run, what they take."""
