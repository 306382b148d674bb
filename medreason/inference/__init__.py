"""What a model answers: prompts in, texts and probabilities out, from a run, an adapter, a model or a server."""
