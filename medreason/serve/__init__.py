"""A run behind OpenAI's API: requests in, checked and bounded; answers out, reasoning in a field of its own."""
