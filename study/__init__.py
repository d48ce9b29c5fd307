"""The workshop: what runs the notebooks, keeps what they found, and shows it."""
