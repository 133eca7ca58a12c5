"""What goes to the device: a folder put together, proven, put in its place, searched for and uploaded."""
