"""Search space, search (Optuna), trials on one loaded base, sensitivity."""
