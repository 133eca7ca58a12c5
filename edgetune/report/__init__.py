"""What a run is worth: measuring memory and size, and the one table."""
