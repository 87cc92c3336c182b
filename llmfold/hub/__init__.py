"""The Hugging Face hub: the model card of every output, and pushing an output there."""
