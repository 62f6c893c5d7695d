"""Where nodes come from: in this process, or on other machines. The one place that knows node and control at once."""
