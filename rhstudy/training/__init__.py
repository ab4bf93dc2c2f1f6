"""Context extension and fine-tuning of the attention modules."""
