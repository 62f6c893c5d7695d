"""Programs that play episodes and come with the trainer. Each is a file that runs by itself, in any Python."""
