"""What every part leans on: types, errors, settings, taps, records, extras, seeds."""
