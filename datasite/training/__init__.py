"""What runs in the trainer: fitting, evaluation and statistics over prepared data."""
