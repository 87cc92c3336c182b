"""Where tokens to measure on come from: text files, data sets, and the model itself."""
