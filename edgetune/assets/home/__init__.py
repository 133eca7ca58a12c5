"""edgetune:home, spoken smart-home commands and the JSON actions they ask for; README.md is its card."""
