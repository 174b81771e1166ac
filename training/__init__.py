"""The model room and the trainer."""
