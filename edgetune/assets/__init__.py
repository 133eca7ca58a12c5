"""What comes with EdgeTune: the base `edgetune:nano` and the data `edgetune:home`, each with its card."""
