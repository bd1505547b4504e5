"""Pure numbers from arrays: quality, calibration, agreement, intervals. No models, no loops over data."""
