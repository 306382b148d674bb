"""A model with LoRA and how it is asked: settings in, a checked and loaded model, tokenizer and prompts out."""
