"""How requests reach sites."""
