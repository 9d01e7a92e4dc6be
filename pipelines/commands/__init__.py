"""Groups of commands of `attendansee`, one module each."""
