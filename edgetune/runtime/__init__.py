"""What runs on the device: open a bundle, render a prompt, generate. Never torch."""
