"""What a plan holds a recipe against that differs by its task."""
