"""What the blocking and the asynchronous client have in common: everything but sending, receiving and waiting."""
