"""Arrays in, arrays out: no Flax, no configurations, no token names."""
