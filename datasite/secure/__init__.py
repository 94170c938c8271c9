"""A site's part in secure aggregation; see `core.secure` for what both sides share."""
