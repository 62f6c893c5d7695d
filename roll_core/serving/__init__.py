"""The policy as an OpenAI-compatible endpoint, and programs that speak to it as a source of rollouts."""
