"""Settings, loss, train step, training loop and evaluation."""
