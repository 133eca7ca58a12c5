"""Scripts that measure EdgeTune against its peers and write results/*.json. Run as `python -m benchmarks.decode`."""
