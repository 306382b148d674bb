"""Fine-tune Mistral-7B with LoRA on medical reasoning data. Start at medreason/train/run.py."""

__version__ = "0.2.0"
