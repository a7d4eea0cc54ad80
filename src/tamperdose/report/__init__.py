"""Tables and figures, drawn from a finished run's files alone."""
